"""What a training page says of changes: from the user's layout to the winner, knob by knob."""

from __future__ import annotations

from autoparallel.layout import Layout
from autoparallel.plan import Estimate, PlanEntry
from autoparallel.planning import estimate
from autoparallel.ranking.reasons import Bought, bought
from autoparallel.reporting import differences
from autoparallel.reporting.baseline import Given
from autoparallel.reporting.figures import plans
from autoparallel.reporting.page import Drawing, Item, Prose, Table
from autoparallel.reporting.run import TrainingRun
from autoparallel.reporting.wording import short, signed, time_scale, time_text
from autoparallel.units import GIB


def your_items(run: TrainingRun, baseline: Given | None) -> list[Item]:
    """The user's configuration beside the winner, and the way from one to the other."""
    if baseline is None:
        return []
    found = estimate(run.request, baseline.layout)
    source = f"{baseline.source}: " if baseline.is_file else ""
    items: list[Item] = [Prose(text=f"{source}{found.entry.layout}")]
    items += [Prose(text=note, kind="note") for note in baseline.notes]
    if not found.legal:
        return items + [
            Prose(text=f"Not legal, {r.rule}: {r.message}", kind="warning")
            for r in found.illegal_reasons
        ]
    items.append(Prose(text=_standing(run, found)))
    if baseline.iteration_s is not None:
        items.append(Prose(text=_measured(found.entry, baseline.iteration_s)))
    return items + _way(run, found.entry, baseline.layout)


def _standing(run: TrainingRun, found: Estimate) -> str:
    entry, best = found.entry, run.winner.iteration_s or 0.0
    time = entry.iteration_s or 0.0
    text = (
        f"{time_text(time)} a step, {time / best - 1:+.1%} against the winner; "
        f"{(entry.memory_bytes or 0) / GIB:.1f} GiB, fits with P {entry.fits_probability:.2f}"
    )
    place = f"; number {found.place.rank:,} of {found.place.of:,} that fit" if found.place else ""
    return text + place + "."


def _measured(entry: PlanEntry, seconds: float) -> str:
    ratio = (entry.iteration_s or 0.0) / seconds - 1
    low, high = entry.iteration_s_interval or (0.0, 0.0)
    inside = "inside" if low <= seconds <= high else "outside"
    return (
        f"The log's steps take {time_text(seconds)} (median of their second half): the prediction "
        f"is {ratio:+.1%} off, and the log {inside} its 5-95 % range."
    )


def _way(run: TrainingRun, entry: PlanEntry, layout: Layout) -> list[Item]:
    found = differences.hops(run.where, entry.layout, run.winner.layout)
    if not found:
        return [Prose(text="It is the winner." if layout == run.winner.layout else "")]
    scale, unit, digits = time_scale(entry.iteration_s or 0.0)
    rows = [
        [
            hop.name,
            signed(hop.delta_s * scale, digits),
            signed(hop.delta_s / (entry.iteration_s or 1.0) * 100, 1),
            signed(hop.delta_bytes / GIB, 1),
            "yes" if hop.after.fits else "no",
        ]
        for hop in found
    ]
    start = entry.iteration_s or 0.0
    return [
        Drawing(
            name="way-figure",
            title="From yours to the winner, change by change",
            caption=(
                "Of the changes that are left, the one that saves most comes next; "
                "changes that are only legal together are made together."
            ),
            figure=plans.way(found, start, ("yours", "winner")),
        ),
        Table(
            caption="What each change buys",
            head=["change", f"step {unit}", "% of yours", "GiB", "fits after it"],
            rows=rows,
        ),
    ]


def knob_items(run: TrainingRun) -> list[Item]:
    """The winner with one knob put back."""
    best = run.winner.iteration_s or 1.0
    found = bought(run.where, run.winner.layout)
    legal = [b for b in found if b.without.iteration_s is not None]
    rows = [
        [
            f"{b.knob} → {b.instead or 'without'}",
            f"{(b.without.iteration_s or 0) / best - 1:+.1%}" if not b.without.rule else "-",
            signed(((b.without.memory_bytes or 0) - (run.winner.memory_bytes or 0)) / GIB, 1)
            if not b.without.rule
            else "-",
            f"{b.without.fits_probability:.2f}" if b.without.fits_probability is not None else "-",
            b.without.message,
        ]
        for b in found
    ]
    if not legal:
        return []
    return [
        Drawing(
            name="knobs-figure",
            title="Step time with one knob of the winner put back",
            caption="Each knob at its nearest simpler legal value, everything else as it is.",
            figure=plans.worth(
                [_knob(b) for b in legal],
                [(b.without.iteration_s or 0.0) / best - 1 for b in legal],
                [b.without.fits for b in legal],
            ),
        ),
        Table(
            caption="The same in numbers, and what is not legal",
            head=["knob", "step", "GiB", "P(fits)", "rule"],
            rows=rows,
            words=frozenset({0, 4}),
            folded=True,
        ),
    ]


def _knob(b: Bought) -> str:
    """`tp4 → tp2`, and `overlap → none` for `overlap=grad+param+p2p → overlap=none`."""
    name, equals, _ = b.knob.partition("=")
    instead = b.instead.partition("=")[2] if equals else b.instead
    return short(f"{name} → {instead or 'without'}")
