"""Faults in ranks and drivers: every trial ends, says how, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from scripts import script

from autoparallel.profiling.launcher import run_trial

pytestmark = pytest.mark.megatron
pytest.importorskip("megatron.core")


@pytest.fixture(scope="module")
def faults():
    with script("faults") as module:
        yield module


@pytest.mark.parametrize(
    ("fault", "outcome", "words", "changes"),
    [
        ("kill@1", "crash", "rank 1", {}),
        ("stop@0", "timeout", "not finished", {"timeout_s": 20.0}),
    ],
)
def test_plain_processes(faults, tmp_path, fault, outcome, words, changes):
    with faults.marked() as mark:
        launcher = faults.LAUNCHERS["subprocess"]()
        result = run_trial(launcher, faults.job(fault=fault, **changes), tmp_path)
        assert result.outcome == outcome
        assert words in result.message
        assert faults.left_over(mark) == []


@pytest.mark.ray
@pytest.mark.slow
def test_ray_actors_that_raise_and_a_healthy_trial_after_them(faults, tmp_path, capfd):
    pytest.importorskip("ray")
    with faults.marked() as mark:
        launcher = faults.LAUNCHERS["ray"]()
        try:
            result = run_trial(launcher, faults.job(fault="raise@1"), tmp_path / "a")
            assert result.outcome == "crash"
            assert "rank 1: RuntimeError" in result.message
            assert "RuntimeError" in result.log_tail
            after = run_trial(launcher, faults.job(), tmp_path / "b")
            assert after.ok, after.message
            assert list(tmp_path.glob("*/.worker-*")) == []
        finally:
            launcher.close()
        assert faults.left_over(mark) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_ranks_die_with_a_killed_driver_and_finished_trials_stay(faults, tmp_path):
    row = faults.killed_driver("subprocess", inside=True)
    assert row.good, row


def test_a_driver_needs_no_cluster_to_be_importable(tmp_path):
    code = "import autoparallel.profiling.launcher, autoparallel.profiling.job, sys;"
    code += "print([n for n in ('ray', 'torch', 'optuna') if n in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
