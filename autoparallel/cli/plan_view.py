"""A plan on screen: the table, the decision, what the winner's knobs buy, what it all rests on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoparallel.cli import screen
from autoparallel.cli.screen import Column, Line, firm, prose
from autoparallel.counts import counted
from autoparallel.reporting import wording
from autoparallel.reporting.wording import day_digits, part_name, time_scale, time_text
from autoparallel.units import GIB

if TYPE_CHECKING:
    from autoparallel.cost.simulated import Simulated
    from autoparallel.plan import Estimate, Plan, PlanEntry
    from autoparallel.ranking import Setting
    from autoparallel.ranking.reasons import Bought, Change, Verdict

SHOWN_RULES = 5
SHOWN_PARTS = 4
LONG_KNOB = 24
"""Letters beyond which a knob has a line of its own."""


def entry_table(
    labels: Sequence[str], entries: Sequence[PlanEntry], width: int | None = None
) -> list[Line]:
    """One row a layout; on a narrow terminal the layout has a line of its own below its numbers."""
    room = screen.width() if width is None else width
    layouts = Column(head="layout", cells=[str(e.layout) for e in entries], right=False)
    numbers = _numbers(entries)
    first = Column(head="#", cells=labels, right=False)
    needed = sum(c.width + len(screen.GAP) for c in (first, layouts, *numbers))
    bars = [screen.bar(e.parts or {}) for e in entries]
    if needed + len("step") <= room:
        lines = screen.rows([first, layouts, *numbers])
        cells = min(screen.BAR_CELLS, room - needed)
        if cells >= screen.BAR_CELLS // 2:
            bars = [screen.bar(e.parts or {}, cells) for e in entries]
            lines[0].append((screen.GAP + "step", "bold"))
            lines[1:] = [
                [*line, (screen.GAP, ""), *b] for line, b in zip(lines[1:], bars, strict=True)
            ]
        return lines
    lines = screen.rows([first, *_within(numbers, room - first.width)])
    indent = " " * (first.width + len(screen.GAP))
    out = [lines[0]]
    for line, layout, cells_of in zip(lines[1:], layouts.cells, bars, strict=True):
        out += [line, [(indent + layout, "cyan")]]
        if len(indent + layout) + len(screen.GAP) + screen.BAR_CELLS <= room:
            out[-1] += [(screen.GAP, ""), *cells_of]
    return out


def nothing_of(name: str, plan: Plan) -> list[Line]:
    """Why a framework that was compared has no layout; nothing where it has one."""
    if plan.entries:
        return []
    if plan.legal:
        return prose(f"{name}: none of {counted(plan.legal, 'legal layout')} fits.")
    from autoparallel.rules import binding

    rule = binding(plan.pruned)
    return prose(f"{name}: no layout is legal; those that came furthest break the rule {rule!r}.")


def contested(first: tuple[str, PlanEntry], others: Iterable[tuple[str, PlanEntry]]) -> list[Line]:
    """Frameworks whose range of step times reaches into that of the fastest one's layout."""
    name, best = first
    if best.iteration_s_interval is None:
        return []
    latest = best.iteration_s_interval[1]
    ranges = [(other, entry.iteration_s_interval) for other, entry in others]
    near = [other for other, found in ranges if found and found[0] < latest]
    if not near:
        return []
    text = f"{name}'s range overlaps with that of {', '.join(near)}"
    return prose(f"{text}: measure before choosing between frameworks.", "yellow")


def peak_note(entry: PlanEntry) -> list[Line]:
    """What the MFU column counts against, where a reader could take it for a narrower peak."""
    if entry.layout.precision in ("bf16", "fp16"):
        return []
    return screen.prose("MFU % is of the dense bf16 peak, whatever the precision.", "dim")


def _within(numbers: list[Column], room: int) -> list[Column]:
    """The columns that fit beside each other; the least needed go first."""
    kept = list(numbers)
    for head in ("tok/s/GPU", "days", "P(best)", "MFU %"):
        if sum(c.width + len(screen.GAP) for c in kept) <= room:
            break
        kept = [c for c in kept if c.head != head]
    return kept


def _numbers(entries: Sequence[PlanEntry]) -> list[Column]:
    scale, unit, digits = time_scale(entries[0].iteration_s or 0.0)
    ranges = []
    for entry in entries:
        low, high = entry.iteration_s_interval or (0.0, 0.0)
        ends = (f"{x * scale:.{max(digits - 1, 0)}f}" for x in (low, high))
        ranges.append("-".join(ends))
    return [
        Column(head=f"step {unit}", cells=[_of(e.iteration_s, scale, digits) for e in entries]),
        Column(head="5-95 %", cells=ranges),
        Column(head="tok/s/GPU", cells=[_of(e.tokens_per_s_per_gpu, 1, 0) for e in entries]),
        Column(head="MFU %", cells=[_of(e.model_flops_utilization, 100, 1) for e in entries]),
        Column(head="days", cells=[_of(e.days, 1, day_digits(entries[0].days)) for e in entries]),
        Column(head="GiB", cells=[_of(e.memory_bytes, 1 / GIB, 1) for e in entries]),
        Column(head="P(fits)", cells=[_of(e.fits_probability, 1, 2) for e in entries]),
        Column(head="P(best)", cells=[_of(e.best_probability, 1, 2) for e in entries]),
    ]


def _of(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:,.{digits}f}"


def decision(plan: Plan, equal: Sequence[bool], capacity_bytes: float) -> list[Line]:
    """What to take, in one sentence."""
    text = wording.decision(plan, equal, capacity_bytes, mark="(=) ")
    winner = str(plan.entries[0].layout)
    return prose(text.replace(winner, firm(winner), 1), "bold green")


def runner_up(plan: Plan) -> list[Line]:
    """Why the next best layout that is predicted to differ lost."""
    winner = plan.entries[0]
    for entry in plan.entries[1:]:
        numbers = (entry.iteration_s, entry.memory_bytes)
        if not _alike(numbers, (winner.iteration_s, winner.memory_bytes)):
            return compared("Next,", entry, winner)
    return []


def compared(name: str, entry: PlanEntry, winner: PlanEntry) -> list[Line]:
    """Why another layout lost to the winner, its largest differences first."""
    if entry.iteration_s is None or winner.iteration_s is None:
        return []
    from autoparallel.ranking.reasons import changes

    delta = entry.iteration_s - winner.iteration_s
    share = delta / winner.iteration_s
    times = changes(winner.parts or {}, entry.parts or {})
    room = changes(winner.memory_parts or {}, entry.memory_parts or {})
    gib = ((entry.memory_bytes or 0) - (winner.memory_bytes or 0)) / GIB
    scale, unit, digits = time_scale(winner.iteration_s)
    text = f"{name} {firm(entry.layout)}: {delta * scale:+z.{digits}f} {unit} ({share:+z.1%})"
    if shown := _changes(times, "_s", scale, digits):
        text += f": {shown}"
    text += f"; memory {gib:+z.1f} GiB"
    if shown := _changes(room, "_bytes", 1 / GIB, 1):
        text += f": {shown}"
    return prose(text)


def _changes(found: Sequence[Change], suffix: str, scale: float, digits: int) -> str:
    """The largest changes that show at this many digits."""
    seen = _seen(found, scale, digits)[:SHOWN_PARTS]
    return ", ".join(
        firm(f"{part_name(c.part, suffix)} {c.amount * scale:+.{digits}f}") for c in seen
    )


def _seen(found: Sequence[Change], scale: float, digits: int) -> list[Change]:
    """The changes that are not 0 at this many digits."""
    return [c for c in found if abs(c.amount * scale) >= 0.5 * 10**-digits]


def simulation(found: Simulated | None) -> list[Line]:
    """What an event simulator says of the winner's pipeline; nothing where it was not run."""
    if found is None:
        return []
    same = f"{time_text(found.closed_form_s)} in closed form"
    text = f"Its pipeline takes {time_text(found.simulated_s)} simulated event by event, {same}."
    return prose(text)


def worth(knobs: Sequence[Bought], winner: PlanEntry) -> list[Line]:
    """One line a knob of the winner: what happens without it."""
    if not knobs or winner.iteration_s is None:
        return []
    scale, unit, digits = time_scale(winner.iteration_s)
    lines: list[Line] = [[("Its knobs, each put back to the nearest simpler legal value:", "bold")]]
    names = [f"{b.knob} -> {b.instead or 'without'}" for b in knobs]
    telling = [n for n, b in zip(names, knobs, strict=True) if _differs(b, winner)]
    wide = max((len(n) for n in telling if len(n) <= LONG_KNOB), default=0)
    for name, each in zip(names, knobs, strict=True):
        v, start = each.without, f"  {name.ljust(wide)}  "
        if v.iteration_s is None or v.memory_bytes is None:
            lines += prose(f"{firm(start)}not legal: {v.rule}: {v.message}", indent="    ")
            continue
        if not _differs(each, winner):
            lines.append([(start + "no difference predicted", "")])
            continue
        delta = v.iteration_s - winner.iteration_s
        more = (v.memory_bytes - (winner.memory_bytes or 0)) / GIB
        text = (
            f"{delta * scale:+z8.{digits}f} {unit}  {delta / winner.iteration_s:+z7.1%}  "
            f"{more:+z7.1f} GiB"
        )
        if len(name) > LONG_KNOB:
            lines.append([(start.rstrip(), "")])
            start = " " * (wide + 4)
        tight = "" if v.fits else f"  would not fit (P={v.fits_probability:.2f})"
        lines.append([(start + text + tight, "" if v.fits else "yellow")])
    return lines


def _differs(knob: Bought, winner: PlanEntry) -> bool:
    """Whether another value of the knob is legal and changes a prediction."""
    v = knob.without
    return v.iteration_s is not None and not _alike(
        (v.iteration_s, v.memory_bytes), (winner.iteration_s, winner.memory_bytes)
    )


def _alike(a: tuple[float | None, ...], b: tuple[float | None, ...]) -> bool:
    """Equal but for rounding."""
    pairs = zip(a, b, strict=True)
    return all(math.isclose(x or 0.0, y or 0.0, rel_tol=1e-6) for x, y in pairs)


def sieve(plan: Plan) -> list[Line]:
    """How many layouts were looked at, how fast, and which rules left most out."""
    rate = plan.considered / max(plan.search_s, 1e-9)
    top = sorted(plan.pruned.items(), key=lambda item: -item[1])
    rules = [firm(f"{rule} {count:,}") for rule, count in top[:SHOWN_RULES]]
    if len(top) > SHOWN_RULES:
        rules.append(firm(f"others {sum(n for _, n in top[SHOWN_RULES:]):,}"))
    missing = plan.evaluated - plan.feasible
    text = (
        f"{counted(plan.considered, 'layout')} considered, {plan.legal:,} legal, "
        f"{plan.evaluated:,} evaluated, {plan.feasible:,} fit, "
        f"in {plan.search_s:.2f} s ({rate:,.0f} a second). "
        f"Left out: {', '.join(rules) or 'none'} by rule; {missing:,} by memory."
    )
    return prose(text, "dim")


def rests_on(where: Setting, entry: PlanEntry | None) -> list[Line]:
    """Where the constants behind the numbers come from, and what measured runs near say besides."""
    found = where.calibration
    if found.state == "measured":
        text = f"Numbers rest on {counted(found.rows, 'measured run')} of {found.family}"
    elif found.borrowed_from:
        text = f"Numbers for {found.family} are borrowed from {found.lender}"
        text += f" ({counted(found.rows, 'run')})"
    else:
        text = f"Numbers for {found.family} are assumed"
    text += f" ({found.source})" if found.source else ""
    if found.state != "measured":
        text += "; ranges come from stated assumptions"
    if entry is not None and entry.origin is not None:
        shares = entry.origin
        text += (
            f"; of the step {shares.measured:.0%} is measured, {shares.published:.0%} published, "
            f"{shares.assumed:.0%} assumed"
        )
        text += _beside(where.nearby_factor(entry.layout) - 1)
    return prose(text + ".", "dim")


def _beside(longer: float) -> str:
    """What measured runs near a layout took over the constants, where it shows."""
    if abs(longer) < 0.005:
        return ""
    way = "longer" if longer > 0 else "less"
    return f"; measured runs near it take {abs(longer):.0%} {way} than the constants say"


def files_line(folder: Path, names: Sequence[str]) -> list[Line]:
    """Where the files of a run are."""
    return prose(f"Files in {folder}/: {', '.join(names)}", "dim")


def baseline_lines(given: Estimate, winner: PlanEntry) -> list[Line]:
    """How the user's own layout compares."""
    layout = firm(given.entry.layout)
    if not given.legal:
        reasons = "; ".join(f"{r.rule}: {r.message}" for r in given.illegal_reasons)
        return prose(f"Yours, {layout}, is not legal: {reasons}", "yellow")
    lines = compared("Yours,", given.entry, winner)
    if given.place is not None:
        fits = given.entry.fits_probability or 0.0
        note = "" if given.entry.fits else f"; it would not fit (P={fits:.2f})"
        text = f"  It is number {given.place.rank:,} among {given.place.of:,} that fit{note}."
        lines += prose(text)
    return lines


def broken_rules(given: Estimate) -> list[Line]:
    """Every rule that a layout breaks."""
    reasons = given.illegal_reasons
    return [x for r in reasons for x in prose(f"not legal: {r.rule}: {r.message}", "yellow")]


def part_tables(entry: PlanEntry) -> list[Line]:
    """Every part of the step and of the memory, with its share."""
    if entry.parts is None or entry.memory_parts is None:
        return []
    scale, unit, digits = time_scale(entry.iteration_s or 0.0)
    lines = _parts(entry.parts, "_s", f"step {unit}", scale, digits)
    return [*lines, [("", "")], *_parts(entry.memory_parts, "_bytes", "memory GiB", 1 / GIB, 2)]


def _parts(
    parts: Mapping[str, float], suffix: str, head: str, scale: float, digits: int
) -> list[Line]:
    total = sum(parts.values())
    ordered = [*sorted(parts.items(), key=lambda item: -item[1]), ("total", total)]
    shown = [(name, value) for name, value in ordered if value]
    return screen.rows(
        [
            Column(head="part", cells=[part_name(n, suffix) for n, _ in shown], right=False),
            Column(head=head, cells=[f"{v * scale:,.{digits}f}" for _, v in shown]),
            Column(head="share", cells=[f"{v / total:.1%}" for _, v in shown]),
        ],
        bold_first=False,
    )


def difference_tables(winner: PlanEntry, entry: PlanEntry) -> list[Line]:
    """Every part in which a layout differs from the winner, of the step and of the memory."""
    scale, unit, digits = time_scale(winner.iteration_s or 0.0)
    times = _differences(winner.parts, entry.parts, "_s", f"step {unit}", scale, digits)
    room = _differences(winner.memory_parts, entry.memory_parts, "_bytes", "memory GiB", 1 / GIB, 1)
    return [*times, *room]


def _differences(
    ours: Mapping[str, float] | None,
    theirs: Mapping[str, float] | None,
    suffix: str,
    head: str,
    scale: float,
    digits: int,
) -> list[Line]:
    from autoparallel.ranking.reasons import changes

    if ours is None or theirs is None:
        return []
    found = _seen(changes(ours, theirs), scale, digits)
    if not found:
        return []
    parts = [c.part for c in found]
    return screen.rows(
        [
            Column(head="part", cells=[part_name(p, suffix) for p in parts], right=False),
            Column(head=head, cells=[f"{theirs[p] * scale:.{digits}f}" for p in parts]),
            Column(head="best", cells=[f"{ours[p] * scale:.{digits}f}" for p in parts]),
            Column(head="difference", cells=[f"{c.amount * scale:+.{digits}f}" for c in found]),
        ],
        bold_first=False,
    )


def helping(entry: PlanEntry, better: Verdict | None) -> list[Line]:
    """The change of one knob that would help a layout most."""
    if better is None:
        return prose("No change of one knob makes it better.")
    from autoparallel.ranking.reasons import word_changes

    gone, come = word_changes(entry.layout, better.layout)
    swap = f"write {firm(come)}" if come else f"leave out {firm(gone)}"
    if come and gone:
        swap += f" in place of {firm(gone)}"
    text = f"Smallest change that helps: {swap}"
    if better.iteration_s is not None and better.memory_bytes is not None:
        text += (
            f": {time_text(better.iteration_s)} a step, {better.memory_bytes / GIB:.1f} GiB, "
            f"fits with P {better.fits_probability:.2f}"
        )
    return prose(text + ".", "bold green" if better.fits else "")
