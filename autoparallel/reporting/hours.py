"""Where the hours of a whole run go: the step's parts, checkpoints, failures; cost and energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoparallel.cost.goodput import RESTART_S, Run
from autoparallel.cost.goodput import run as whole_run
from autoparallel.plan import PlanEntry
from autoparallel.reporting.breakdown import Bar
from autoparallel.reporting.run import TrainingRun
from autoparallel.units import DAY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """A whole training run under one layout.

    Attributes:
        shares: Cause to share of the wall time: the step's parts, then `checkpoints_s`,
            `lost_work_s` (repeated after failures) and `restarts_s`; they add up to 1.
    """

    label: str
    entry: PlanEntry
    whole: Run
    shares: dict[str, float]


def hours(run: TrainingRun, entries: Sequence[tuple[str, PlanEntry]]) -> tuple[Hours, ...]:
    """The runs of these layouts; none where the request has no number of tokens."""
    return tuple(found for label, entry in entries if (found := _hours(run, label, entry)))


def _hours(run: TrainingRun, label: str, entry: PlanEntry) -> Hours | None:
    request = run.request
    if request.tokens is None or not entry.tokens_per_s_per_gpu or not entry.parts:
        return None
    step_s = sum(entry.parts.values())
    busy = 1 - (entry.parts["bubble_s"] + entry.parts["launch_s"]) / step_s
    rate = entry.tokens_per_s_per_gpu * request.num_gpus
    whole = whole_run(
        request.model, request.cluster, request.num_gpus, request.tokens, rate, max(busy, 0.0)
    )
    between_s = whole.days * DAY_S / whole.failures
    # At Young's optimum saving costs as much as what failures undo.
    saving = whole.checkpoint_interval_s / 2 / between_s * whole.goodput
    shares = {name: part / step_s * whole.goodput for name, part in entry.parts.items()}
    shares |= {
        "checkpoints_s": saving,
        "lost_work_s": saving,
        "restarts_s": RESTART_S / between_s * whole.goodput,
    }
    return Hours(label=label, entry=entry, whole=whole, shares=shares)


def hour_bars(found: Sequence[Hours]) -> tuple[Bar, ...]:
    """Days of the run by cause."""
    return tuple(
        Bar(
            label=h.label,
            layout=str(h.entry.layout),
            parts={name: share * h.whole.days for name, share in h.shares.items()},
            interval=None,
        )
        for h in found
    )
