"""The benchmark of one GPU, as far as a machine without one can tell."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from autoparallel.profiling.store import Store
from autoparallel.profiling.worker.limits import refuse

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def grid(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_grid

    return gpu_grid


@pytest.mark.parametrize("tiny", [False, True])
def test_there_are_enough_runs_and_the_worker_takes_them_all(grid, tiny):
    found = grid.runs(tiny=tiny, device="cuda", steps=8, warmup_steps=3)
    assert len({run.job.trial for run in found}) == len(found) >= 60
    assert set(Counter(run.piece for run in found)) == set(grid.PIECES)
    ranks = [run for run in found if run.job.mode == "rank"]
    assert {run.stage for run in ranks} == {"first", "middle", "last"}
    assert {run.job.layout.tensor_model_parallel_size for run in ranks} == {1, 2, 4, 8}
    for run in found:
        assert run.job.processes == 1
        refuse(run.job, cuda=True, impl=run.job.impl)


@pytest.mark.megatron
def test_what_would_fail_every_run_ends_it_at_once_and_is_not_kept(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("megatron.core")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, FOLDER / "gpu_all.py", "--out", tmp_path],
        env={**os.environ, "PYTHONPATH": str(FOLDER.parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "torch sees no GPU" in done.stdout
    assert Store(tmp_path).trials() == []
    assert (tmp_path / "node.json").is_file()
