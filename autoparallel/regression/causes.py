"""What moved a figure: every number that differs from the pin is put back, one at a time.

A number's share of a change is what today's figure would be without it. What all numbers together
do not explain lies in tables and code, which have digests; then the parts of the figure that moved
are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autoparallel.constants import FITS
from autoparallel.counts import counted
from autoparallel.regression.kinds import Numbers, Standing, Today
from autoparallel.regression.lock import Lock
from autoparallel.regression.words import figure_text, percent, value_text

NAMED = 5
"""Causes that are named; the rest is counted."""
SHARE = 0.05
"""Part of a figure's whole change from which a single number is called a cause of it."""
UNEXPLAINED = 2e-4
"""Share of a figure that may remain when all numbers are put back (six digits are pinned)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A number, table or room of code that is not what it was; None where it was or is absent."""

    name: str
    before: Any
    after: Any

    @property
    def text(self) -> str:
        """`cluster.inter_link.bandwidth_gb_per_s 50 -> 40 (-20.0 %)`."""
        shown = f"{self.name} {value_text(self.before)} -> {value_text(self.after)}"
        pair = (self.before, self.after)
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in pair) and pair[0]:
            return f"{shown} ({percent(self.after / self.before - 1)})"
        return shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What moved a figure, in words."""

    name: str
    message: str


def differences(lock: Lock, today: Today) -> tuple[Change, ...]:
    """Everything a lock records that is different today: numbers first, then tables and code."""
    return (*_differences(lock.used, today.used), *_differences(lock.digests, today.digests))


def _differences(before: Numbers, after: Numbers) -> Iterable[Change]:
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old != new:
            yield Change(name=name, before=old, after=new)


def causes_of(
    lock: Lock, today: Today, now: Standing, changes: Sequence[Change], moved: Sequence[str]
) -> tuple[Cause, ...]:
    """What made the rules in `moved` fail or their figures change."""
    numbers = [c for c in changes if c.name in lock.used or c.name in today.used]
    rest = [c for c in changes if c.name in lock.digests or c.name in today.digests]
    found: list[Cause] = []
    for rule in moved:
        if rule == "legal":
            found += _legal_causes(lock, today, numbers)
        elif rule == "fits" or rule in now.figures:
            found += _figure_causes(lock, today, now, numbers, rule)
        elif rule == "optimum" and today.entries:
            found += _optimum_causes(lock, today, now, numbers)
            found += _lead_of_code(lock, today, numbers, rest)
    needs_code = [r for r in moved if not r.startswith("measured.")]
    return (*found, *_unexplained(lock, today, numbers, rest)) if needs_code else tuple(found)


def _back(change: Change) -> dict[str, Any]:
    """The old value, to be put in place of today's; what was absent counts as nothing."""
    if change.before is not None:
        return {change.name: change.before}
    empty: Any = False if isinstance(change.after, bool) else 0
    return {} if isinstance(change.after, str | list) else {change.name: empty}


def _with(lock: Lock, today: Today, changes: Iterable[Change], layout: str = "") -> Standing:
    """A layout with the old values of `changes`; the pinned one unless another is named."""
    back = {k: v for change in changes for k, v in _back(change).items()}
    return today.standing(layout or lock.pinned.layout, back)


def _legal_causes(lock: Lock, today: Today, numbers: Sequence[Change]) -> list[Cause]:
    """Numbers without which the pinned layout is legal: one alone, or only all together."""
    alone = [c for c in numbers if _with(lock, today, [c]).legal]
    text = "with the old value the pinned layout is legal"
    if not alone and numbers and _with(lock, today, numbers).legal:
        alone, text = list(numbers), "with all old values the pinned layout is legal"
    return [Cause(name=c.name, message=f"{c.text}: {text}") for c in alone[:NAMED]]


def _figure_causes(
    lock: Lock, today: Today, now: Standing, numbers: Sequence[Change], rule: str
) -> list[Cause]:
    """The numbers that moved one figure, the strongest first."""
    current = _value(now, rule)
    weighed = []
    for change in numbers:
        old = _value(_with(lock, today, [change]), rule)
        if old is not None and current is not None:
            weighed.append((current - old, change, old))
    return _strongest(weighed, lambda old: f"with the old value {_text(rule, old)}")


def _optimum_causes(
    lock: Lock, today: Today, now: Standing, numbers: Sequence[Change]
) -> list[Cause]:
    """The numbers without which today's best would lead by less, not fit or not be legal."""
    best, name = today.entries[0].layout, lock.objective
    sign = lock.kind.worse.get(name, 1)
    lead = _lead(now, today.standing(best, {}), name, sign)
    weighed, found = [], [*_rule_counts(lock, today)]
    for change in numbers:
        if change.name.startswith("space."):
            if today.best(_back(change)) != best:
                text = "with the old value the search does not choose it"
                found.append(Cause(name=change.name, message=f"{change.text}: {text}"))
            continue
        other = _with(lock, today, [change], best)
        if not other.legal:
            text = f"with the old value {best} is not legal: {other.reasons[0]}"
            found.append(Cause(name=change.name, message=f"{change.text}: {text}"))
        elif other.fits_probability is not None and other.fits_probability < FITS:
            text = f"with the old value {best} would not fit (P={other.fits_probability:.2f})"
            found.append(Cause(name=change.name, message=f"{change.text}: {text}"))
        else:
            old = _lead(_with(lock, today, [change]), other, name, sign)
            weighed.append((lead - old, change, old))
    leads = _strongest(weighed, lambda old: f"with the old value its lead is {percent(old)}")
    return [*found[:NAMED], *leads]


def _rule_counts(lock: Lock, today: Today) -> Iterable[Cause]:
    """Rules that leave out another number of candidates than at the pin."""
    names = [n for n in {**lock.counts, **today.counts} if n.startswith("pruned.")]
    moves = {name: today.counts.get(name, 0) - lock.counts.get(name, 0) for name in names}
    for name in sorted(moves, key=lambda n: -abs(moves[n]))[:3]:
        rule = name.removeprefix("pruned.")
        if moves[name] and rule != "memory":
            before, after = lock.counts.get(name, 0), today.counts.get(name, 0)
            text = (
                f"the rule {rule} leaves out {counted(after, 'candidate')}, at the pin {before:,}"
            )
            yield Cause(name=f"rule {rule}", message=text)


def _lead(own: Standing, best: Standing, name: str, sign: int) -> float:
    if not own.legal or not best.legal or not best.figures.get(name):
        return 0.0
    return sign * (own.figures[name] / best.figures[name] - 1)


def _strongest(weighed: Sequence[tuple[float, Change, float]], words: Any) -> list[Cause]:
    """The changes that do something, in the order of what they do."""
    total = max((abs(effect) for effect, _, _ in weighed), default=0.0)
    strong = [w for w in weighed if total and abs(w[0]) >= SHARE * total]
    strong.sort(key=lambda w: -abs(w[0]))
    shown = [Cause(name=c.name, message=f"{c.text}: {words(old)}") for _, c, old in strong[:NAMED]]
    if more := len(strong) - len(shown):
        shown.append(Cause(name="others", message=f"{counted(more, 'more number')} changed too"))
    return shown


def _value(standing: Standing, rule: str) -> float | None:
    return standing.fits_probability if rule == "fits" else standing.figures.get(rule)


def _text(rule: str, value: float) -> str:
    return f"P(fits) is {value:.2f}" if rule == "fits" else f"it is {figure_text(rule, value)}"


def _lead_of_code(
    lock: Lock, today: Today, numbers: Sequence[Change], rest: Sequence[Change]
) -> list[Cause]:
    """Whether today's best would lead with all old numbers too."""
    best, name = today.entries[0].layout, lock.objective
    own, other = _with(lock, today, numbers), _with(lock, today, numbers, best)
    lead = _lead(own, other, name, lock.kind.worse.get(name, 1))
    if lead <= lock.tolerance["optimum"]:
        return []
    message = f"with all old numbers {best} would lead by {percent(lead)}: {_files(rest)}"
    return [Cause(name="code", message=message)]


def _unexplained(
    lock: Lock, today: Today, numbers: Sequence[Change], rest: Sequence[Change]
) -> list[Cause]:
    """What remains with all old numbers in place: tables and code, and the parts that moved."""
    old = _with(lock, today, numbers)
    if not old.legal:
        text = f"with all old numbers it still breaks {old.reasons[0]}"
        return [Cause(name="code", message=f"{text}; {_files(rest)}")]
    left = [
        f"{figure_text(name, before)} -> {figure_text(name, old.figures[name])} "
        f"({percent(old.figures[name] / before - 1)})"
        for name in lock.kind.worse
        if (before := lock.pinned.predicted.get(name)) and name in old.figures
        and abs(old.figures[name] / before - 1) > UNEXPLAINED
    ]  # fmt: skip
    if not left:
        return []
    also = "with all old numbers" if numbers else "with the same numbers"
    return [
        Cause(
            name="code",
            message=f"{also} {', '.join(left)}: {_files(rest)}{_parts(lock, old)}",
        )
    ]


def _files(rest: Sequence[Change]) -> str:
    """Which tables and rooms of code differ."""
    names = [change.name for change in rest]
    if not names:
        return "no table and no code of the model has changed; versions of libraries may have"
    return "changed since the pin: " + ", ".join(names)


def _parts(lock: Lock, old: Standing) -> str:
    """The parts of the step that moved most."""
    before = lock.pinned.parts.get("parts", {})
    moves = {name: value - before.get(name, 0.0) for name, value in old.parts.items()}
    total = sum(before.values()) or 1.0
    largest = sorted(moves, key=lambda name: -abs(moves[name]))[:3]
    told = [f"{n.removesuffix('_s')} {moves[n]:+.3g} s" for n in largest
            if abs(moves[n]) > UNEXPLAINED * total]  # fmt: skip
    return "; parts: " + ", ".join(told) if told else ""
