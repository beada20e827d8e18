"""What a campaign shows while it runs, and what it has found."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoparallel.layout import Layout
from autoparallel.plan import PlanEntry
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.store import Trial
from autoparallel.profiling.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a spectator of a campaign sees.

    Attributes:
        kind: `start`, `step` or `end` of a trial; `cut` where the campaign ended before it had
            enough steps.
        number, running: Which trial this is, and how many are being tried at the moment.
        done, top: Layouts measured so far, and asked for.
        step, steps: Of this trial.
        best: The fastest layout so far, and its step time.
        result: Of the trial that ended.
    """

    kind: str
    layout: Layout
    number: int
    running: int
    done: int
    top: int
    step: int = 0
    steps: int = 0
    best: tuple[Layout, float] | None = None
    left_s: float = 0.0
    result: Result | None = None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a campaign has found, whether it came to its end or not.

    Attributes:
        found: Candidates, with their predictions of before.
        study: What was measured of them, and what is believed now.
        jobs: Candidate -> the jobs that stood for it.
        cut: Layouts whose trial had too few steps when the campaign ended; it counts for nothing.
        reason: Why it ended.
        out_of_budget: Whether that was for want of time.
        damaged: Lines of the journal that could not be read.
    """

    found: tuple[PlanEntry, ...]
    study: Study
    jobs: dict[int, tuple[Job, ...]] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    cut: list[Layout] = field(default_factory=list)
    reason: str = ""
    out_of_budget: bool = False
    damaged: int = 0
