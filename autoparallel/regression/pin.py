"""Making a lock: of a run's plan, and again of today's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autoparallel.errors import NothingFitsError
from autoparallel.regression.check import Verdict
from autoparallel.regression.kinds import Kind, Today
from autoparallel.regression.lock import Lock, Samples

RUNNERS_UP = 3
_DECISIVE = ("legal", "fits", "optimum")
"""Rules whose failure means that the pinned layout is no longer the one to take."""


def pinned_lock(
    kind: Kind,
    request: Mapping[str, Any],
    today: Today,
    layout: str,
    *,
    versions: Mapping[str, str],
    measured: Samples | None = None,
    note: str = "",
) -> Lock:
    """A lock of `layout` under today's answer.

    Args:
        kind: Of the plan.
        request: What was asked, by name.
        today: Its answer.
        layout: The choice to hold.
        versions: What writes the file.
        measured: Repeated measurements of the layout.
        note: For the human who reads the file.
    """
    others = tuple(replace(e, parts={}) for e in today.entries if e.layout != layout)
    return Lock(
        kind=kind,
        note=note,
        tolerance=dict(kind.tolerance),
        request=request,
        objective=today.objective,
        counts=today.counts,
        pinned=today.entry(layout),
        runners_up=others[:RUNNERS_UP],
        measured=measured,
        used=today.used,
        digests=today.digests,
        versions=versions,
    )


def repinned(
    lock: Lock,
    today: Today,
    verdict: Verdict,
    *,
    versions: Mapping[str, str],
    measured: Samples | None = None,
) -> Lock:
    """The lock of today's answer; the human's note and tolerance stay.

    The layout stays too while it is legal, fits and is not led; else it is today's best.

    Raises:
        NothingFitsError: there is no layout to pin.
    """
    lost = any(f.failed for f in verdict.findings if f.rule in _DECISIVE)
    if lost and not today.entries:
        raise NothingFitsError(f"{verdict.path}: nothing fits today, so there is nothing to pin")
    layout = today.entries[0].layout if lost else lock.pinned.layout
    kept = measured or (None if lost else lock.measured)
    made = pinned_lock(
        lock.kind, lock.request, today, layout, versions=versions, measured=kept, note=lock.note
    )
    return replace(made, tolerance=lock.tolerance)
