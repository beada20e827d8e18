"""Ranks as plain processes of this machine: no scheduler, nothing to start first."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from autoparallel.errors import bad_value
from autoparallel.profiling.errand import Work, spread
from autoparallel.profiling.job import Result
from autoparallel.profiling.launcher import Progress
from autoparallel.profiling.parcel import PACKAGE
from autoparallel.profiling.process_tree import dies_with_parent
from autoparallel.profiling.rank_end import log_file
from autoparallel.profiling.ranks import (
    exit_reason,
    folder_result,
    free_port,
    rank_environment,
    start_folder,
    streamed_steps,
)

MOST_RANKS = 64
"""Assumed: more ranks than any one machine has GPUs for, or cores."""
_MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")


@dataclass(slots=True, kw_only=True)
class _Running:
    job: Work
    folder: Path
    ranks: list[subprocess.Popen[bytes]]
    oom_kills: int
    lost: dict[int, tuple[str, str]] = field(default_factory=dict)
    ended: bool = False


class SubprocessLauncher:
    """Starts every rank of a job as a process of this machine."""

    name = "subprocess"

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    def submit(self, job: Work, folder: Path) -> str:
        """Start the ranks; the ticket is the trial's folder."""
        if spread(job) and job.processes > 1:
            rule = "is more than this machine, which is one node"
            raise bad_value("--nodes", job.processes, rule, "use --launcher ray, slurm, kubernetes")
        if job.processes > MOST_RANKS:
            rule = f"starts more ranks than the {MOST_RANKS} that one machine is given"
            hint = "use --launcher ray, slurm or kubernetes, or --mode rank or proxy"
            raise bad_value("--launcher", f"{self.name} with {job.processes} ranks", rule, hint)
        start_folder(job, folder)
        address = ("127.0.0.1", free_port())
        running = _Running(job=job, folder=folder, ranks=[], oom_kills=_oom_kills())
        self._running[str(folder)] = running
        try:
            for rank in range(job.processes):
                running.ranks.append(_start(job, folder, rank, address))
        except OSError:
            self.cancel(str(folder))
            raise
        return str(folder)

    def poll(self, ticket: str) -> Progress:
        """Look; the first rank that failed ends the others."""
        running = self._running[ticket]
        codes = [rank.poll() for rank in running.ranks]
        if failed := {r: code for r, code in enumerate(codes) if code}:
            for rank, code in failed.items():
                running.lost.setdefault(rank, (_outcome(code, running), exit_reason(code)))
            self.cancel(ticket)
        done = running.ended or all(code is not None for code in codes)
        return Progress(state="done" if done else "running", step_s=streamed_steps(running.folder))

    def collect(self, ticket: str) -> Result:
        """What the ranks have left in the folder."""
        running = self._running[ticket]
        return folder_result(running.job, running.folder, running.lost)

    def cancel(self, ticket: str) -> None:
        """Kill every rank with all it started."""
        running = self._running[ticket]
        for rank in running.ranks:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(rank.pid, signal.SIGKILL)
        for rank in running.ranks:
            rank.wait()
        running.ended = True

    def close(self) -> None:
        """End whatever still runs."""
        for ticket in self._running:
            self.cancel(ticket)


def _start(job: Work, folder: Path, rank: int, address: tuple[str, int]) -> subprocess.Popen[bytes]:
    """One rank in a process group of its own, which dies when this process dies."""
    environment = {**os.environ, **rank_environment(job, rank, address)}
    found = [str(PACKAGE.parent), environment.get("PYTHONPATH", "")]
    own = job.environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(x for x in (own, *found) if x))
    with (folder / log_file(rank)).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "autoparallel.profiling.worker", str(folder.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=dies_with_parent(signal.SIGKILL),
        )


def _outcome(code: int, running: _Running) -> str:
    """A rank killed while the kernel counted an out-of-memory kill ran out of memory."""
    killed = code == -signal.SIGKILL and _oom_kills() > running.oom_kills
    return "out_of_memory" if killed else "crash"


def _oom_kills() -> int:
    """Processes of this control group that the kernel killed for memory so far."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMORY_EVENTS.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
