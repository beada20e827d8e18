"""What a training page says beyond the plan: other sizes, other hardware, and the whole run."""

from __future__ import annotations

from collections.abc import Sequence

from autoparallel.plan import PlanEntry
from autoparallel.reporting import hours, what_if
from autoparallel.reporting.figures import plans
from autoparallel.reporting.figures import what_if as what_if_figures
from autoparallel.reporting.page import Drawing, Item, Prose, Table
from autoparallel.reporting.run import TrainingRun
from autoparallel.reporting.wording import day_digits, number, time_scale
from autoparallel.units import TERA


def scale_items(run: TrainingRun) -> list[Item]:
    """Scaling and sensitivity."""
    sizes, cases = what_if.scaling(run), what_if.sensitivity(run)
    scale, unit, digits = time_scale(run.winner.iteration_s or 0.0)
    rows = [
        [
            f"{s.gpus:,}",
            str(s.entry.layout) if s.entry else "nothing fits",
            number(s.entry.iteration_s if s.entry else None, digits, scale),
            number(s.tokens_per_s),
            number(s.efficiency, 0, 100),
            number(s.entry.days if s.entry else None, 1),
            number(s.entry.cost_usd if s.entry else None),
        ]
        for s in sizes
    ]
    return [
        Drawing(
            name="scaling-figure",
            title="Strong scaling: the same batch on other numbers of GPUs",
            caption="Each size is planned again; percentages compare a GPU with the smallest size.",
            figure=what_if_figures.scaling(sizes),
        ),
        Table(
            caption="The best plan of each size",
            head=["GPUs", "layout", f"step {unit}", "tokens/s", "efficiency %", "days", "USD"],
            rows=rows,
            words=frozenset({1}),
            folded=True,
        ),
        Drawing(
            name="sensitivity-figure",
            title="If the hardware or the batch were different",
            caption=(
                "Throughput with the winner kept as it is, and with the best layout of the changed "
                "case. Where both bars agree the decision does not depend on that number."
            ),
            figure=what_if_figures.sensitivity(cases),
        ),
    ]


def run_items(run: TrainingRun, entries: Sequence[tuple[str, PlanEntry]]) -> list[Item]:
    """Where the days go; goodput, cost and energy."""
    found = hours.hours(run, entries)
    if not found:
        return [Prose(text="The request has no number of tokens, so there is no whole run.")]
    cluster = run.request.cluster
    notes = (
        [] if cluster.usd_per_gpu_hour else ["no price (cluster.usd_per_gpu_hour=2.5 gives one)"]
    )
    if not cluster.grid_kg_co2_per_kwh:
        notes.append("no grid intensity (cluster.grid_kg_co2_per_kwh=0.4)")
    rows = [
        [
            h.label,
            str(h.entry.layout),
            number(h.whole.days, day_digits(h.whole.days)),
            number(h.whole.goodput, 1, 100),
            number(h.whole.failures, 0),
            number(h.whole.checkpoint_interval_s, 0, 1 / 60),
            number(h.whole.cost_usd),
            number(h.whole.energy_kwh, 1, 1e-3),
            number(h.whole.co2_kg, 1, 1e-3),
        ]
        for h in found
    ]
    head = ["plan", "layout", "days", "goodput %", "failures", "checkpoint every min", "USD", "MWh"]
    items: list[Item] = [
        Drawing(
            name="hours-figure",
            title="Where the days go",
            caption=(
                f"Failures come at {cluster.failures_per_node_day:g} a node and day; checkpoints "
                "at Young's optimal interval; restarts and repeated work follow from both."
            ),
            figure=plans.hours(hours.hour_bars(found)),
        ),
        Table(
            caption="Goodput, cost and energy of the whole run",
            head=[*head, "t CO2"],
            rows=rows,
            words=frozenset({0, 1}),
        ),
    ]
    peak = run.request.cluster.gpu.peak_flops_per_s.get("bf16")
    power = f"{cluster.gpu.tdp_w:,.0f} W a GPU at full load, PUE {cluster.pue:g}"
    flops = f", {peak / TERA:,.{0 if peak >= TERA else 3}f} TFLOPS dense bf16" if peak else ""
    if notes:
        items.append(Prose(text=f"{cluster.name} has " + " and ".join(notes) + ".", kind="note"))
    return [*items, Prose(text=f"{cluster.gpu.name}: {power}{flops}.", kind="note")]
