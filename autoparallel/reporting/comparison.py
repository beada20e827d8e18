"""The page of several training runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from autoparallel.plan import PlanEntry
from autoparallel.reporting import breakdown, hours
from autoparallel.reporting.candidates import read_candidates, thinned
from autoparallel.reporting.evidence import rests_on
from autoparallel.reporting.figures import compare, plans, trust
from autoparallel.reporting.page import Drawing, Item, Page, Prose, Section, Table
from autoparallel.reporting.run import TrainingRun
from autoparallel.reporting.wording import amount, asked, day_digits, decision, tied, time_text
from autoparallel.units import GIB

EACH = 12_000
"""Candidates drawn of all runs together."""


def labels(runs: Sequence[TrainingRun]) -> list[str]:
    """A name a run: the folder's, with a number where two are the same."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


def comparison_page(runs: Sequence[TrainingRun]) -> Page:
    """The winners of all runs: time, memory, whole run, candidates, and each decision."""
    named = list(zip(labels(runs), runs, strict=True))
    winners = [(label, run.winner) for label, run in named]
    return Page(
        title=f"{len(runs)} runs compared",
        decision=_decision(named),
        asked="; ".join(f"{label}: {asked(run.request)}" for label, run in named),
        facts=_facts(named),
        sections=[
            Section(name="winners", title="The winners", items=_winners(named)),
            Section(name="breakdown", title="Step time and memory", items=_breakdown(winners)),
            Section(name="run", title="The whole run", items=_whole(named)),
            Section(name="space", title="Candidates", items=_candidates(named)),
            Section(name="origins", title="Where the numbers come from", items=_origins(named)),
        ],
        footer=f"Compared: {', '.join(label for label, _ in named)}.",
    )


def _decision(named: Sequence[tuple[str, TrainingRun]]) -> str:
    """Which run is best at what they can be compared in."""
    fastest = max(named, key=lambda pair: pair[1].winner.tokens_per_s_per_gpu or 0.0)
    rate = fastest[1].winner.tokens_per_s_per_gpu or 0.0
    text = f"{fastest[0]} gets most out of a GPU: {rate:,.0f} tokens/s"
    models = {run.request.model.name for _, run in named}
    if len(models) > 1:
        return text + "; the runs train different models, so that says little."
    others = [pair for pair in named if pair is not fastest]
    near = [label for label, run in others if _rates(run.winner)[1] > _rates(fastest[1].winner)[0]]
    if near:
        text += f", with a range that overlaps with that of {', '.join(near)}"
    for name, field, unit in (("soonest done", "days", "days"), ("cheapest", "cost_usd", "USD")):
        known = [
            (label, v) for label, run in named if (v := getattr(run.winner, field)) is not None
        ]
        if len(known) == len(named):
            label, value = min(known, key=lambda pair: pair[1])
            text += f"; {label} is {name}: {value:,.1f} {unit}"
    return text + "."


def _rates(winner: PlanEntry) -> tuple[float, float]:
    """Tokens a second and GPU at the 95th and the 5th percentile of the step time."""
    seconds = winner.iteration_s or 0.0
    low, high = winner.iteration_s_interval or (seconds, seconds)
    rate = (winner.tokens_per_s_per_gpu or 0.0) * seconds
    return (rate / high, rate / low) if low else (0.0, 0.0)


def _facts(named: Sequence[tuple[str, TrainingRun]]) -> list[tuple[str, str]]:
    return [(label, f"{time_text(run.winner.iteration_s or 0.0)} a step") for label, run in named]


def _winners(named: Sequence[tuple[str, TrainingRun]]) -> list[Item]:
    rows = []
    for label, run in named:
        best, request = run.winner, run.request
        rows.append(
            [
                label,
                str(best.layout),
                request.model.name,
                f"{request.num_gpus:,} × {request.cluster.gpu.name}",
                f"{request.global_batch_size:,} × {request.seq_length:,}",
                amount(request.tokens),
                time_text(best.iteration_s or 0.0),
                f"{best.tokens_per_s_per_gpu or 0:,.0f}",
                f"{best.model_flops_utilization or 0:.1%}",
                f"{(best.memory_bytes or 0) / GIB:.1f}",
                f"{best.fits_probability or 0:.2f}",
            ]
        )
    head = ["run", "layout", "model", "GPUs", "batch × sequence", "tokens", "step", "tok/s/GPU"]
    items: list[Item] = [
        Table(
            caption="The winner of every run",
            head=[*head, "MFU", "GiB", "P(fits)"],
            rows=rows,
            words=frozenset({0, 1, 2, 3}),
        ),
        Drawing(
            name="rates-figure",
            title="Tokens a second and GPU",
            caption="With the range that the step time's 5-95 % range gives.",
            figure=compare.rates([(label, run.winner) for label, run in named]),
        ),
        Drawing(
            name="mfu-figure",
            title="Model FLOPs utilisation",
            caption="Of the dense bf16 peak of each GPU: how well each plan uses what it has.",
            figure=compare.utilisation([(label, run.winner) for label, run in named]),
        ),
    ]
    for label, run in named:
        text = decision(run.plan, tied(run.plan, run.where), run.capacity_bytes)
        items.append(Prose(text=f"{label}: {text}"))
    return items


def _breakdown(winners: Sequence[tuple[str, PlanEntry]]) -> list[Item]:
    steps, used = breakdown.step_bars(winners), breakdown.memory_bars(winners)
    return [
        Drawing(
            name="step-figure",
            title="Where a step goes",
            caption="Steps of different batches take different times; the next figure has shares.",
            figure=plans.step_parts(steps),
        ),
        Drawing(
            name="share-figure",
            title="The same in shares",
            caption="Parts of each winner's step in percent.",
            figure=plans.shares(steps),
        ),
        Drawing(
            name="memory-figure",
            title="Memory of the fullest GPU",
            caption="By cause.",
            figure=plans.memory_parts(used, None),
        ),
    ]


def _whole(named: Sequence[tuple[str, TrainingRun]]) -> list[Item]:
    found = [h for label, run in named for h in hours.hours(run, [(label, run.winner)])]
    if not found:
        return [Prose(text="No request has a number of tokens, so there is no whole run.")]
    rows = [
        [
            h.label,
            f"{h.whole.days:,.{day_digits(h.whole.days)}f}",
            f"{h.whole.goodput:.1%}",
            f"{h.whole.failures:,.0f}",
            f"{h.whole.cost_usd:,.0f}" if h.whole.cost_usd is not None else "-",
            f"{h.whole.energy_kwh / 1e3:,.1f}",
        ]
        for h in found
    ]
    return [
        Drawing(
            name="hours-figure",
            title="Where the days go",
            caption="Failures and checkpoints at the rates of each cluster's record.",
            figure=plans.hours(hours.hour_bars(found)),
        ),
        Table(
            caption="Goodput, cost and energy",
            head=["run", "days", "goodput", "failures", "USD", "MWh"],
            rows=rows,
        ),
    ]


def _candidates(named: Sequence[tuple[str, TrainingRun]]) -> list[Item]:
    found = [(label, read_candidates(run.folder)) for label, run in named]
    drawn = [(label, thinned(c, EACH // len(named))) for label, c in found if c is not None]
    if not drawn:
        return []
    text = f"{sum(c.size for _, c in drawn):,} fitting and other candidates were read."
    return [
        Drawing(
            name="fronts-figure",
            title="Time against memory: the fronts",
            caption=f"Along a front no fitting layout of that run is better in both. {text}",
            figure=compare.fronts(drawn),
        )
    ]


def _origins(named: Sequence[tuple[str, TrainingRun]]) -> list[Item]:
    items: list[Item] = [
        Drawing(
            name="origin-figure",
            title="What the predicted steps rest on",
            caption="Shares of each winner's step by the state of the constants behind its parts.",
            figure=trust.origins([(label, run.winner) for label, run in named]),
        )
    ]
    notes = [Prose(text=f"{label}: {rests_on(run.where.calibration)}") for label, run in named]
    return [*items, *notes]
