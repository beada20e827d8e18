"""The page of one training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoparallel.constants import FITS
from autoparallel.counts import counted
from autoparallel.plan import PlanEntry
from autoparallel.reporting import breakdown, stage_memory
from autoparallel.reporting.baseline import Given
from autoparallel.reporting.candidates import Candidates, grid, parallel_lines, thinned
from autoparallel.reporting.changes import knob_items, your_items
from autoparallel.reporting.evidence import measured_section, origin_section
from autoparallel.reporting.figures import plans, schedule, space
from autoparallel.reporting.outlook import run_items, scale_items
from autoparallel.reporting.page import Drawing, Item, Page, Prose, Section, Table
from autoparallel.reporting.run import TrainingRun
from autoparallel.reporting.timeline import TRACE_ENDING, PipelineStep
from autoparallel.reporting.wording import (
    asked,
    day_digits,
    decision,
    number,
    part_name,
    tied,
    time_scale,
    time_text,
)
from autoparallel.units import GIB

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
        Section(name="knobs", title="What each knob buys", items=knob_items(run)),
        Section(name="space", title="All candidates", items=_space(run, of.candidates)),
        Section(name="pipeline", title="The pipeline", items=_pipeline(run, of.step)),
    ]
    progress("planning again for other sizes and other hardware")
    sections += [
        Section(name="scale", title="Scale and sensitivity", items=scale_items(run)),
        Section(name="run", title="The whole run", items=run_items(run, bars)),
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
        ("days", number(best.days, day_digits(best.days))),
        ("cost", f"USD {best.cost_usd:,.0f}" if best.cost_usd is not None else "no price"),
        ("energy", _energy(best.energy_kwh)),
    ]
    if best.measured and best.measured.iteration_s and best.corrected:
        facts = [(name, value) for name, value in facts if value != "no price"]
        facts.insert(1, ("measured", time_text(best.measured.iteration_s)))
    return [(name, value) for name, value in facts if value != "-"]


def _energy(kwh: float | None) -> str:
    if kwh is None:
        return "-"
    return f"{kwh / 1e3:,.1f} MWh" if kwh >= 100 else f"{kwh:.2g} kWh"


def _span(pair: tuple[float, float] | None, scale: float, digits: int) -> str:
    if pair is None:
        return "-"
    low, high = pair
    return f"{low * scale:.{digits}f} to {high * scale:.{digits}f}"


# ---- short list -------------------------------------------------------------------------------


def _short_list(run: TrainingRun, equal: Sequence[bool]) -> list[Item]:
    entries = [(f"#{e.rank}", e) for e in run.plan.entries]
    scale, unit, digits = time_scale(run.winner.iteration_s or 0.0)
    proved = any(e.corrected for e in run.plan.entries)
    rows = [
        [
            label + ("=" if same and e.rank != 1 else ""),
            str(e.layout),
            number(e.iteration_s, digits, scale),
            _span(e.iteration_s_interval, scale, max(digits - 1, 0)),
            *(_trial_cells(e, digits, scale) if proved else _rate_cells(e)),
            number(e.memory_bytes, 1, 1 / GIB),
            number((e.corrected or e).fits_probability, 2),
            number((e.corrected or e).best_probability, 2),
            number(e.days, day_digits(e.days)),
        ]
        for (label, e), same in zip(entries, equal, strict=True)
    ]
    middle = [f"measured {unit}", f"corrected {unit}"] if proved else ["tok/s/GPU", "MFU %"]
    order = "by what trials corrected" if proved else "fastest first"
    ranges = ", as trials corrected them" if proved else ""
    return [
        Table(
            caption=f"The short list, {order}; = cannot be told from the first",
            head=[
                *("rank", "layout", f"step {unit}", "5-95 %", *middle),
                *("GiB", "P(fits)", "P(best)", "days"),
            ],
            rows=rows,
            words=frozenset({0, 1}),
        ),
        Drawing(
            name="short-list-figure",
            title=f"Step times with their 5-95 % ranges{ranges}",
            caption=(
                "Where ranges overlap the order rests on what two layouts do not share; "
                "those that beat the first in a quarter of the samples count as tied."
            ),
            figure=plans.short_list(entries, equal),
        ),
    ]


def _rate_cells(entry: PlanEntry) -> list[str]:
    """What a plan says of a layout's throughput."""
    return [number(entry.tokens_per_s_per_gpu), number(entry.model_flops_utilization, 1, 100)]


def _trial_cells(entry: PlanEntry, digits: int, scale: float) -> list[str]:
    """The measured step time, and the prediction that the trials corrected."""
    found = (entry.measured, entry.corrected)
    return [number(one.iteration_s if one else None, digits, scale) for one in found]


# ---- breakdown --------------------------------------------------------------------------------


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
        [part_name(name, suffix), *(number(bar.parts[name], digits, scale) for bar in bars)]
        for name in parts
    ]
    rows.append(["total", *(number(bar.total, digits, scale) for bar in bars)])
    rows.append(["layout", *(bar.layout for bar in bars)])
    return Table(
        caption=caption, head=["part", *(bar.label for bar in bars)], rows=rows, folded=True
    )


# ---- all candidates ---------------------------------------------------------------------------


def _space(run: TrainingRun, found: Candidates | None) -> list[Item]:
    plan = run.plan
    items: list[Item] = [
        Prose(
            text=f"{counted(plan.considered, 'layout')} considered, {plan.legal:,} legal, "
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
                    f"{counted(len(lines.band), 'layout')}, one line each: the fastest, and an "
                    "even sample of the others. A click in the legend hides a band."
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


# ---- pipeline ---------------------------------------------------------------------------------


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
