"""`autoparallel calibrate`: from a file of runs to profiles that predict them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from autoparallel.cli import main
from autoparallel.constants import Constants
from autoparallel.cost.step import step_time
from autoparallel.measured.cases import case, read
from autoparallel.measured.rows import MeasuredRun
from autoparallel.profiles import read_calibration
from autoparallel.scoreboard import validate
from autoparallel.scoreboard.calibrated import worse_groups
from runs import write_runs

RUN = MeasuredRun(
    framework="torchtitan",
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    seq_length=4096,
    gpu="h100-sxm-80gb",
    num_gpus=64,
    tensor_model_parallel_size=1,
    pipeline_model_parallel_size=1,
    micro_batch_size=1,
    global_batch_size=256,
    zero_stage=3,
    iteration_s=1.0,
)


@pytest.fixture
def file(tmp_path):
    """Runs of a machine whose GEMMs are slow."""
    runs = [
        replace(RUN, num_layers=L, seq_length=s, micro_batch_size=b, split_group=f"L{L}")
        for L in (16, 32, 64)
        for s in (2048, 4096)
        for b in (1, 2)
    ]
    truth = replace(Constants(), gemm_efficiency=0.5)
    seconds = np.asarray(step_time(case([read(r) for r in runs], truth)).iteration_s)
    timed = [replace(run, iteration_s=float(s)) for run, s in zip(runs, seconds, strict=True)]
    return write_runs(tmp_path / "runs.csv", timed)


@pytest.fixture
def run(capsys):
    def call(*argv):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def test_calibrate_then_validate(run, file, tmp_path):
    out = tmp_path / "own"
    code, printed, _ = run("calibrate", file, "--out", out, "--json", "--quiet", "--workers", "1")
    answer = json.loads(printed)
    assert code == 0
    names = {path.name for path in (out / "training").iterdir()}
    assert names == {"all.yaml", "fsdp-hopper.yaml"}
    assert sorted(answer["written"]) == sorted(str(out / "training" / name) for name in names)
    found = read_calibration(out / "training" / "fsdp-hopper.yaml")
    assert (found.rows, found.source) == (12, "runs.csv: 12 timed rows")
    assert found.constants.gemm_efficiency < 0.6
    macro = answer["macro"]
    assert macro["after"]["median_of_medians"] < macro["before"]["median_of_medians"]
    assert macro["after"]["median_of_medians"] < 0.03
    assert macro["left_out"]["median_of_medians"] < 0.1
    again = validate([file], profiles_dir=out).to_json()
    after = answer["by_group"]["L32"]["after"]
    assert again["by_group"]["L32"]["time"]["median_ape"] == pytest.approx(after)


def test_the_screen_says_what_the_runs_cannot_tell(run, file, tmp_path):
    code, out, err = run("calibrate", file, "--out", tmp_path / "own", "--no-leave-one-out")
    assert code == 0
    assert "fitting" in err
    (line,) = [x for x in out.splitlines() if x.startswith("fsdp-hopper\t")]
    measured, apart, nothing = line.split("\t")[2:]
    assert "gemm_efficiency" in measured
    assert "bubble" in nothing
    assert "bubble" not in measured + apart
    assert "median of medians" in out


def test_a_folder_that_cannot_be_is_found_out_before_the_work(run, file, tmp_path):
    (tmp_path / "taken").write_text("")
    code, out, err = run("calibrate", file, "--out", tmp_path / "taken")
    assert (code, out) == (2, "")
    assert "--out" in err
    assert "fitting" not in err


def test_two_runs_are_too_few(run, file, tmp_path):
    short = tmp_path / "short.csv"
    short.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    code, _, err = run("calibrate", short, "--out", tmp_path / "own")
    assert code == 2
    assert "2 timed runs" in err


def test_a_group_that_a_fit_makes_worse_is_named():
    groups = {
        "better": {"n": 4, "before": 0.3, "after": 0.05},
        "alike": {"n": 4, "before": 0.05, "after": 0.055},
        "worse": {"n": 3, "before": 0.304, "after": 0.390},
    }
    (said,) = worse_groups({"by_group": groups})
    for word in ("worse:", "30.4 %", "39.0 %", "3 runs"):
        assert word in said
    groups["worse"]["n"] = 1
    (said,) = worse_groups({"by_group": groups})
    assert "its 1 run disagrees with what was fitted beside it;" in said
