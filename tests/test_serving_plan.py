from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autoparallel.envelope import plan_kind
from autoparallel.errors import ConfigError
from autoparallel.plan import load_plan
from autoparallel.provenance import Provenance
from autoparallel.serving_plan import (
    ServingEntry,
    ServingPlan,
    Worker,
    load_serving_plan,
)

SCHEMA = Path(__file__).parents[1] / "docs" / "schemas" / "infer.schema.json"
WORKER = Worker(
    role="aggregated",
    replicas=2,
    gpus=4,
    tensor_model_parallel_size=4,
    pipeline_model_parallel_size=1,
    expert_model_parallel_size=1,
    attention_data_parallel_size=1,
    max_batch_size=64,
    max_num_tokens=8192,
)
LATENCIES = {
    f"{name}{p}": 10.0 for name in ("ttft_ms", "tpot_ms") for p in ("", "_p50", "_p90", "_p99")
}
ENTRY = ServingEntry(
    rank=1,
    backend="vllm",
    mode="aggregated",
    workers=(WORKER,),
    precision="bf16",
    kv_dtype="bf16",
    concurrency=64.0,
    load=1.5,
    **LATENCIES,
    tokens_per_s_per_gpu=100.0,
    tokens_per_s_per_user=30.0,
    memory_bytes=7e10,
    fits_probability=0.9,
    usd_per_million_tokens=None,
    binding_constraint="tpot_ms",
    parts={"decode_gemm_s": 0.01},
)
PLAN = ServingPlan(
    request={"model": "x"},
    provenance=Provenance(versions={"autoparallel": "0.1.0"}),
    considered=10,
    legal=8,
    evaluated=8,
    feasible=1,
    pruned={"gpus": 2},
    search_s=0.1,
    entries=(ENTRY,),
)


def test_a_plan_reads_back_the_same_and_the_text_is_the_file(tmp_path):
    PLAN.write(tmp_path)
    assert (tmp_path / "plan.json").read_text() == PLAN.text()
    assert load_serving_plan(tmp_path) == PLAN
    assert plan_kind(tmp_path) == "serving"
    with pytest.raises(ConfigError, match="training"):
        load_plan(tmp_path)


def test_keys_are_those_of_the_schema():
    schema = json.loads(SCHEMA.read_text())
    data = PLAN.to_json()
    assert set(data) == set(schema["required"])
    entry, worker = (schema["$defs"][name] for name in ("entry", "worker"))
    assert list(data["plan"][0]) == list(entry["properties"]) == entry["required"]
    assert set(worker["required"]) <= set(data["plan"][0]["workers"][0])


def test_gpus_and_tokens_are_of_all_workers():
    assert ENTRY.gpus == 8
    assert ENTRY.tokens_per_s == 800.0


BROKEN = [
    ("plan", lambda p: p.update(plan=None)),
    ("kind", lambda p: p.update(kind="training")),
    ("schema_version", lambda p: p.update(schema_version=99)),
    ("x", lambda p: p.update(x=1)),
    ("considered", lambda p: p.pop("considered")),
    ("mode", lambda p: p["plan"][0].update(mode="both")),
    ("role", lambda p: p["plan"][0]["workers"][0].update(role="leader")),
    ("replicas", lambda p: p["plan"][0]["workers"][0].update(replicas=1.5)),
    ("fits_probability", lambda p: p["plan"][0].update(fits_probability=2)),
    ("parts", lambda p: p["plan"][0].update(parts={"gemm": 1.0})),
]


@pytest.mark.parametrize(("word", "change"), BROKEN)
def test_a_plan_that_is_not_whole_is_refused(tmp_path, word, change):
    data = PLAN.to_json()
    change(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=word):
        load_serving_plan(tmp_path)


def test_a_frame_has_a_row_a_deployment_and_workers_as_columns():
    split = replace(
        ENTRY,
        mode="disaggregated",
        workers=(replace(WORKER, role="prefill"), replace(WORKER, role="decode", replicas=1)),
    )
    frame = replace(PLAN, entries=(split,)).to_frame()
    assert frame.loc[0, "prefill_replicas"] == 2
    assert frame.loc[0, "decode_replicas"] == 1
    assert frame.loc[0, "decode_gemm_s"] == 0.01
