"""Plain processes: what one machine is not asked to start."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trials import JOB

from autoparallel.errors import ConfigError
from autoparallel.profiling.subprocess_launcher import MOST_RANKS, SubprocessLauncher


def test_a_job_of_a_whole_cluster_starts_no_rank_here(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("autoparallel.profiling.subprocess_launcher._start",
                        lambda *given: started.append(given))  # fmt: skip
    launcher = SubprocessLauncher()
    with pytest.raises(ConfigError, match=r"1024 ranks.*more ranks than the 64.*--launcher ray"):
        launcher.submit(replace(JOB, num_gpus=1024, global_batch_size=1024), tmp_path / "big")
    assert started == []
    launcher.submit(replace(JOB, num_gpus=MOST_RANKS, global_batch_size=64), tmp_path / "node")
    assert len(started) == MOST_RANKS
