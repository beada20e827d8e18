"""What the launchers that start ranks themselves have in common: files of a trial, and its ports.

A trial's folder holds `job.json`, and for every rank `rank-N.log` and `rank-N.json`; rank 0 streams
`steps.jsonl`.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from autoparallel import files
from autoparallel.errors import ConfigError
from autoparallel.profiling.errand import Work
from autoparallel.profiling.job import LOG_TAIL_CHARACTERS, Result
from autoparallel.profiling.rank_end import (
    STEPS_FILE,
    RankEnd,
    end_file,
    joined,
    log_file,
    timed_steps,
)

_END_LIMIT_BYTES = 1 << 20
JOB_FILE = "job.json"


def start_folder(job: Work, folder: Path) -> None:
    """Write the job, and clear what an earlier attempt left."""
    for rank in range(job.processes):
        (folder / end_file(rank)).unlink(missing_ok=True)
    (folder / STEPS_FILE).unlink(missing_ok=True)
    files.write_text(folder, JOB_FILE, job.text())


def rank_environment(job: Work, rank: int, address: tuple[str, int]) -> dict[str, str]:
    """What a rank must know about its place, and settings that keep it quiet and small."""
    host, port = address
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.processes),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        **job.environment,
    }


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def rank_end(folder: Path, rank: int) -> RankEnd | None:
    """How a rank said it ended; None when it said nothing whole."""
    with contextlib.suppress(ConfigError):
        return RankEnd.parse(files.read_text(folder / end_file(rank), _END_LIMIT_BYTES))
    return None


def streamed_steps(folder: Path) -> tuple[float, ...]:
    """Timed steps that rank 0 has written so far."""
    try:
        text = (folder / STEPS_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return timed_steps(text.splitlines())


def log_tail(folder: Path, rank: int) -> str:
    """The last lines of a rank's log."""
    try:
        with (folder / log_file(rank)).open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(size - LOG_TAIL_CHARACTERS, 0))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def exit_reason(code: int) -> str:
    """What an exit code of a process that said nothing means."""
    if code >= 0:
        return f"ended with exit code {code} without a word"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def folder_result(job: Work, folder: Path, lost: Mapping[int, tuple[str, str]]) -> Result:
    """One result of what the ranks left in a folder.

    Args:
        job: What ran.
        folder: The trial's own.
        lost: Rank -> outcome and reason, for ranks known to have ended without a word.
    """
    ends = [end for rank in range(job.processes) if (end := rank_end(folder, rank))]
    silent = {rank: why for rank, why in lost.items() if not any(e.rank == rank for e in ends)}
    failed = [end.rank for end in ends if end.outcome != "ok"] or sorted(silent) or [0]
    return joined(
        job,
        ends,
        lost=silent,
        steps=streamed_steps(folder),
        log_tail=log_tail(folder, failed[0]),
    )
