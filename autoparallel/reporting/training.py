"""The page of one training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoparallel.constants import FITS
from autoparallel.layout import Layout
from autoparallel.plan import Estimate, PlanEntry
from autoparallel.planning import estimate
from autoparallel.ranking.reasons import Bought, bought
from autoparallel.reporting import breakdown, differences, hours, stage_memory, what_if
from autoparallel.reporting.baseline import Given
from autoparallel.reporting.candidates import Candidates, grid, parallel_lines, thinned
from autoparallel.reporting.evidence import measured_section, origin_section
from autoparallel.reporting.figures import plans, schedule, space
from autoparallel.reporting.figures import what_if as what_if_figures
from autoparallel.reporting.page import Drawing, Item, Page, Prose, Section, Table
from autoparallel.reporting.run import TrainingRun
from autoparallel.reporting.timeline import TRACE_ENDING, PipelineStep
from autoparallel.reporting.wording import (
    asked,
    day_digits,
    decision,
    part_name,
    short,
    signed,
    tied,
    time_scale,
    time_text,
)
from autoparallel.units import GIB, TERA

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Everything a page is made of.

    Attributes:
        baseline: The user's own configuration, if there is one.
        step: The winner's pipeline.
    """

    run: TrainingRun
    baseline: Given | None
    candidates: Candidates | None
    step: PipelineStep


def training_page(of: Sources, progress: Progress) -> Page:
    """The whole page; `progress` is told what is being worked on."""
    run = of.run
    equal = tied(run.plan, run.where)
    own = of.baseline.layout if of.baseline else None
    progress("breaking down the top plans")
    bars = breakdown.rivals(run, own)
    sections = [
        Section(name="short-list", title="Short list", items=_short_list(run, equal)),
        Section(name="breakdown", title="Step time and memory", items=_breakdown(run, bars)),
        Section(name="yours", title="Your configuration", items=your_items(run, of.baseline)),
        Section(name="knobs", title="What each knob buys", items=_knobs(run)),
        Section(name="space", title="All candidates", items=_space(run, of.candidates)),
        Section(name="pipeline", title="The pipeline", items=_pipeline(run, of.step)),
    ]
    progress("planning again for other sizes and other hardware")
    sections += [
        Section(name="scale", title="Scale and sensitivity", items=_scale(run)),
        Section(name="run", title="The whole run", items=_whole_run(run, bars)),
        measured_section(run),
        origin_section(run),
    ]
    return Page(
        title=_title(run),
        decision=decision(run.plan, equal, run.capacity_bytes),
        asked=asked(run.request),
        facts=_facts(run),
        sections=sections,
        footer=_footer(run),
    )


def _title(run: TrainingRun) -> str:
    request = run.request
    return f"{request.model.name} on {request.num_gpus:,} × {request.cluster.gpu.name}"


def _footer(run: TrainingRun) -> str:
    made = run.plan.provenance
    parts = [f"autoparallel {made.versions.get('autoparallel', 'unknown')}"]
    parts += [f"git {made.git[:12]}"] if made.git else []
    parts += [f"profiles {made.profile_digest}", f"catalog {made.catalog_digest}"]
    return f"Plan of {run.name}: " + ", ".join(parts) + "."


def _facts(run: TrainingRun) -> list[tuple[str, str]]:
    """The few numbers beside the decision."""
    best = run.winner
    facts = [
        ("step time", time_text(best.iteration_s or 0.0)),
        ("tokens/s/GPU", f"{best.tokens_per_s_per_gpu or 0:,.0f}"),
        ("MFU, of dense bf16 peak", f"{best.model_flops_utilization or 0:.1%}"),
        ("memory", f"{(best.memory_bytes or 0) / GIB:.1f} GiB"),
        ("chance to fit", f"{best.fits_probability or 0:.0%}"),
        ("days", _number(best.days, day_digits(best.days))),
        ("cost", f"USD {best.cost_usd:,.0f}" if best.cost_usd is not None else "no price"),
        ("energy", f"{best.energy_kwh / 1e3:,.1f} MWh" if best.energy_kwh is not None else "-"),
    ]
    return [(name, value) for name, value in facts if value != "-"]


def _number(value: float | None, digits: int = 0, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:,.{digits}f}"


def _span(pair: tuple[float, float] | None, scale: float, digits: int) -> str:
    if pair is None:
        return "-"
    low, high = pair
    return f"{low * scale:.{digits}f} to {high * scale:.{digits}f}"


# ---- short list ----------------------------------------------------------------------------------


def _short_list(run: TrainingRun, equal: Sequence[bool]) -> list[Item]:
    entries = [(f"#{e.rank}", e) for e in run.plan.entries]
    scale, unit, digits = time_scale(run.winner.iteration_s or 0.0)
    rows = [
        [
            label + ("=" if same and e.rank != 1 else ""),
            str(e.layout),
            _number(e.iteration_s, digits, scale),
            _span(e.iteration_s_interval, scale, max(digits - 1, 0)),
            _number(e.tokens_per_s_per_gpu),
            _number(e.model_flops_utilization, 1, 100),
            _number(e.memory_bytes, 1, 1 / GIB),
            _number(e.fits_probability, 2),
            _number(e.best_probability, 2),
            _number(e.days, day_digits(e.days)),
        ]
        for (label, e), same in zip(entries, equal, strict=True)
    ]
    head = ["rank", "layout", f"step {unit}", "5-95 %", "tok/s/GPU", "MFU %", "GiB", "P(fits)"]
    return [
        Table(
            caption="The short list, fastest first; = cannot be told from the first",
            head=[*head, "P(best)", "days"],
            rows=rows,
            words=frozenset({0, 1}),
        ),
        Drawing(
            name="short-list-figure",
            title="Step time with its 5-95 % range",
            caption=(
                "Where ranges overlap the order rests on what two layouts do not share; "
                "those that beat the first in a quarter of the samples count as tied."
            ),
            figure=plans.short_list(entries, equal),
        ),
    ]


# ---- breakdown -----------------------------------------------------------------------------------


def _breakdown(run: TrainingRun, entries: Sequence[tuple[str, PlanEntry]]) -> list[Item]:
    steps, used = breakdown.step_bars(entries), breakdown.memory_bars(entries)
    scale, unit, digits = time_scale(run.winner.iteration_s or 0.0)
    return [
        Drawing(
            name="step-figure",
            title="Where a step goes",
            caption="Only the part of communication that compute does not hide is counted.",
            figure=plans.step_parts(steps),
        ),
        _parts_table(f"Step parts, {unit}", steps, "_s", scale, digits),
        Drawing(
            name="memory-figure",
            title="Memory of the fullest GPU",
            caption="The dashed line is what the driver reports as the GPU's memory.",
            figure=plans.memory_parts(used, run.capacity_bytes),
        ),
        _parts_table("Memory parts, GiB", used, "_bytes", 1 / GIB, 2),
    ]


def _parts_table(
    caption: str, bars: Sequence[breakdown.Bar], suffix: str, scale: float, digits: int
) -> Table:
    parts = [name for name in bars[0].parts if any(bar.parts[name] for bar in bars)]
    rows = [
        [part_name(name, suffix), *(_number(bar.parts[name], digits, scale) for bar in bars)]
        for name in parts
    ]
    rows.append(["total", *(_number(bar.total, digits, scale) for bar in bars)])
    rows.append(["layout", *(bar.layout for bar in bars)])
    return Table(
        caption=caption, head=["part", *(bar.label for bar in bars)], rows=rows, folded=True
    )


# ---- the user's own ------------------------------------------------------------------------------


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


# ---- knobs ---------------------------------------------------------------------------------------


def _knobs(run: TrainingRun) -> list[Item]:
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


# ---- all candidates ------------------------------------------------------------------------------


def _space(run: TrainingRun, found: Candidates | None) -> list[Item]:
    plan = run.plan
    items: list[Item] = [
        Prose(
            text=f"{plan.considered:,} layouts considered, {plan.legal:,} legal, "
            f"{plan.evaluated:,} evaluated, {plan.feasible:,} fit, in {plan.search_s:.2f} s."
        )
    ]
    if found is None or not found.size:
        return [
            *items,
            Prose(text="No candidates.parquet beside the plan, so none are drawn.", kind="note"),
        ]
    drawn = thinned(found)
    if drawn.size < plan.evaluated:
        kept = f"{found.size:,} of {plan.evaluated:,} evaluated candidates are in the run's file"
        text = f"{kept}; {drawn.size:,} are drawn: the Pareto front, the fastest, an even rest."
        items.append(Prose(text=text, kind="note"))
    items.append(
        Drawing(
            name="pareto-figure",
            title="Time against memory",
            caption=(
                "Every point is a layout; along the front no fitting layout is better in both. "
                f"A layout counts as fitting from P {FITS:.1f}."
            ),
            figure=space.time_against_memory(drawn, run.capacity_bytes),
        )
    )
    if lines := parallel_lines(found):
        items.append(
            Drawing(
                name="parallel-figure",
                title="Knobs of the fitting layouts",
                caption=(
                    f"{len(lines.band):,} layouts, one line each: the fastest, and an even sample "
                    "of the others. A click in the legend hides a band."
                ),
                figure=space.parallel_coordinates(lines),
            )
        )
    return [*items, *_meshes(run, found)]


def _meshes(run: TrainingRun, found: Candidates) -> list[Item]:
    plan = run.plan
    return [
        Drawing(
            name="mesh-figure",
            title="Best step time by tensor and pipeline parallel size",
            caption="The fastest fitting layout of each pair; lighter is faster, empty not legal.",
            figure=space.best_by_mesh(grid(found)),
        ),
        Drawing(
            name="sieve-figure",
            title="What was left out, and why",
            caption="Candidates by the rule that left them out, by memory, and those that fit.",
            figure=space.left_out(plan.pruned, plan.evaluated - plan.feasible, plan.feasible),
        ),
    ]


# ---- pipeline ------------------------------------------------------------------------------------


def _pipeline(run: TrainingRun, step: PipelineStep) -> list[Item]:
    layout = run.winner.layout
    if layout.pipeline_model_parallel_size == 1:
        alone = "The winner has no pipeline: every GPU runs all layers, micro-batch by micro-batch."
        items: list[Item] = [Prose(text=alone)]
    else:
        items = []
    off = step.pipeline_s / step.closed_form_s - 1
    shown, first = len(step.drawn), step.first
    cut = (
        f" The first {shown:,} of {len(step.pieces):,} pieces." if shown < len(step.pieces) else ""
    )
    return [
        *items,
        Drawing(
            name="timeline-figure",
            title="One step of the winner's pipeline",
            caption=(
                f"From the event simulator: {time_text(step.pipeline_s)}, {off:+.1%} against the "
                f"closed form that the ranking used; ranks wait {step.idle_share:.1%} of it. "
                f"Later chunks are lighter.{cut}"
            ),
            figure=schedule.timeline(step, step.drawn),
        ),
        Drawing(
            name="fill-figure",
            title="Its first part, enlarged",
            caption=(
                "Until rank 0 has run its first backwards: ranks fill one by one. The file beside "
                f"this page that ends in {TRACE_ENDING} holds every piece; Perfetto opens it."
            ),
            figure=schedule.timeline(step, first),
        ),
        Drawing(
            name="stages-figure",
            title="Memory over the pipeline",
            caption="The peak of every pipeline rank; earlier ranks keep more micro-batches alive.",
            figure=plans.stages(stage_memory.rank_bars(run, layout), run.capacity_bytes),
        ),
    ]


# ---- scale and sensitivity -----------------------------------------------------------------------


def _scale(run: TrainingRun) -> list[Item]:
    sizes, cases = what_if.scaling(run), what_if.sensitivity(run)
    scale, unit, digits = time_scale(run.winner.iteration_s or 0.0)
    rows = [
        [
            f"{s.gpus:,}",
            str(s.entry.layout) if s.entry else "nothing fits",
            _number(s.entry.iteration_s if s.entry else None, digits, scale),
            _number(s.tokens_per_s),
            _number(s.efficiency, 0, 100),
            _number(s.entry.days if s.entry else None, 1),
            _number(s.entry.cost_usd if s.entry else None),
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


# ---- the whole run -------------------------------------------------------------------------------


def _whole_run(run: TrainingRun, entries: Sequence[tuple[str, PlanEntry]]) -> list[Item]:
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
            _number(h.whole.days, day_digits(h.whole.days)),
            _number(h.whole.goodput, 1, 100),
            _number(h.whole.failures, 0),
            _number(h.whole.checkpoint_interval_s, 0, 1 / 60),
            _number(h.whole.cost_usd),
            _number(h.whole.energy_kwh, 1, 1e-3),
            _number(h.whole.co2_kg, 1, 1e-3),
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
    flops = f", {peak / TERA:,.0f} TFLOPS dense bf16" if peak else ""
    if notes:
        items.append(Prose(text=f"{cluster.name} has " + " and ".join(notes) + ".", kind="note"))
    return [*items, Prose(text=f"{cluster.gpu.name}: {power}{flops}.", kind="note")]
