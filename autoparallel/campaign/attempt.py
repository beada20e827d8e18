"""A candidate that is being tried: the jobs that stand for it, waiting, running and done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.launcher import Underway
from autoparallel.profiling.study import Pick


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One turn of a candidate.

    Attributes:
        pick: What the study asked for.
        number: Of the turn, from 1.
        jobs: In `rank` mode one a stage, else one.
        results: Of jobs that are done, by their place in `jobs`.
        underway: Jobs that were started.
        shown: Timed steps that were last told of.
    """

    pick: Pick
    number: int
    jobs: tuple[Job, ...] = ()
    results: dict[int, Result] = field(default_factory=dict)
    underway: dict[int, Underway] = field(default_factory=dict)
    shown: int = -1

    @property
    def done(self) -> bool:
        """Whether every job has its result."""
        return len(self.results) == len(self.jobs)

    def waiting(self) -> Iterator[int]:
        """Jobs that were not started yet."""
        return (
            i for i in range(len(self.jobs)) if i not in self.results and i not in self.underway
        )

    def end(self) -> None:
        """Leave no rank behind."""
        for each in self.underway.values():
            each.end()
        self.underway.clear()
