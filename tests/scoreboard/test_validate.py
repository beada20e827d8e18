"""`validate` from file to JSON: the contract, its laws, and rows that cannot be predicted."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoparallel.cli import main
from autoparallel.errors import ProfileError
from autoparallel.measured.rows import MeasuredRun
from autoparallel.scoreboard import Score, scored, text, validate
from autoparallel.scoreboard.predictions import Predictions, predict
from autoparallel.scoreboard.score import understood
from autoparallel.units import GIB
from runs import write_runs

ROOT = Path(__file__).parents[2]
RUN = MeasuredRun(
    framework="Megatron-LM",
    split_group="small",
    search_group="job",
    num_layers=24,
    hidden_size=2048,
    num_attention_heads=16,
    vocab_size=50304,
    seq_length=2048,
    gpu="a100-sxm-80gb",
    num_gpus=16,
    tensor_model_parallel_size=1,
    pipeline_model_parallel_size=1,
    micro_batch_size=1,
    global_batch_size=64,
    iteration_s=1.5,
    peak_memory_gib=20.0,
    memory_kind="allocated",
    memory_rank="0",
)
RUNS = [
    replace(RUN, tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, memory_kind=kind)
    for tp, pp, kind in (
        (1, 1, "allocated"), (2, 1, "reserved"), (4, 2, "device"), (8, 2, "reserved"), (1, 4, "")
    )
]  # fmt: skip


def score_of(runs) -> Score:
    readings, skipped = understood(runs)
    return scored(["runs.csv"], readings, predict(readings), skipped)


def told(runs):
    """The runs with just the times and peaks that are predicted for them."""
    readings, _ = understood(runs)
    p = predict(readings)
    return [
        replace(r, iteration_s=float(s), peak_memory_gib=float(b) / GIB)
        for r, s, b in zip(runs, p.seconds, p.memory_bytes, strict=True)
    ]


def test_predictions_come_true_score_nothing():
    score = score_of(told(RUNS)).to_json()
    for block in (score["time"], score["memory"], score["by_group"]["small"]["time"]):
        assert block["n"] == 5
        assert block["mape"] == pytest.approx(0, abs=1e-12)
        assert block["coverage_90"] == 1
    order = score["ranking"]
    assert (order["groups"], order["distinct_layouts"], order["top1"]) == (1, 5, 1)
    assert order["mean_regret"] == 0
    assert score["macro"]["median_of_medians"] == pytest.approx(0, abs=1e-12)


def test_kinds_of_memory_are_scored_apart():
    kinds = score_of(RUNS).memory["by_kind"]
    assert {k: v["n"] for k, v in kinds.items()} == {
        "allocated": 1, "allocated_vocab_stated": 1, "reserved": 3, "device": 1
    }  # fmt: skip
    p = predict(
        understood([replace(RUN, memory_kind=k) for k in ("allocated", "reserved", "device")])[0]
    )
    assert p.memory_bytes[0] < p.memory_bytes[1] < p.memory_bytes[2]
    assert np.all(p.memory_low < p.memory_bytes)
    assert np.all(p.memory_bytes < p.memory_high)


def test_rank_0_is_not_always_the_fullest():
    last_is_full = replace(
        RUN, pipeline_model_parallel_size=2, vocab_size=400_000, global_batch_size=16
    )
    one, worst = (replace(last_is_full, memory_rank=rank) for rank in ("0", "max"))
    p = predict(understood([one, worst])[0])
    assert p.memory_bytes[0] <= p.memory_bytes[1]


def test_a_vocabulary_that_is_not_stated_is_scored_apart():
    kinds = score_of([replace(RUN, vocab_size=None)]).memory["by_kind"]
    assert (kinds["allocated"]["n"], kinds["allocated_vocab_stated"]["n"]) == (1, 0)


def test_runs_that_failed_are_only_scored_on_fitting():
    huge = replace(
        RUN, num_layers=400, hidden_size=16384, num_attention_heads=128, iteration_s=None,
        peak_memory_gib=None, out_of_memory=1,
    )  # fmt: skip
    score = score_of([*RUNS, huge, replace(RUN, out_of_memory=1, iteration_s=None)])
    assert (score.time["n"], score.memory["n"], score.ranking["distinct_layouts"]) == (5, 5, 5)
    assert (score.oom["n_oom"], score.oom["n_ran"]) == (2, 5)
    assert score.oom["false_fit_rate"] == 0.5  # the small one is called fitting
    assert score.oom["false_oom_rate"] == 0


def test_suspect_rows_count_in_the_headline_and_not_beside_it():
    odd = [replace(RUNS[0], iteration_s=900.0, suspect="slow node")]
    score = score_of([*told(RUNS), *odd])
    assert (score.time["n"], score.without_suspect["time"]["n"]) == (6, 5)
    assert score.time["mape"] > 0.1 > score.without_suspect["time"]["mape"]


def test_the_kernels_tell_layouts_apart():
    same = [replace(RUN, kernels=k) for k in ("a", "b", "c", "d")]
    assert score_of(same).ranking["distinct_layouts"] == 4
    assert score_of([RUN] * 4).ranking["groups"] == 0


def test_rows_without_groups_are_scored_under_their_source():
    score = score_of([replace(RUN, split_group="", search_group="", source="a paper"), RUN])
    assert set(score.by_group) == {"a paper", "small"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"gpu": "a100-sxm-80g"}, "a100-sxm-80g"),
        ({"precision": "int3"}, "int3"),
        ({"schedule": "backwards"}, "backwards"),
        ({"tensor_model_parallel_size": 3}, "16 is not tp x pp x cp = 3 times dp (any)"),
        ({"data_parallel_size": 5}, "16 is not tp x pp x cp = 1 times dp 5"),
    ],
)
def test_rows_that_cannot_be_predicted_are_counted(change, word):
    score = score_of([*RUNS, replace(RUN, **change), replace(RUN, **change)])
    assert (score.rows, score.scored) == (7, 5)
    ((reason, count),) = score.skipped.items()
    assert word in reason
    assert count == 2


def test_unknown_frameworks_are_approximated():
    assert score_of([RUN, replace(RUN, framework="Mesh-Future")]).approximated == 1


NUMBERS = [f.name for f in fields(MeasuredRun) if "int" in str(f.type) or "float" in str(f.type)]


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(NUMBERS),
            st.one_of(st.integers(1, 300), st.integers(1, 10**12)),
            max_size=6,
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_rows_give_finite_scores(changes):
    runs = [replace(RUN, **{k: v for k, v in c.items() if k != "iteration_s"}) for c in changes]
    answer = score_of(runs).to_json()
    assert finite(answer)
    assert answer["rows"] == len(runs) == answer["scored"] + sum(answer["skipped"].values())


def finite(value):
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    if isinstance(value, list):
        return all(finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


def test_no_rows_at_all(tmp_path):
    empty = write_runs(tmp_path / "empty.csv", [])
    answer = validate([empty]).to_json()
    assert (answer["rows"], answer["time"]["n"], answer["oom"]["brier"]) == (0, 0, None)


def test_a_row_without_a_usable_prediction_drops_out_alone():
    readings, _ = understood(RUNS)
    p = predict(readings)
    seconds = p.seconds.copy()
    seconds[2] = np.nan
    score = scored(["x"], readings, replace(p, seconds=seconds))
    assert (score.rows, score.scored, sum(score.skipped.values())) == (5, 4, 1)
    assert isinstance(p, Predictions)


# --- files and the command line ------------------------------------------------------------------


def keys_like(value, schema, root):
    """Every object has exactly the keys its schema requires."""
    if "$ref" in schema:
        return keys_like(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if not isinstance(value, dict) or "properties" not in schema:
        inner = schema.get("additionalProperties")
        if isinstance(value, dict) and isinstance(inner, dict):
            return all(keys_like(v, inner, root) for v in value.values())
        return True
    known = schema["properties"]
    return set(value) == set(schema["required"]) and all(
        keys_like(v, known[k], root) for k, v in value.items()
    )


def test_the_answer_has_the_keys_of_the_contract(tmp_path):
    schema = json.loads((ROOT / "docs" / "schemas" / "validate.schema.json").read_text())
    for runs in (RUNS, [replace(RUN, iteration_s=None, peak_memory_gib=None, out_of_memory=1)], []):
        answer = validate([write_runs(tmp_path / "runs.csv", runs)]).to_json()
        assert keys_like(answer, schema, schema)
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_several_files_are_one_score(tmp_path):
    one, two = write_runs(tmp_path / "a.csv", RUNS[:2]), write_runs(tmp_path / "b.csv", RUNS[2:])
    together = validate([one, two]).to_json()
    whole = validate([write_runs(tmp_path / "c.csv", RUNS)]).to_json()
    assert together.pop("files") == [str(one), str(two)]
    assert whole.pop("files")
    assert together == whole


def test_own_profiles_go_in_front(tmp_path):
    from autoparallel.calibration.profile_file import Profile, write_profile
    from autoparallel.catalog import data_dir
    from autoparallel.profiles import calibration

    own = calibration("megatron", "ampere", data_dir() / "profiles")
    found = replace(own, constants=replace(own.constants, gemm_efficiency=0.4))
    write_profile(tmp_path / "own", Profile(calibration=found))
    file = write_runs(tmp_path / "runs.csv", RUNS)
    slow, usual = validate([file], profiles_dir=tmp_path / "own"), validate([file])
    assert slow.table.predictions.seconds.sum() > usual.table.predictions.seconds.sum()


@pytest.fixture
def run(capsys):
    def call(*argv):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def test_the_command_prints_the_same_json(run, tmp_path):
    file = write_runs(tmp_path / "runs.csv", RUNS)
    code, out, err = run("validate", file, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == validate([file]).to_json()


def test_the_screen_shows_headline_groups_and_cells(run, tmp_path):
    file = write_runs(tmp_path / "runs.csv", [*RUNS, replace(RUN, gpu="abacus")])
    code, out, err = run("validate", file)
    assert (code, err) == (0, "")
    assert "5 of 6 rows" in out
    assert "abacus" in out
    assert "small, 16 GPUs" in out
    assert "nan" not in out


def test_groups_are_sorted_by_error(tmp_path):
    runs = [
        *told(RUNS),
        *(replace(r, iteration_s=9 * r.iteration_s, split_group="bad") for r in told(RUNS)),
    ]
    table = text.groups(score_of(runs))
    assert [row[0] for row in table.rows] == ["bad", "small"]
    assert table.markdown().count("\n|") == 4


@pytest.mark.parametrize(
    "content", ["num_layers\n1\n", "nonsense,\n", "", '"', "gpu,gpu\n", "\x00\x01"]
)
@pytest.mark.parametrize("verb", ["validate", "calibrate"])
def test_a_bad_file_is_exit_2(run, tmp_path, monkeypatch, verb, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text(content)
    code, out, err = run(verb, "bad.csv")
    assert (code, out) == (2, "")
    assert "bad.csv line 1" in err
    assert "Traceback" not in err


@given(st.binary(max_size=80))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_junk_files_are_profile_errors(tmp_path, content):
    path = tmp_path / "junk.csv"
    path.write_bytes(content)
    with pytest.raises(ProfileError):
        validate([path])


def test_the_measured_files_are_scored_almost_whole():
    score = validate([ROOT / "benchmarks" / "measured" / "training.csv"])
    assert score.scored > 0.95 * score.rows
    assert score.rows == 2685
    assert finite(score.to_json())
