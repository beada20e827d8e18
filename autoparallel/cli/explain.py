"""`autoparallel explain`: why a layout lost, does not fit or is not legal, and what helps."""

from __future__ import annotations

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
    """Say why a layout is not the winner of a run, part by part, and what would change it."""
    from autoparallel.layout import Layout
    from autoparallel.plan import load_plan
    from autoparallel.request import TrainingRequest

    text = " ".join(words or ())
    if not text.strip():
        raise ConfigError("layout: missing; write it after RUN, such as 'tp8 pp8 mbs1 sp zero1'")
    layout, plan = Layout.parse(text), load_plan(run)
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
    from autoparallel.ranking.reasons import helping_step, judged

    _, among = solved(request)
    winner = estimate(request, best, among=among)
    given = estimate(request, layout, among=among)
    where = setting(same_framework(request, layout)[0])
    now = judged(where, [given.entry.layout])[0]
    better = helping_step(where, given.entry.layout, now)
    if as_json:
        common.print_json(_record(given, winner.entry, better))
    else:
        screen.show(_screen(request, given, winner.entry, where, better))


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


def _record(given: Estimate, winner: PlanEntry, better: Verdict | None) -> dict[str, Any]:
    from autoparallel.ranking.reasons import changes, word_changes

    entry = given.entry
    change = None
    if better is not None:
        gone, come = word_changes(entry.layout, better.layout)
        change = {
            "layout": str(better.layout),
            "without": gone,
            "with": come,
            "iteration_s": better.iteration_s,
            "memory_bytes": better.memory_bytes,
            "fits_probability": better.fits_probability,
        }
    return {
        "layout": str(entry.layout),
        "winner": str(winner.layout),
        "legal": given.legal,
        "illegal_reasons": given.to_json()["illegal_reasons"],
        "place": given.to_json()["place"],
        "iteration_s": entry.iteration_s,
        "winner_iteration_s": winner.iteration_s,
        "memory_bytes": entry.memory_bytes,
        "fits_probability": entry.fits_probability,
        "binding_constraint": binding_constraint(given, winner),
        "parts": {c.part: c.amount for c in changes(winner.parts or {}, entry.parts or {})}
        if given.legal
        else None,
        "memory_parts": {
            c.part: c.amount for c in changes(winner.memory_parts or {}, entry.memory_parts or {})
        }
        if given.legal
        else None,
        "change": change,
    }


def _screen(
    request: TrainingRequest,
    given: Estimate,
    winner: PlanEntry,
    where: Setting,
    better: Verdict | None,
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
    lines += plan_view.helping(entry, better)
    return [*lines, *plan_view.rests_on(where.calibration, entry if given.legal else None)]
