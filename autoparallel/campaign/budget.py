"""The wall time of a campaign: what is left of it, and what it still holds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoparallel.counts import counted
from autoparallel.profiling.job import Result
from autoparallel.profiling.store import Trial

_CUT = "cut by the campaign's end"
ENOUGH_STEPS = 2
"""Timed steps from which a trial that is cut has measured something: a median with a spread."""


@dataclass(slots=True, kw_only=True)
class Budget:
    """A length of time that may have begun.

    Attributes:
        seconds: How long it is.
        ends: When it ends, monotonic; infinite before it has begun.
    """

    seconds: float
    ends: float = math.inf

    def begin(self, since: float | None = None) -> None:
        """Count from `since`, monotonic; from now when left out."""
        self.ends = (time.monotonic() if since is None else since) + self.seconds

    @property
    def left_s(self) -> float:
        """What is left; 0 when it is spent."""
        return max(self.ends - time.monotonic(), 0.0)

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self.left_s == 0.0


def cut(result: Result, steps: int) -> Result:
    """A trial that the campaign's end cut: nothing was wrong with it, and it says so."""
    note = f"{_CUT} after {len(result.step_s)} of {counted(steps, 'timed step')}"
    return replace(result, stopped_early=False, deviations=(*result.deviations, note))


def was_cut(result: Result) -> bool:
    """Whether `cut` made it."""
    return any(note.startswith(_CUT) for note in result.deviations)


def shortest_s(trials: Sequence[Trial], launcher: str, steps: int) -> float:
    """What a trial with `steps` timed steps takes at the least, by those that ran before.

    The shortest way to the first timed step and the shortest step, of any trial of this launcher;
    0 when none is known.
    """
    ran = [t.result for t in trials if t.result.ok and t.result.launcher == launcher]
    if not ran:
        return 0.0
    start = min(max(r.wall_s - sum(r.step_s), 0.0) for r in ran)
    return start + steps * min(r.iteration_s or 0.0 for r in ran)
