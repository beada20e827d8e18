"""`autoparallel profile` from a search to the measured plan, with real Megatron ranks on Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import script

from autoparallel.cli.profile_settings import seconds
from autoparallel.errors import ConfigError
from autoparallel.plan import load_plan
from autoparallel.profiling.store import Store

ROOT = Path(__file__).parents[2]


def autoparallel(folder, *words, timeout=400):
    marks = {k: v for k, v in os.environ.items() if k.startswith("AUTOPARALLEL_FAULT")}
    return subprocess.run(
        [sys.executable, "-m", "autoparallel", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder), **marks},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def run(tmp_path):
    words = ("--model", "gpt-tiny", "--cluster", "local-cpu", "--gpus", "2", "--quiet")
    assert autoparallel(tmp_path, "search", *words, "--out", "run").returncode == 0
    return tmp_path / "run"


@pytest.mark.ray
@pytest.mark.megatron
@pytest.mark.slow
def test_three_kinds_of_layouts_are_measured_by_megatron_through_ray(run):
    pytest.importorskip("ray")
    pytest.importorskip("megatron.core")
    words = ("profile", "run", "--device", "cpu", "--top", "3", "--steps", "3", "--budget", "5m")
    with script("faults") as faults, faults.marked() as mark:
        done = autoparallel(run.parent, *words)
        assert faults.left_over(mark) == []
    assert done.returncode == 0, done.stderr
    plan = load_plan(run)
    measured = [e for e in plan.entries if e.measured and e.measured.outcome == "ok"]
    meshes = {
        (e.layout.tensor_model_parallel_size, e.layout.pipeline_model_parallel_size)
        for e in measured
    }
    assert meshes == {(1, 1), (1, 2), (2, 1)}
    assert {e.measured.device for e in measured} == {"cpu"}
    assert all(e.measured.versions["megatron-core"].startswith("0.16") for e in measured)
    assert all(e.corrected for e in plan.entries)
    assert {t.result.launcher for t in Store(run).trials()} == {"ray"}
    assert "Fastest measured:" in done.stdout
    assert "ray" not in done.stderr.replace("--launcher ray", "").lower()
    again = autoparallel(run.parent, *words, "--json", "--quiet", "--launcher", "subprocess")
    assert again.returncode == 0, again.stderr
    assert again.stdout == (run / "plan.json").read_text()
    assert again.stderr == ""
    assert json.loads(again.stdout)["plan"][0]["measured"]["mode"] == "job"


def test_the_users_own_job_stands_for_ranks_of_a_made_up_world(tmp_path):
    words = ("--model", "llama-3.1-8b", "--cluster", "dgx-h100", "--gpus", "64", "--quiet")
    space = ("space.pipeline_model_parallel_size=[4]", "space.tensor_model_parallel_size=[2]")
    assert autoparallel(tmp_path, "search", *words, *space, "--out", "run").returncode == 0
    own = f"{sys.executable} {ROOT / 'tests/profiling/fake_rank.py'} @{{args_file}}"
    proof = ("profile", "run", "--mode", "rank", "--top", "1", "--steps", "3", "--budget", "5m")
    done = autoparallel(tmp_path, *proof, "--command", own)
    assert done.returncode == 0, done.stderr
    assert "the step time is the last stage's" in done.stdout
    trials = Store(tmp_path / "run").trials()
    assert {t.job.rank for t in trials} == {0, 16, 48, 63}
    found = next(e for e in load_plan(tmp_path / "run").entries if e.measured)
    assert (found.measured.mode, found.measured.device) == ("rank", "cuda")
    assert found.measured.iteration_s > 0.9
    assert found.measured.peak_memory_bytes == 2064 * 2**20
    again = autoparallel(tmp_path, *proof, "--command", own)
    assert again.returncode == 0, again.stderr
    assert len(Store(tmp_path / "run").trials()) == len(trials)
    refused = autoparallel(tmp_path, *proof, "--command", "torchrun x.py @{args_file}")
    assert refused.returncode == 2
    assert "write 'python pretrain_gpt.py @{args_file}'" in refused.stderr


def test_a_program_that_hangs_is_cut_at_the_end_of_the_budget(run):
    """It may take long to start on a busy machine; however far it came, nothing of it is left."""
    log, seen = ROOT / "tests/profiling/logs/recorded/megatron_hang.log", run.parent / "seen"
    own = f"{sys.executable} {ROOT / 'tests/profiling/fake_pretrain.py'} {log} --ends hang"
    own += f" --seen {seen} @{{args_file}}"
    before = (run / "plan.json").read_bytes()
    with script("faults") as faults, faults.marked() as mark:
        done = autoparallel(run.parent, "profile", "run", "--budget", "8s", "--command", own)
        assert faults.left_over(mark) == []
    assert done.returncode == 4, done.stderr
    assert "the budget of 8 s is spent; give --budget more" in done.stderr
    assert Store(run).trials() == []
    assert (run / "plan.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "jobs"], "--mode"),
        (["--device", "tpu"], "--device"),
        (["--impl", "flash"], "--impl"),
        (["--launcher", "rey"], "did you mean 'ray'"),
        (["--budget", "never"], "--budget"),
        (["--budget", "0m"], "--budget"),
        (["--launcher", "subprocess", "--ray-address", "auto"], "--ray-address"),
        (["--launcher", "subprocess", "--warm-start", "nowhere"], "--warm-start"),
        (["--launcher", "subprocess", "--storage", "nonsense"], "--storage"),
        (["--launcher", "ray", "--command", "x @{args_file}"], "--launcher"),
        (["--command", "x"], "--command"),
        (["--site", "moon"], "moon"),
    ],
)
def test_bad_input_is_exit_2_and_changes_nothing(run, capsys, monkeypatch, words, said):
    from autoparallel.cli import main

    before = (run / "plan.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["profile", str(run), "--device", "cpu", *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert said in error
    assert "Traceback" not in error
    assert ("starting the launcher" in error) == (words[-2] in ("--warm-start", "--storage"))
    assert (run / "plan.json").read_bytes() == before


def test_gpus_that_are_not_there_are_refused_before_a_rank_starts(run, monkeypatch, capsys):
    from autoparallel.cli import main

    monkeypatch.setattr("autoparallel.profiling.seen.gpu_count", lambda: 0)
    with pytest.raises(SystemExit) as stop:
        main(["profile", str(run), "--device", "cuda", "--launcher", "subprocess"])
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert "puts 2 ranks on GPUs of this machine, which has 0" in error
    assert "--device cpu" in error
    assert "starting" not in error
    assert not (run / "trials").exists()


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("90", 90), ("1.5m", 90), ("2h", 7200)])
def test_times(text, value):
    assert seconds("--budget", text) == value
    with pytest.raises(ConfigError, match="--budget"):
        seconds("--budget", "-" + text)
