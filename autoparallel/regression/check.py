"""The gate: a lock held against today's answer, one finding a rule.

legal         the pinned layout breaks no rule
fits          P(fits) is not below one half by more than the tolerance
FIGURE        step time, memory, ... are not worse than pinned by more than the tolerance
optimum       no other layout leads the pinned one by more than the tolerance and the noise
measured.X    repeated measurements are not worse than the pinned ones (when there are any)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoparallel.constants import FITS
from autoparallel.regression.causes import Cause, Change, causes_of, differences
from autoparallel.regression.kinds import LockEntry, Standing, Today
from autoparallel.regression.lock import Lock, Samples
from autoparallel.regression.measurements import compared
from autoparallel.regression.words import figure_text, percent

NOTICED = 1e-3
"""Share of a figure from which a change that passes is explained too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule of the gate found.

    Attributes:
        rule: As in the table above.
        before, after: The figure at the pin and now; None where there is none.
        tolerance: What of a change passes, as a share; None where the rule has none.
    """

    rule: str
    failed: bool
    message: str
    before: float | None = None
    after: float | None = None
    tolerance: float | None = None

    @property
    def noticed(self) -> bool:
        """Whether there is something to explain: a failure, or a change of a figure."""
        if self.failed or self.before is None or self.after is None:
            return self.failed
        unit = 1.0 if self.rule == "optimum" else abs(self.before)
        return abs(self.after - self.before) > NOTICED * unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a check of one lock says.

    Attributes:
        title: What is asked, in a few words.
        pinned: The pinned layout.
        best: Today's best layout; empty when nothing fits.
        changes: Numbers, tables and code that differ from the pin.
        causes: Those that moved a figure, the strongest first.
    """

    path: str
    title: str
    note: str
    pinned: str
    best: str
    findings: tuple[Finding, ...]
    changes: tuple[Change, ...]
    causes: tuple[Cause, ...]

    @property
    def passed(self) -> bool:
        """Whether no rule failed."""
        return not any(finding.failed for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain data."""
        return {
            "lock": self.path,
            "title": self.title,
            "note": self.note,
            "passed": self.passed,
            "pinned": self.pinned,
            "best": self.best or None,
            "findings": [
                {
                    "rule": f.rule,
                    "failed": f.failed,
                    "message": f.message,
                    "before": f.before,
                    "after": f.after,
                    "tolerance": f.tolerance,
                }
                for f in self.findings
            ],
            "changes": [
                {"name": c.name, "before": c.before, "after": c.after} for c in self.changes
            ],
            "causes": [{"name": c.name, "message": c.message} for c in self.causes],
        }


def checked_lock(
    lock: Lock, today: Today, *, path: str, measured: Sequence[Samples] = ()
) -> Verdict:
    """Hold a lock against today's answer, and against new measurements where there are any.

    Raises:
        ConfigError: measurements that cannot be compared.
    """
    now = today.standing(lock.pinned.layout, {})
    findings = [_legal(now)]
    if now.legal:
        findings += [_fits(lock, now), *_figures(lock, now), _optimum(lock, today, now)]
    for samples in measured:
        findings += _measured(lock, samples)
    changes = differences(lock, today)
    moved = [f.rule for f in findings if f.noticed]
    return Verdict(
        path=path,
        title=title(lock.request),
        note=lock.note,
        pinned=lock.pinned.layout,
        best=today.entries[0].layout if today.entries else "",
        findings=tuple(findings),
        changes=changes,
        causes=causes_of(lock, today, now, changes, moved),
    )


def title(request: Mapping[str, Any]) -> str:
    """A request in a few words: model, number of GPUs, cluster."""
    return f"{request['model']} on {request['num_gpus']} GPUs of {request['cluster']}"


def _legal(now: Standing) -> Finding:
    reason = now.reasons[0] if now.reasons else ""
    message = f"the pinned layout breaks the rule {reason}" if reason else "no rule is broken"
    return Finding(rule="legal", failed=not now.legal, message=message)


def _fits(lock: Lock, now: Standing) -> Finding:
    before, after = lock.pinned.predicted.get("fits_probability"), now.fits_probability
    allowed = lock.tolerance["fits_probability"]
    lost = before is not None and after is not None and after < FITS and before - after > allowed
    message = "unknown" if after is None else f"P(fits) {_shown(before, '.2f')} -> {after:.2f}"
    if lost:
        message += f": no longer called fitting, and {allowed:g} below the pin is allowed"
    return Finding(
        rule="fits", failed=lost, message=message, before=before, after=after, tolerance=allowed
    )


def _shown(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)


def _figures(lock: Lock, now: Standing) -> list[Finding]:
    return [
        _figure(lock, name, sign, lock.pinned.predicted.get(name), now.figures[name])
        for name, sign in lock.kind.worse.items()
        if name in now.figures and name in lock.tolerance
    ]


def _figure(lock: Lock, name: str, sign: int, before: float | None, after: float) -> Finding:
    allowed = lock.tolerance[name]
    if not before:
        return Finding(rule=name, failed=False, message="was not pinned", after=after)
    change = after / before - 1
    failed = sign * change > allowed
    message = f"{figure_text(name, before)} -> {figure_text(name, after)} ({percent(change)})"
    return Finding(
        rule=name,
        failed=failed,
        message=f"{message}, {'over' if failed else 'within'} the tolerance of {allowed:.2%}",
        before=before,
        after=after,
        tolerance=allowed,
    )


def _optimum(lock: Lock, today: Today, now: Standing) -> Finding:
    """Whether another layout leads, by more than it did at the pin, than tolerance and noise."""
    allowed = lock.tolerance["optimum"]
    if not today.entries:
        message = "no layout is both legal and fitting today"
        return Finding(rule="optimum", failed=True, message=message, tolerance=allowed)
    best, name = today.entries[0], lock.objective
    sign = lock.kind.worse.get(name, 1)
    lead, before = _lead(best, now.figures, name, sign), pinned_lead(lock)
    moved = best.layout != lock.pinned.layout and lead - before > allowed
    tied = moved and today.tied(lock.pinned.layout)
    return Finding(
        rule="optimum",
        failed=moved and not tied,
        message=_optimum_text(lock, best, lead, moved=moved, tied=tied),
        before=before,
        after=lead,
        tolerance=allowed,
    )


def _optimum_text(lock: Lock, best: LockEntry, lead: float, *, moved: bool, tied: bool) -> str:
    if best.layout == lock.pinned.layout:
        return "the pinned layout is today's best"
    if lead <= 0:
        return f"today's best is {best.layout}, which is not ahead of the pinned one"
    text = f"today's best is {best.layout}, {percent(lead, sign=False)} ahead"
    if tied:
        return f"{text}, which the model cannot tell from the pinned one"
    return text if moved else f"{text}, within the tolerance of {lock.tolerance['optimum']:.2%}"


def _lead(best: LockEntry, figures: Mapping[str, float], name: str, sign: int) -> float:
    """By how much the best beats given figures, as a share of the best."""
    own, top = figures.get(name), best.predicted.get(name)
    return sign * (own / top - 1) if own and top else 0.0


def pinned_lead(lock: Lock) -> float:
    """How far ahead of the pinned layout another one was at the pin; 0 for a pinned winner."""
    name = lock.objective
    sign = lock.kind.worse.get(name, 1)
    own = {k: v for k, v in lock.pinned.predicted.items() if v}
    return max((_lead(e, own, name, sign) for e in lock.runners_up if e.rank == 1), default=0.0)


def _measured(lock: Lock, samples: Samples) -> list[Finding]:
    """New measurements against the pinned ones, or against the predicted range without those."""
    found = []
    for name, values in samples.values.items():
        sign = lock.kind.worse.get(name, 1)
        old = lock.measured.values.get(name, ()) if lock.measured else ()
        result = compared(
            old,
            values,
            least_effect=lock.tolerance["measured"],
            sign=sign,
            interval=lock.pinned.intervals.get(name),
            name=name,
        )
        found.append(
            Finding(
                rule=f"measured.{name}",
                failed=result.worse,
                message=f"{result.message} ({samples.source})",
                before=result.before,
                after=result.after,
                tolerance=lock.tolerance["measured"],
            )
        )
    return found
