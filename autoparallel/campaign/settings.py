"""How a campaign is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autoparallel.campaign.modes import Mode
from autoparallel.profiling.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a campaign is run.

    Attributes:
        top: Layouts to measure.
        budget_s: Wall time for all trials.
        mode: `job`, `proxy` or `rank`, with the room for a proxy.
        base: Device, implementation, steps and time limits of every job; its model and layout are
            replaced.
        concurrent: Jobs that may run at a time.
        storage: Optuna's, as a URL; empty for a file in the run directory.
        warm_start: Run directories whose trials may be reused.
        prepare: Last change to a job, such as making it the user's own command.
    """

    top: int
    budget_s: float
    mode: Mode
    base: Job
    concurrent: int = 1
    storage: str = ""
    warm_start: tuple[Path, ...] = ()
    prepare: Callable[[Job], Job] = lambda job: job
