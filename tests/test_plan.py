"""The saved plan: what goes in comes out, junk is a ConfigError, parts add up, schemas agree."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoparallel.errors import AutoparallelError, ConfigError
from autoparallel.layout import (
    CP_COMM_TYPES,
    GRAPH_SCOPES,
    OVERLAPS,
    PRECISIONS,
    RECOMPUTE_MODULES,
    Layout,
)
from autoparallel.plan import (
    Corrected,
    Estimate,
    IllegalReason,
    Measured,
    Origin,
    Place,
    Plan,
    PlanEntry,
    load_plan,
    megatron_fields,
)
from autoparallel.provenance import Provenance

SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"
PARTS = {"compute_s": 6.0, "tp_comm_s": 1.5, "cp_comm_s": 0.0, "ep_comm_s": 0.0, "dp_comm_s": 0.5}
PARTS |= {"pp_comm_s": 0.25, "bubble_s": 1.0, "recompute_s": 0.5, "optimizer_s": 0.2}
PARTS |= {"launch_s": 0.05}
MEMORY = {"weights_bytes": 4e9, "gradients_bytes": 8e9, "optimizer_bytes": 6e9}
MEMORY |= {"activations_bytes": 2e10, "logits_bytes": 1e9, "buffers_bytes": 5e8}
MEMORY |= {"context_bytes": 1e9, "fragmentation_bytes": 2e9}

ENTRY = PlanEntry(
    rank=1,
    layout=Layout.parse("tp8 pp8 vpp3 cp2 cpcomm=a2a mbs1 sp zero1 shard=8 recompute=core_attn"),
    data_parallel_size=8,
    num_micro_batches=192,
    iteration_s=math.fsum(PARTS.values()),
    iteration_s_interval=(9.0, 11.5),
    tokens_per_s_per_gpu=300.25,
    model_flops_utilization=0.43,
    memory_bytes=math.fsum(MEMORY.values()),
    memory_bytes_interval=(4e10, 4.6e10),
    fits_probability=0.99,
    best_probability=0.4,
    days=30.5,
    cost_usd=1e6,
    parts=PARTS,
    memory_parts=MEMORY,
    origin=Origin(measured=0.5, published=0.3, assumed=0.2),
    measured=Measured(
        iteration_s=10.1,
        iteration_s_mad=0.02,
        peak_memory_bytes=4.1e10,
        mode="proxy",
        device="cuda",
        impl="te",
        steps=10,
        outcome="ok",
        trial="t-0001",
        versions={"torch": "2.6"},
    ),
    corrected=Corrected(
        iteration_s=10.0,
        iteration_s_interval=(9.9, 10.2),
        memory_bytes=4.0e10,
        fits_probability=1.0,
        best_probability=0.8,
    ),
)
PLAN = Plan(
    request={"model": "gpt-175b", "gpus": 1024, "space": {"tensor_model_parallel_size": [1, 8]}},
    provenance=Provenance(versions={"autoparallel": "0.1.0"}, git="abc", catalog_digest="12"),
    considered=1000,
    legal=600,
    evaluated=600,
    feasible=200,
    pruned={"heads % tp": 400, "memory": 400},
    search_s=0.8,
    entries=(ENTRY, replace(ENTRY, rank=2, layout=Layout(), measured=None)),
)


def saved(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    data = PLAN.to_json()
    change(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    return tmp_path / "plan.json"


# --- what goes in comes out


def test_file_is_the_printed_text_and_reads_back(tmp_path: Path) -> None:
    path = PLAN.write(tmp_path)
    assert path.read_text() == PLAN.text()
    assert load_plan(path) == PLAN == load_plan(tmp_path)
    assert json.loads(PLAN.text()) == PLAN.to_json()


def test_byte_order_mark_and_crlf_are_read(tmp_path: Path) -> None:
    text = PLAN.text().replace("\n", "\r\n").encode()
    (tmp_path / "plan.json").write_bytes(b"\xef\xbb\xbf" + text)
    assert load_plan(tmp_path) == PLAN


NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=1e300)
COUNTS = st.integers(0, 2**62)
NAMES = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | COUNTS | NUMBERS | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
FRACTIONS = st.floats(0, 1)
INTERVALS = st.tuples(NUMBERS, NUMBERS).map(lambda pair: (min(pair), max(pair)))
MEASUREMENTS = st.builds(
    Measured,
    iteration_s=st.none() | NUMBERS,
    iteration_s_mad=st.none() | NUMBERS,
    peak_memory_bytes=st.none() | NUMBERS,
    steps=COUNTS,
    versions=st.dictionaries(NAMES, NAMES, max_size=2),
)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    vpp = draw(st.sampled_from([1, 1, 2, 3]))
    full = draw(st.booleans())
    modules = draw(st.sets(st.sampled_from(RECOMPUTE_MODULES)))
    return Layout(
        tensor_model_parallel_size=draw(st.sampled_from([1, 2, 8])),
        pipeline_model_parallel_size=draw(st.sampled_from([1, 2, 8])),
        virtual_pipeline_model_parallel_size=vpp,
        schedule="interleaved" if vpp > 1 else "1f1b",
        context_parallel_size=draw(st.sampled_from([1, 2])),
        cp_comm_type=draw(st.sampled_from(CP_COMM_TYPES)),
        sequence_parallel=draw(st.booleans()),
        zero_stage=draw(st.sampled_from([0, 1, 2, 3])),
        shard_group_size=draw(st.sampled_from([0, 4])),
        recompute_granularity="full" if full else "selective" if modules else "none",
        recompute_method="block" if full else "uniform",
        recompute_num_layers=4 if full else 0,
        recompute_modules=()
        if full
        else tuple(name for name in RECOMPUTE_MODULES if name in modules),
        stage_layers=draw(st.sampled_from([(), (7, 8, 8, 7)])),
        precision=draw(st.sampled_from(PRECISIONS)),
        grad_reduce_dtype=draw(st.sampled_from(["fp32", "bf16"])),
        optimizer_offload_fraction=draw(st.sampled_from([0.0, 0.5, 1.0])),
        cuda_graph_scope=draw(st.sampled_from(GRAPH_SCOPES)),
        overlap=tuple(name for name in OVERLAPS if draw(st.booleans())),
        framework=draw(st.sampled_from(["megatron-core", "fsdp2"])),
    )


@st.composite
def entries(draw: st.DrawFn) -> PlanEntry:
    parts = draw(st.none() | st.dictionaries(NAMES.map(lambda n: n + "_s"), NUMBERS, max_size=4))
    memory = draw(
        st.none() | st.dictionaries(NAMES.map(lambda n: n + "_bytes"), NUMBERS, max_size=4)
    )
    return PlanEntry(
        rank=draw(st.none() | COUNTS),
        layout=draw(layouts()),
        data_parallel_size=draw(st.none() | st.integers(1, 1024)),
        num_micro_batches=draw(st.none() | COUNTS),
        iteration_s=draw(st.none() | NUMBERS) if parts is None else math.fsum(parts.values()),
        iteration_s_interval=draw(st.none() | INTERVALS),
        tokens_per_s_per_gpu=draw(st.none() | NUMBERS),
        model_flops_utilization=draw(st.none() | NUMBERS),
        memory_bytes=draw(st.none() | NUMBERS) if memory is None else math.fsum(memory.values()),
        memory_bytes_interval=draw(st.none() | INTERVALS),
        fits_probability=draw(st.none() | FRACTIONS),
        best_probability=draw(st.none() | FRACTIONS),
        energy_kwh=draw(st.none() | NUMBERS),
        parts=parts,
        memory_parts=memory,
        origin=draw(
            st.none()
            | st.builds(
                Origin, **dict.fromkeys(("measured", "published"), FRACTIONS), assumed=FRACTIONS
            )
        ),
        measured=draw(st.none() | MEASUREMENTS),
    )


PLANS = st.builds(
    Plan,
    schema_version=st.just(1),
    kind=st.just("training"),
    request=st.dictionaries(NAMES, JSON, max_size=4),
    provenance=st.builds(
        Provenance, versions=st.dictionaries(NAMES, NAMES, max_size=2), git=st.none() | NAMES
    ),
    **dict.fromkeys(("considered", "legal", "evaluated", "feasible"), COUNTS),
    pruned=st.dictionaries(NAMES, COUNTS, max_size=3),
    search_s=NUMBERS,
    entries=st.lists(entries(), max_size=3).map(tuple),
)


@settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
@given(plan=PLANS)
def test_round_trip(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("plan")
    path = plan.write(folder)
    assert load_plan(path) == plan
    assert load_plan(path).text() == plan.text()


# --- junk


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_junk_is_a_config_error(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"plan\.json"):
        load_plan(path)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(leaf for key, item in items for leaf in leaves(item, (*path, key)))]


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_anywhere_is_read_or_a_config_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plan = PLAN.to_json()
    *path, last = data.draw(st.sampled_from(leaves(plan)[1:]))
    block = plan
    for key in path:
        block = block[key]
    block[last] = data.draw(JSON)
    target = tmp_path_factory.mktemp("plan") / "plan.json"
    target.write_text(json.dumps(plan))
    try:
        again = load_plan(target).to_json()
    except ConfigError:
        return
    assert again == plan


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(1, len(PLAN.text()) - 2))
def test_a_truncated_file_is_a_config_error(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(PLAN.text()[:cut])
    with pytest.raises(ConfigError, match="not whole JSON"):
        load_plan(path)


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("serch_s", value=1), "serch_s: unknown field; did you mean 'search_s'"),
        (lambda d: d.pop("pruned"), "pruned: the field is missing"),
        (lambda d: d["plan"][1].pop("co2_kg"), r"plan\[1\].co2_kg: the field is missing"),
        (put("plan", 0, "extra", value=1), r"plan\[0\].extra: unknown field"),
        (put("schema_version", value=2), "schema_version: 2 is not 1; upgrade"),
        (put("schema_version", value="1"), "schema_version"),
        (put("kind", value="serving"), "kind: 'serving' is not training; give a run of"),
        (put("considered", value=-1), "considered: -1"),
        (put("considered", value=True), "considered: True"),
        (put("pruned", "memory", value=0.5), "pruned.memory"),
        (put("plan", 0, "layout", value="tp8 qq4"), r"plan\[0\].layout: .*qq4"),
        (put("plan", 0, "tensor_model_parallel_size", value=4), "tensor_model_parallel_size: 4"),
        (put("plan", 1, "sequence_parallel", value=0), r"plan\[1\].sequence_parallel: 0"),
        (put("plan", 0, "framework", value="fsdp2"), "framework: 'fsdp2'"),
        (put("plan", 0, "iteration_s", value="fast"), r"plan\[0\].iteration_s: 'fast'"),
        (put("plan", 0, "iteration_s", value=11.0), r"plan\[0\].parts: parts add up to"),
        (put("plan", 0, "memory_parts", "weights_bytes", value=1), "memory_parts: parts add up"),
        (put("plan", 0, "iteration_s_interval", value=[2, 1]), "interval.* p5 is above p95"),
        (put("plan", 0, "fits_probability", value=1.5), "fits_probability: 1.5"),
        (put("plan", 0, "parts", "compute", value=0), "parts.compute: the name does not end in _s"),
        (put("plan", 0, "measured", "steps", value=None), "measured.steps"),
        (put("plan", 0, "origin", value=[]), "origin: .* is not an object"),
        (put("provenance", "git", value=7), "provenance.git: 7 is not text"),
    ],
)
def test_a_wrong_field_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        load_plan(saved(tmp_path, change))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"search_s": 0.8', '"search_s": NaN', "NaN: is not a finite number"),
        ('"search_s": 0.8', '"search_s": -Infinity', "-Infinity: is not a finite number"),
        ('"search_s": 0.8', '"search_s": 1e999', "1e999: is not a finite number"),
        ('"search_s": 0.8', '"search_s": 1' + "0" * 5000, "is not an integer"),
        ('"search_s": 0.8', '"search_s": 0.8, "search_s": 0.8', "search_s: the key stands twice"),
        ('"gpus": 1024', '"gpus": ' + "[" * 100_000, "nested too deeply|not whole JSON"),
    ],
)
def test_json_liberties_are_refused(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert PLAN.text().count(old) == 1
    (tmp_path / "plan.json").write_text(PLAN.text().replace(old, new))
    with pytest.raises(ConfigError, match=named):
        load_plan(tmp_path)


def test_a_giant_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "plan.json").open("wb") as stream:
        stream.truncate(64 * 1024 * 1024 + 1)
    with pytest.raises(ConfigError, match="larger than"):
        load_plan(tmp_path)


@pytest.mark.parametrize("name", ["missing.json", "a\0b"])
def test_no_file_is_a_config_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        load_plan(f"{tmp_path}/{name}")


# --- what may be written


def test_parts_add_up_or_the_entry_is_refused() -> None:
    assert math.isclose(sum(PARTS.values()), ENTRY.iteration_s or 0)
    with pytest.raises(AutoparallelError, match="parts add up to"):
        replace(ENTRY, parts=PARTS | {"bubble_s": 2.0})


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), 2**70])
def test_only_finite_plain_data_is_written(value: Any) -> None:
    with pytest.raises(AutoparallelError, match=r"request\.a\[0\]"):
        replace(PLAN, request={"a": [value]}).text()


def test_numpy_scalars_become_plain_numbers() -> None:
    numbers = {"a": np.float64(1.5), "b": np.int64(3), "c": np.bool_(True), "d": (1, 2)}
    assert replace(PLAN, request=numbers).to_json()["request"] == {
        "a": 1.5,
        "b": 3,
        "c": True,
        "d": [1, 2],
    }


def test_frame_has_a_row_an_entry_and_a_column_a_part() -> None:
    frame = PLAN.to_frame()
    assert list(frame["rank"]) == [1, 2]
    assert frame["compute_s"][0] == 6.0
    assert frame["iteration_s_p95"][0] == 11.5
    assert frame["origin_assumed"][1] == 0.2
    assert frame["measured_outcome"][0] == "ok"


# --- Megatron's names


def test_every_layout_field_shows_in_the_megatron_fields() -> None:
    plain = Layout(overlap=())
    changed = {
        "tensor_model_parallel_size": 8,
        "pipeline_model_parallel_size": 4,
        "virtual_pipeline_model_parallel_size": 2,
        "context_parallel_size": 2,
        "expert_model_parallel_size": 8,
        "expert_tensor_parallel_size": 2,
        "micro_batch_size": 2,
        "zero_stage": 0,
        "shard_group_size": 4,
        "precision": "mxfp8",
        "grad_reduce_dtype": "bf16",
        "optimizer_offload_fraction": 0.5,
        "cuda_graph_scope": "attn",
        "overlap": ("grad",),
    }
    for name, value in changed.items():
        assert megatron_fields(replace(plain, **{name: value}), 8) != megatron_fields(plain, 8), (
            name
        )


def test_fields_that_do_not_apply_are_null() -> None:
    fields = megatron_fields(Layout(), 4)
    for name in ("virtual_pipeline_model_parallel_size", "cp_comm_type", "fp8", "recompute_method"):
        assert fields[name] is None
    assert fields["overlap_p2p_comm"] is False


# --- schemas


TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}
KNOWN_WORDS = {"$schema", "$id", "$defs", "$ref", "title", "description", "type", "const", "enum"}
KNOWN_WORDS |= {"properties", "required", "additionalProperties", "patternProperties", "items"}
KNOWN_WORDS |= {"minItems", "maxItems", "minimum", "maximum", "allOf", "unevaluatedProperties"}


@functools.cache
def schema_text(file: str) -> str:
    return (SCHEMAS / file).read_text().replace('"$ref": "#', f'"$ref": "{file}#')


def schema(name: str) -> dict[str, Any]:
    """A schema with every `$ref` naming its file."""
    return json.loads(schema_text(f"{name}.schema.json"))


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """Follow `$ref`, inside the file or to a neighbour."""
    while "$ref" in part:
        assert len(part) == 1, part
        file, _, place = part["$ref"].partition("#")
        part = json.loads(schema_text(file))
        for key in filter(None, place.split("/")):
            part = part[key]
    return part


def check(value: Any, part: dict[str, Any], path: str = "") -> list[str]:
    """What a draft 2020-12 validator says about `value`, for the words our schemas use."""
    assert part.keys() <= KNOWN_WORDS, (path, part.keys() - KNOWN_WORDS)
    part = resolved(part)
    kinds = part.get("type", list(TYPES))
    if not any(TYPES[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return [f"{path}: not {kinds}"]
    wrong = [f"{path}: not {part['const']}"] if "const" in part and value != part["const"] else []
    if "enum" in part and value not in part["enum"]:
        wrong.append(f"{path}: not one of {part['enum']}")
    if TYPES["number"](value):
        low, high = part.get("minimum", -math.inf), part.get("maximum", math.inf)
        wrong += [] if low <= value <= high else [f"{path}: out of range"]
    if isinstance(value, list):
        low, high = part.get("minItems", 0), part.get("maxItems", math.inf)
        wrong += [] if low <= len(value) <= high else [f"{path}: wrong length"]
        for i, item in enumerate(value):
            wrong += check(item, part.get("items", {}), f"{path}[{i}]")
    return wrong + (check_object(value, part, path) if isinstance(value, dict) else [])


def properties(part: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    known, required = dict(part.get("properties", {})), set(part.get("required", ()))
    for branch in part.get("allOf", ()):
        inner = properties(resolved(branch))
        known, required = inner[0] | known, inner[1] | required
    return known, required


def check_object(value: dict[str, Any], part: dict[str, Any], path: str) -> list[str]:
    known, required = properties(part)
    wrong = [f"{path}.{name}: missing" for name in sorted(required - value.keys())]
    patterns = part.get("patternProperties", {})
    other = part.get("additionalProperties", part.get("unevaluatedProperties", True))
    for name, item in value.items():
        matching = [sub for pattern, sub in patterns.items() if name.endswith(pattern.strip("$"))]
        sub = known.get(name, matching[0] if matching else other)
        if sub is False:
            wrong.append(f"{path}.{name}: unknown")
        elif isinstance(sub, dict):
            wrong += check(item, sub, f"{path}.{name}")
    return wrong


def estimate() -> Estimate:
    return Estimate(
        entry=ENTRY,
        legal=False,
        illegal_reasons=(IllegalReason(rule="heads", fields=("tp",), message="12 % tp 8"),),
        place=Place(rank=3, of=600),
    )


def test_plan_and_estimate_follow_their_schemas() -> None:
    assert check(PLAN.to_json(), schema("search")) == []
    assert check(estimate().to_json(), schema("estimate")) == []
    unknown = replace(ENTRY, iteration_s=None, parts=None, memory_bytes=None, memory_parts=None)
    assert check(replace(PLAN, entries=(unknown,)).to_json(), schema("search")) == []


def test_a_plan_without_corrected_blocks_reads_as_null(tmp_path: Path) -> None:
    data = PLAN.to_json()
    for entry in data["plan"]:
        del entry["corrected"]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert load_plan(tmp_path).entries[0].corrected is None


def test_schemas_require_exactly_what_is_written() -> None:
    search = schema("search")
    assert search["required"] == list(search["properties"]) == list(PLAN.to_json())
    for name, written in {
        "entry": ENTRY.to_json(),
        "provenance": PLAN.to_json()["provenance"],
        "origin": ENTRY.to_json()["origin"],
        "measured": ENTRY.to_json()["measured"],
        "corrected": ENTRY.to_json()["corrected"],
    }.items():
        part = search["$defs"][name]
        assert part["required"] == list(part["properties"]) == list(written), name
    known, required = properties(schema("estimate"))
    assert list(known) == list(estimate().to_json())
    assert required == set(known)


ERROR = dict.fromkeys(
    ("mape", "median_ape", "p90_ape", "bias", "coverage_90", "median_relative_width"), 0.1
) | {"n": 3}
MEMORY_ERROR = ERROR | {
    "by_kind": dict.fromkeys(("allocated", "allocated_vocab_stated", "reserved", "device"), ERROR)
}
OOM = {"n_oom": 2, "n_ran": 3, "false_fit_rate": 0.5, "false_oom_rate": 0.0, "brier": 0.1}
RANKING = {"groups": 2, "distinct_layouts": 9, "top1": 0.5, "top1_within_3pct": 0.5, "top3": 1.0}
RANKING |= {"mean_regret": 0.01, "max_regret": 0.02, "spearman": 0.9}
MACRO = {"groups": 2, "median_of_medians": 0.1, "mean_of_medians": 0.1, "within_15pct": 1.0}
SERVING_ERRORS = {"ttft": ERROR, "tpot": ERROR, "throughput": ERROR}
SERVING_ORDER = {
    "groups": 2,
    "top1": 0.5,
    "top1_within_3pct": 1.0,
    "mean_regret": 0.01,
    "max_regret": 0.02,
}
SERVING_SCORES = {
    **SERVING_ERRORS,
    "ranking": SERVING_ORDER | {"by_metric": {"tpot": SERVING_ORDER}},
    "load": {"ttft": "closed loop"},
    **{f"by_{x}": {"name": SERVING_ERRORS} for x in ("model", "gpu", "backend", "precision")},
}
SCORES = {
    "files": ["runs.csv"],
    "rows": 10,
    "scored": 8,
    "approximated": 1,
    "skipped": {"unknown gpu": 2},
    "time": ERROR,
    "memory": MEMORY_ERROR,
    "oom": OOM,
    "ranking": RANKING,
    "macro": MACRO,
    "by_group": {"a": {"time": ERROR, "memory": MEMORY_ERROR, "oom": OOM, "ranking": RANKING}},
    "without_suspect": {"time": ERROR, "ranking": RANKING, "macro": MACRO},
    "inference": SERVING_SCORES,
}
WORKER = {"role": "aggregated", "replicas": 4, "gpus": 8, "max_batch_size": 64}
WORKER |= {"tensor_model_parallel_size": 8, "expert_model_parallel_size": None}
SERVING_ENTRY = {
    "rank": 1,
    "backend": "vllm",
    "mode": "aggregated",
    "workers": [WORKER],
    "precision": "fp8",
    "kv_dtype": "fp8",
    "concurrency": 64,
    "load": 0.8,
    **{f"{n}_ms{p}": 9.5 for n in ("ttft", "tpot") for p in ("", "_p50", "_p90", "_p99")},
    "tokens_per_s_per_gpu": 900.0,
    "tokens_per_s_per_user": 50.0,
    "memory_bytes": 7e10,
    "fits_probability": 0.97,
    "usd_per_million_tokens": 0.4,
    "binding_constraint": "tpot_ms",
    "parts": {"decode_s": 0.02},
}
SERVING = PLAN.to_json() | {"kind": "serving", "plan": [SERVING_ENTRY]}


@pytest.mark.parametrize(("name", "sample"), [("validate", SCORES), ("infer", SERVING)])
def test_the_other_schemas_hold_the_contract(name: str, sample: dict[str, Any]) -> None:
    assert check(sample, schema(name)) == []
    assert set(sample) == set(schema(name)["required"])
    for key in sample:
        assert check({k: v for k, v in sample.items() if k != key}, schema(name)), key
    assert check(sample | {"more": 1}, schema(name))


def test_every_key_of_the_schemas_is_in_the_contracts() -> None:
    text = (SCHEMAS.parent / "contracts.md").read_text()
    words = set(re.findall(r"[A-Za-z0-9_]+", text))
    for name in ("search", "estimate", "validate", "infer"):
        keys = set(re.findall(r'"([a-z0-9_]+)": \{', schema_text(f"{name}.schema.json")))
        keys -= {"properties", "items", *schema(name).get("$defs", {})}
        assert keys - words == set(), name


@pytest.mark.parametrize("value", [None, -1, "x", [], {}])
@pytest.mark.parametrize("name", ["schema_version", "kind", "pruned", "plan", "provenance"])
def test_the_schema_refuses_what_the_reader_refuses(tmp_path: Path, name: str, value: Any) -> None:
    data = PLAN.to_json() | {name: value}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    try:
        load_plan(tmp_path)
        read = True
    except ConfigError:
        read = False
    assert read == (check(data, schema("search")) == [])


def test_a_plan_shows_itself_a_line_a_layout() -> None:
    figures = ("iteration_s", "memory_bytes", "fits_probability", "parts", "memory_parts")
    unknown = replace(ENTRY, rank=None, layout=Layout(), **dict.fromkeys(figures))
    shown = repr(replace(PLAN, entries=(ENTRY, unknown))).splitlines()
    assert shown[0] == f"<Plan: {PLAN.feasible:,} of {PLAN.considered:,} layouts fit"
    assert shown[1].startswith(f"  1  {ENTRY.layout}: {ENTRY.iteration_s:.4g} s, ")
    assert shown[2] == f"  -  {Layout()}: not legal>"
