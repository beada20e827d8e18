"""The short list and its rivals: step time and memory with their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoparallel.layout import Layout
from autoparallel.plan import PlanEntry
from autoparallel.planning import estimate
from autoparallel.ranking.reasons import consistent
from autoparallel.reporting.run import TrainingRun

BROKEN_DOWN = 5
"""Places of the short list that are broken down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One layout as a bar.

    Attributes:
        label: Short: `#1`, `yours`, `full recompute`.
        layout: In the grammar, or what else stands for it.
        parts: Seconds or bytes by cause; they add up to `total`.
        interval: 5th and 95th percentile of the total.
    """

    label: str
    layout: str
    parts: Mapping[str, float]
    interval: tuple[float, float] | None

    @property
    def total(self) -> float:
        """The whole bar."""
        return sum(self.parts.values())


def step_bars(entries: Sequence[tuple[str, PlanEntry]]) -> tuple[Bar, ...]:
    """Step times in seconds."""
    return tuple(
        Bar(label=label, layout=str(e.layout), parts=e.parts, interval=e.iteration_s_interval)
        for label, e in entries
        if e.parts is not None
    )


def memory_bars(entries: Sequence[tuple[str, PlanEntry]]) -> tuple[Bar, ...]:
    """Peak memory of the fullest GPU in bytes."""
    return tuple(
        Bar(
            label=label,
            layout=str(e.layout),
            parts=e.memory_parts,
            interval=e.memory_bytes_interval,
        )
        for label, e in entries
        if e.memory_parts is not None
    )


def rivals(run: TrainingRun, baseline: Layout | None = None) -> list[tuple[str, PlanEntry]]:
    """The top of the short list, the user's own layout, and the winner recomputed in full."""
    found = [(f"#{e.rank}", e) for e in run.plan.entries[:BROKEN_DOWN]]
    if baseline is not None:
        given = estimate(run.request, baseline)
        if given.legal:
            found.append(("yours", given.entry))
    return found + full_recompute(run)


def full_recompute(run: TrainingRun) -> list[tuple[str, PlanEntry]]:
    """The winner with every layer recomputed, unless it is so already or may not be."""
    layout = run.winner.layout
    if layout.recompute_granularity == "full":
        return []
    whole = consistent(
        layout,
        recompute_granularity="full",
        recompute_method="uniform",
        recompute_num_layers=1,
        recompute_modules=(),
    )
    given = estimate(run.request, whole)
    return [("full recompute", given.entry)] if given.legal else []
