"""A sweep on screen: one line a case, the decision, spare nodes and break-even prices."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoparallel.cli import screen
from autoparallel.cli.screen import Line
from autoparallel.counts import counted

if TYPE_CHECKING:
    from autoparallel.sweep import Limits, SweepResult


def csv_text(results: Sequence[SweepResult]) -> str:
    """One row a case, empty where a number is unknown."""
    out = io.StringIO()
    rows = [result.to_json() for result in results]
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def table(results: Sequence[SweepResult], best: Sequence[SweepResult]) -> list[Line]:
    """One line a case; what is the same in all of them is left out."""
    from autoparallel.reporting.wording import time_scale
    from autoparallel.sweep import scaled

    efficiency = {item.id: item for item in reversed(scaled(results))}  # strong before weak
    times = [r.iteration_s for r in results if r.iteration_s]
    scale, unit, digits = time_scale(max(times, default=1.0))
    heads = {
        "model": [r.model for r in results],
        "cluster": [r.cluster for r in results],
        "framework": [r.framework for r in results],
        "precision": [r.precision for r in results],
        "sequence": [str(r.seq_length or "-") for r in results],
        "batch": [str(r.global_batch_size or "-") for r in results],
    }
    text = ("model", "cluster", "framework", "precision")
    columns = [
        screen.Column(head="", cells=["*" if r in best else "" for r in results], right=False),
        *(
            screen.Column(head=name, cells=cells, right=name not in text)
            for name, cells in heads.items()
            if len(set(cells)) > 1
        ),
        screen.Column(head="GPUs", cells=[f"{r.num_gpus:,}" for r in results]),
        screen.Column(
            head=f"step {unit}", cells=[_of(r.iteration_s, scale, digits) for r in results]
        ),
        screen.Column(
            head="MFU %", cells=[_of(r.model_flops_utilization, 100, 1) for r in results]
        ),
        screen.Column(
            head="scaling %",
            cells=[
                _of(efficiency[r.id].efficiency if r.id in efficiency else None, 100, 1)
                for r in results
            ],
        ),
        screen.Column(head="days", cells=[_of(r.days, 1, 1) for r in results]),
        screen.Column(head="kUSD", cells=[_of(r.cost_usd, 1e-3, 0) for r in results]),
        screen.Column(head="MWh", cells=[_of(r.energy_kwh, 1e-3, 0) for r in results]),
        screen.Column(head="free %", cells=[_of(r.free_memory_fraction, 100, 0) for r in results]),
        screen.Column(head="layout", cells=[_layout_cell(r) for r in results], right=False),
    ]
    known = [c for c in columns if any(cell not in ("", "-") for cell in c.cells)]
    return screen.rows(known, bold_first=False)


def _of(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:,.{digits}f}"


def _layout_cell(result: SweepResult) -> str:
    if result.layout:
        return result.layout
    return f"{result.state.replace('_', ' ')}: {result.message}"


def notes(
    results: Sequence[SweepResult], limits: Limits, objective: str, best: Sequence[SweepResult]
) -> list[Line]:
    """The decision, and what else the table says."""
    from autoparallel.sweep import break_evens

    several = len({case.seq_length for case in best}) > 1
    lines = [line for case in best for line in _decision(case, limits, objective, several)]
    for result in results:
        if result.use_gpus is not None and result.use_gpus_iteration_s is not None:
            lines += screen.prose(_spare(result))
    for item in break_evens(results)[:SHOWN]:
        price = f" (USD {item.usd_per_gpu_hour:.2f})" if item.usd_per_gpu_hour else ""
        text = (
            f"Break-even on {counted(item.num_gpus, 'GPU')}, {item.model} at {item.seq_length}: "
            f"a GPU-hour of {item.cluster} is worth {item.ratio:.2f} of {item.other}{price}."
        )
        lines += screen.prose(text)
    lost = sum(result.state != "ok" for result in results)
    if lost:
        verb = "has" if lost == 1 else "have"
        text = f"{lost:,} of {counted(len(results), 'case')} {verb} no layout."
        lines += screen.prose(text, "yellow")
    return lines


SHOWN = 6
"""Pairs of clusters for which a break-even is shown; `--json` has all."""


def _decision(best: SweepResult, limits: Limits, objective: str, other_lengths: bool) -> list[Line]:
    words = {
        "iteration_s": "fastest",
        "cost_usd": "cheapest" if best.cost_usd is not None else "fewest GPU-hours",
        "energy_kwh": "least energy",
        "memory_bytes": "most memory free",
    }
    within = []
    if limits.max_days is not None:
        within.append(f"{limits.max_days:g} days")
    if limits.max_usd is not None:
        within.append(f"USD {limits.max_usd:,.0f}")
    bound = f" within {' and '.join(within)}" if within else ""
    numbers = [f"{best.days:,.1f} days"] if best.days is not None else []
    numbers += [f"USD {best.cost_usd:,.0f}"] if best.cost_usd is not None else []
    numbers += [f"{best.energy_kwh / 1e3:,.0f} MWh"] if best.energy_kwh is not None else []
    job = f" at {best.seq_length} tokens a sequence" if other_lengths else ""
    text = (
        f"Take {best.model}{job} on {best.num_gpus:,} x {best.cluster} "
        f"({words[objective]}{bound}): {', '.join([screen.firm(best.layout), *numbers])}."
    )
    return screen.prose(text, "bold green")


def _spare(result: SweepResult) -> str:
    """`1,000 GPUs: use 960`, with what it buys."""
    job = f"{result.model} under {result.framework}"
    start = f"{counted(result.num_gpus, 'GPU')} of {result.cluster}, {job}: use {result.use_gpus:,}"
    if result.iteration_s is None:
        return f"{start}, which has a layout; the rest are spares."
    gain = 1 - (result.use_gpus_iteration_s or 0.0) / result.iteration_s
    return f"{start}: the step is {gain:.0%} shorter, and the rest are spares."


def nothing_within(results: Sequence[SweepResult], limits: Limits) -> str:
    """The nearest case, or why there is none."""
    usable = [r for r in results if r.state == "ok"]
    if not usable:
        cases = counted(len(results), "case")
        return f"sweep: none of {cases} has a layout; the first: {results[0].message}"
    shortest = min(
        (r for r in usable if r.days is not None), key=lambda r: r.days or 0, default=None
    )
    if shortest is None:
        return "sweep: the tokens of the run are unknown, so there are no days; give --tokens"
    cost = f", USD {shortest.cost_usd:,.0f}" if shortest.cost_usd is not None else ""
    missing = limits.max_usd is not None and all(r.cost_usd is None for r in usable)
    hint = "; no case has a price, give --price CLUSTER=USD" if missing else ""
    return (
        f"sweep: none of {counted(len(usable), 'case')} stays within the limits; the shortest "
        f"takes {shortest.days:,.1f} days{cost} on {shortest.num_gpus:,} x {shortest.cluster}{hint}"
    )
