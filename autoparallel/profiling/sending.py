"""Sending an errand through a launcher, and waiting for its answer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autoparallel.errors import ConfigError, LaunchError
from autoparallel.profiling.errand import Errand, samples_in
from autoparallel.profiling.job import Result
from autoparallel.profiling.launcher import Launcher, Progress, run_trial
from autoparallel.profiling.rank_end import STEPS_FILE, RankEnd
from autoparallel.profiling.ranks import rank_end

STALL_S = 600.0
"""A sample that takes longer than this is not coming any more."""
Told = Callable[[str, float], None]
"""Takes the key and the seconds of a sample."""


def send(
    launcher: Launcher, errand: Errand, folder: Path, told: Told = lambda key, seconds: None
) -> tuple[RankEnd, ...]:
    """How all ranks ended that were sent, once all went well; their files are removed then.

    Args:
        launcher: Where.
        errand: What.
        folder: For the files of errands.
        told: Gets every sample once, as it comes; also those of an errand that fails later.

    Raises:
        ConfigError: it cannot be done there, such as without torch.
        LaunchError: it failed; `folder` keeps the logs.
    """
    own = folder / errand.trial
    stream = _Stream(file=own / STEPS_FILE, told=told)
    result = run_trial(launcher, errand, own, watch=stream.stalled)
    stream.read()
    _check(result, own)
    ends = [rank_end(own, rank) for rank in range(errand.processes)]
    shutil.rmtree(own, ignore_errors=True)
    return tuple(end for end in ends if end)


def _check(result: Result, folder: Path) -> None:
    if result.outcome == "ok" and not result.stopped_early:
        return
    message = f"--launcher {result.launcher}: {result.outcome}, {result.message}; see {folder}"
    raise (ConfigError if result.outcome == "invalid" else LaunchError)(message)


@dataclass(slots=True, kw_only=True)
class _Stream:
    """The lines that rank 0 streams, each handed on once."""

    file: Path
    told: Told
    known: int = 0
    moved_at: float = field(default_factory=time.monotonic)

    def read(self) -> None:
        """Hand on what is new."""
        try:
            lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        samples = list(samples_in(lines))
        for key, seconds in samples[self.known :]:
            self.told(key, seconds)
            self.moved_at = time.monotonic()
        self.known = max(self.known, len(samples))

    def stalled(self, progress: Progress) -> bool:
        """A `Watch`: whether to give up."""
        if progress.state == "waiting":
            self.moved_at = time.monotonic()
        self.read()
        return time.monotonic() - self.moved_at > STALL_S
