"""What may be tried: the short list of a plan, and its neighbourhood in the same search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

import numpy as np

from autoparallel.cost.step import StepTime
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout
from autoparallel.plan import Plan, PlanEntry
from autoparallel.planning import estimate, searched
from autoparallel.profiles import Spread
from autoparallel.profiling.beliefs import Beliefs, prior
from autoparallel.profiling.study import Candidate
from autoparallel.ranking import sampled_times
from autoparallel.request import TrainingRequest

NEIGHBOURS = 60
"""Layouts of the search that are looked at beyond the short list."""


def entries(
    plan: Plan, request: TrainingRequest, runs: Callable[[Layout], bool], extra: Sequence[Layout]
) -> tuple[PlanEntry, ...]:
    """Candidates as entries of a plan: the short list first, then its neighbourhood.

    Args:
        plan: The saved plan.
        request: Its request.
        runs: Whether the worker can run a layout.
        extra: Further layouts to look at, such as those an earlier run measured.
    """
    found: dict[Layout, PlanEntry] = {}
    for entry in (*plan.entries, *_neighbours(request), *_priced(request, extra)):
        if entry.parts is not None and runs(entry.layout):
            found.setdefault(entry.layout, entry)
    if not found:
        raise ConfigError(
            "plan: the built-in worker runs none of its layouts; run your own script with --command"
        )
    return tuple(found.values())


def _neighbours(request: TrainingRequest) -> tuple[PlanEntry, ...]:
    return searched(request, top=NEIGHBOURS)[0].entries


def _priced(request: TrainingRequest, layouts: Sequence[Layout]) -> Iterator[PlanEntry]:
    for layout in layouts:
        answer = estimate(request, layout)
        if answer.legal:
            yield answer.entry


def candidate(entry: PlanEntry) -> Candidate:
    """An entry as the study sees it."""
    return Candidate(
        layout=entry.layout,
        predicted_s=entry.iteration_s or 0.0,
        memory_bytes=entry.memory_bytes or 0.0,
        fits_probability=entry.fits_probability or 0.0,
    )


def beliefs(found: Sequence[PlanEntry], spread: Spread) -> Beliefs:
    """Predictions of entries with what they share of their uncertainty."""
    columns = {
        f.name: np.array([(entry.parts or {})[f.name] for entry in found]) for f in fields(StepTime)
    }
    step = StepTime(**columns)
    return prior(np.asarray(step.iteration_s), sampled_times(step, spread))
