"""Runs of one rank as forks of a process that has imported everything already.

Importing torch and megatron-core takes longer than most runs. The parent never touches CUDA, so
every fork starts with a clean device and megatron-core's globals as they were: as fresh as a
process of its own. Where CUDA refuses forks all the same, runs go on as plain processes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from autoparallel.profiling.errand import Work
from autoparallel.profiling.job import Result
from autoparallel.profiling.launcher import Progress
from autoparallel.profiling.rank_end import log_file
from autoparallel.profiling.ranks import (
    exit_reason,
    folder_result,
    free_port,
    rank_environment,
    start_folder,
    streamed_steps,
)

REFUSED = "re-initialize CUDA in forked subprocess"


def preload(device: str) -> float:
    """Import what a rank needs, as far as that leaves the device alone; seconds it took."""
    begin = time.perf_counter()
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # counting GPUs starts no driver
    import torch  # noqa: F401

    if device == "cuda":  # on a CPU the shim must be there before megatron-core is
        import autoparallel.profiling.worker.config
        import autoparallel.profiling.worker.network
        import autoparallel.profiling.worker.training  # noqa: F401
    return time.perf_counter() - begin


@dataclass(slots=True, kw_only=True)
class _Running:
    job: Work
    folder: Path
    pid: int
    code: int | None = None


class ForkLauncher:
    """See `Launcher`; jobs of one rank."""

    name = "fork"

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    def submit(self, job: Work, folder: Path) -> str:
        """See `Launcher`."""
        if job.processes != 1:
            raise ValueError(f"{job.processes} ranks: a fork is one")
        start_folder(job, folder)
        environment = rank_environment(job, 0, ("127.0.0.1", free_port()))
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _run(folder, environment)
        self._running[str(folder)] = _Running(job=job, folder=folder, pid=pid)
        return str(folder)

    def poll(self, ticket: str) -> Progress:
        """See `Launcher`."""
        running = self._running[ticket]
        _reap(running, os.WNOHANG)
        state = "running" if running.code is None else "done"
        return Progress(state=state, step_s=streamed_steps(running.folder))

    def collect(self, ticket: str) -> Result:
        """See `Launcher`."""
        running = self._running[ticket]
        lost = {0: ("crash", exit_reason(running.code))} if running.code else {}
        return folder_result(running.job, running.folder, lost)

    def cancel(self, ticket: str) -> None:
        """See `Launcher`."""
        running = self._running[ticket]
        if running.code is None:
            os.kill(running.pid, signal.SIGKILL)
            _reap(running, 0)

    def close(self) -> None:
        """See `Launcher`."""
        for ticket in self._running:
            self.cancel(ticket)


def _reap(running: _Running, how: int) -> None:
    if running.code is None:
        pid, status = os.waitpid(running.pid, how)
        if pid:
            running.code = os.waitstatus_to_exitcode(status)


def _run(folder: Path, environment: dict[str, str]) -> None:
    """The fork's part; never returns."""
    code = 1
    try:
        os.environ.update(environment)
        log = os.open(folder / log_file(0), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from autoparallel.profiling.worker.rank import run_in_folder

        code = 0 if run_in_folder(folder, os.environ).outcome == "ok" else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
