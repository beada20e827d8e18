"""`autoparallel explain`: why a layout lost, does not fit or is not legal, and what helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoparallel.cli import common, screen
from autoparallel.errors import ConfigError, NothingFitsError

if TYPE_CHECKING:
    from autoparallel.layout import Layout
    from autoparallel.plan import Estimate, PlanEntry
    from autoparallel.ranking import Setting
    from autoparallel.ranking.reasons import Verdict
    from autoparallel.ranking.shadow import MemoryPrice, RatePrice
    from autoparallel.request import TrainingRequest


def explain_verb(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or its plan.json.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="LAYOUT", help="Such as 'tp8 pp8 mbs1 sp zero1'."),
    ] = None,
    json: common.JsonFlag = False,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
) -> None:
    """Say why a layout lost, and what would change that."""
    from autoparallel.layout import Layout
    from autoparallel.plan import load_plan
    from autoparallel.request import TrainingRequest

    plan, text = load_plan(run), " ".join(words or ())
    if not text.strip():
        raise ConfigError("layout: missing; write it after RUN, such as 'tp8 pp8 mbs1 sp zero1'")
    layout = Layout.parse(text)
    if not plan.entries:
        raise NothingFitsError(f"{run}: its plan is empty, so there is no winner to compare with")
    request = common.moved(
        TrainingRequest.from_mapping(plan.request, f"{run} request"),
        {"config_dir": config_dir, "profiles_dir": profiles_dir},
    )
    _answer(request, plan.entries[0].layout, layout, as_json=json)


def _answer(request: TrainingRequest, best: Layout, layout: Layout, *, as_json: bool) -> None:
    """Predict both again, under the profiles of now, and compare."""
    from autoparallel.planning import estimate, same_framework, solved
    from autoparallel.ranking import setting
    from autoparallel.ranking.reasons import helping_step, judged, steps
    from autoparallel.ranking.shadow import job_memory_prices, memory_prices, rate_prices

    searched_in, among = solved(request)
    winner = estimate(request, best, among=among)
    given = estimate(request, layout, among=among)
    where = setting(same_framework(request, layout)[0])
    now = judged(where, [given.entry.layout])[0]
    near = steps(where, given.entry.layout)
    reasons = Reasons(
        better=helping_step(where, given.entry.layout, now, near),
        memory=memory_prices(where, now, near),
        rates=rate_prices(where, now),
        job=job_memory_prices(searched_in, among.sample, winner.entry.iteration_s or 0.0),
        winning=_winning(request, where, given, winner.entry),
    )
    if as_json:
        common.print_json(_record(given, winner.entry, reasons))
    else:
        screen.show(_screen(request, given, winner.entry, where, reasons))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """What would change a layout's place.

    Attributes:
        better: The change of one knob that helps most; None when none does.
        memory, rates: Shadow prices of the GPU's memory and of the machine's rates.
        job: Shadow prices of memory for the whole search, against its winner.
        winning: The nearest layout that is as fast as the winner; None for the winner.
    """

    better: Verdict | None
    memory: Sequence[MemoryPrice]
    rates: Sequence[RatePrice]
    job: Sequence[MemoryPrice]
    winning: Verdict | None


def _winning(
    request: TrainingRequest, where: Setting, given: Estimate, winner: PlanEntry
) -> Verdict | None:
    """The nearest winning layout; of another framework only when it can be as fast."""
    from autoparallel.ranking.shadow import way_to_win

    if winner.iteration_s is None or where.request.framework != request.framework:
        return None
    return way_to_win(where, given.entry.layout, winner.layout, winner.iteration_s)


def binding_constraint(given: Estimate, winner: PlanEntry) -> str:
    """What stands between a layout and first place: a rule, a memory part or a part of the step."""
    from autoparallel.ranking.reasons import changes

    entry = given.entry
    if not given.legal:
        return f"rule {given.illegal_reasons[0].rule}"
    if not entry.fits:
        parts = entry.memory_parts or {}
        return f"memory: {max(parts, key=lambda name: parts[name])}"
    slower = [c for c in changes(winner.parts or {}, entry.parts or {}) if c.amount > 0]
    return f"time: {slower[0].part}" if slower else "none"


def _record(given: Estimate, winner: PlanEntry, reasons: Reasons) -> dict[str, Any]:
    from autoparallel.ranking.reasons import changes

    entry, data = given.entry, given.to_json()
    apart = {"parts": (winner.parts, entry.parts)}
    apart["memory_parts"] = (winner.memory_parts, entry.memory_parts)
    return {
        "layout": str(entry.layout),
        "winner": str(winner.layout),
        "legal": given.legal,
        "illegal_reasons": data["illegal_reasons"],
        "place": data["place"],
        "iteration_s": entry.iteration_s,
        "winner_iteration_s": winner.iteration_s,
        "memory_bytes": entry.memory_bytes,
        "fits_probability": entry.fits_probability,
        "binding_constraint": binding_constraint(given, winner),
        **{
            name: {c.part: c.amount for c in changes(best or {}, own or {})}
            if given.legal
            else None
            for name, (best, own) in apart.items()
        },
        "change": _changed(entry, reasons.better),
        "to_win": _changed(entry, reasons.winning),
        "shadow_prices": {
            "memory": [_memory_record(entry, price) for price in reasons.memory],
            "job_memory": [_memory_record(winner, price) for price in reasons.job],
            "rates": {price.resource: price.gain_fraction for price in reasons.rates},
        },
    }


def _changed(entry: PlanEntry, other: Verdict | None) -> dict[str, Any] | None:
    """Another layout, as the words that go and come and what it would give."""
    from autoparallel.ranking.reasons import word_changes

    if other is None:
        return None
    gone, come = word_changes(entry.layout, other.layout)
    return {
        "layout": str(other.layout),
        "without": gone,
        "with": come,
        "iteration_s": other.iteration_s,
        "memory_bytes": other.memory_bytes,
        "fits_probability": other.fits_probability,
    }


def _memory_record(entry: PlanEntry, price: MemoryPrice) -> dict[str, Any]:
    from autoparallel.ranking.reasons import word_changes

    gone, come = word_changes(entry.layout, price.layout)
    return {
        "more_bytes": price.more_bytes,
        "layout": str(price.layout),
        "without": gone,
        "with": come,
        "iteration_s": price.iteration_s,
        "gain_fraction": price.gain_fraction,
    }


def _screen(
    request: TrainingRequest,
    given: Estimate,
    winner: PlanEntry,
    where: Setting,
    reasons: Reasons,
) -> list[screen.Line]:
    from autoparallel.cli import plan_view
    from autoparallel.units import GIB

    entry = given.entry
    lines = [*screen.prose(common.first_line(request)), *plan_view.broken_rules(given)]
    if given.legal:
        lines += plan_view.entry_table(["best", "yours"], [winner, entry])
        lines += plan_view.difference_tables(winner, entry)
    if given.legal and not entry.fits:
        over = (entry.memory_bytes or 0.0) - request.cluster.gpu.memory_bytes
        text = f"It would not fit (P={entry.fits_probability:.2f}): {over / GIB:.1f} GiB too much."
        lines += screen.prose(text, "yellow")
    lines += screen.prose(f"Binding: {binding_constraint(given, winner)}.", "bold")
    lines += _prices(entry, reasons)
    lines += plan_view.helping(entry, reasons.better)
    lines += _way(entry, reasons)
    return [*lines, *plan_view.rests_on(where, entry if given.legal else None)]


def _prices(entry: PlanEntry, reasons: Reasons) -> list[screen.Line]:
    """Shadow prices, one line each."""
    from autoparallel.ranking.reasons import word_changes
    from autoparallel.ranking.shadow import LEAST_GAIN, MORE
    from autoparallel.reporting.wording import time_text
    from autoparallel.units import GIB

    lines: list[screen.Line] = []
    for price in reasons.memory:
        gone, come = word_changes(entry.layout, price.layout)
        swap = (
            f"{screen.firm(gone)} become {screen.firm(come)}" if come else screen.firm(gone) + " go"
        )
        swap = swap if gone else f"{screen.firm(come)} come"
        lines += screen.prose(
            f"{price.more_bytes / GIB:.1f} GiB more a GPU would let {swap}: "
            f"-{price.gain_fraction:.1%} ({time_text(price.iteration_s)})."
        )
    for price in reasons.job[:1]:
        lines += screen.prose(
            f"For the job, {price.more_bytes / GIB:.1f} GiB more a GPU would allow "
            f"{screen.firm(price.layout)}: -{price.gain_fraction:.1%} of the best step."
        )
    told = [p for p in reasons.rates if p.gain_fraction >= LEAST_GAIN]
    if told:
        shown = ", ".join(screen.firm(f"{p.resource} -{p.gain_fraction:.1%}") for p in told)
        lines += screen.prose(f"{MORE:.0%} more would save: {shown}.")
    return lines


def _way(entry: PlanEntry, reasons: Reasons) -> list[screen.Line]:
    """The nearest layout that would win, when one change is not enough."""
    from autoparallel.ranking.reasons import word_changes
    from autoparallel.reporting.wording import time_text

    best = reasons.winning
    same = reasons.better is not None and best is not None and best.layout == reasons.better.layout
    if best is None or best.iteration_s is None:
        return []
    if same:
        return screen.prose("That is enough to win.", "bold green")
    gone, come = word_changes(entry.layout, best.layout)
    swap = f"{screen.firm(gone or 'nothing')} -> {screen.firm(come or 'nothing')}"
    text = f"Nearest layout that would win: {swap}: {time_text(best.iteration_s)} a step."
    return screen.prose(text, "bold green")
