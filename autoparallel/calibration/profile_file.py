"""Calibrated constants as a file that people read: one YAML a family, values with their intervals.

`profiles.read_calibration` reads it back exactly: values are rounded to 4 digits before they are
written.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from autoparallel.constants import Constants, MemoryConstants
from autoparallel.files import write_text
from autoparallel.nearby import nearby_text, read_nearby
from autoparallel.profiles import Calibration, Spread
from autoparallel.versions import version_of

DIGITS = 4
FOLDER = "training"
SPREAD_MEANING = {
    "compute": "of compute, recomputation and the optimizer",
    "communication": "of exposed communication",
    "bubble": "of the pipeline bubble",
    "launch": "of host launch time that shows",
    "layout": "between two layouts of one job whose parts are alike",
}
Record = TypeVar("Record", Constants, MemoryConstants, Spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A calibration and what a reader of its file wants to know besides.

    Attributes:
        groups: Split groups of the runs behind it.
        intervals: 5 and 95 % of every fitted constant.
        memory_measured: Memory constants that were fitted; the others are priors.
        fitted: The day, ISO 8601.
    """

    calibration: Calibration
    groups: Sequence[str] = ()
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    memory_measured: Sequence[str] = ()
    fitted: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    versions: Mapping[str, str] = field(default_factory=lambda: versions())


def versions() -> dict[str, str]:
    """Versions of what the numbers were computed with."""
    return {
        "python": platform.python_version(),
        "autoparallel": version_of(),
        "numpy": version_of("numpy"),
        "scipy": version_of("scipy"),
    }


def rounded(calibration: Calibration) -> Calibration:
    """The calibration as its file will say it."""
    return replace(
        calibration,
        constants=_rounded(calibration.constants),
        memory=_rounded(calibration.memory),
        spread=_rounded(calibration.spread),
        nearby=read_nearby(nearby_text(calibration.nearby)) if calibration.nearby else None,
    )


def _rounded(record: Record) -> Record:
    values = {f.name: float(number(getattr(record, f.name))) for f in fields(record)}
    return replace(record, **values)


def number(value: Any) -> str:
    """A number in 4 significant digits."""
    return f"{float(value):.{DIGITS}g}"


def quoted(text: str) -> str:
    """A text as YAML on one line; what cannot be printed, or would be interpolated, is replaced."""
    shown = "".join(c if c.isprintable() else "?" for c in text).replace("${", "$ {")
    return json.dumps(shown, ensure_ascii=False)


def write_profile(folder: Path, profile: Profile) -> Path:
    """Write `folder`/training/<family>.yaml atomically; returns the path.

    Raises:
        ConfigError: the file cannot be written.
    """
    return write_text(folder, f"{FOLDER}/{profile.calibration.family}.yaml", profile_text(profile))


def profile_text(profile: Profile) -> str:
    """The file's content."""
    return "\n".join(
        [
            *_head(profile),
            *_constants(profile),
            *_memory(profile),
            *_spread(profile),
            *_nearby(profile),
            "",
        ]
    )


def _head(profile: Profile) -> Iterator[str]:
    found = profile.calibration
    yield "# Constants fitted to measured runs; low and high are 5 and 95 % given runs and prior."
    yield "# `measured`: the runs determine it. `assumed`: they do not, it is at or near its prior."
    yield f"family: {quoted(found.family)}"
    yield f"fitted: {quoted(profile.fitted)}"
    yield f"source: {quoted(found.source)}"
    yield f"rows: {found.rows}"
    yield "groups:"
    yield from (f"  - {quoted(name)}" for name in profile.groups)
    yield "versions:"
    yield from (f"  {name}: {quoted(text)}" for name, text in profile.versions.items())


def _constants(profile: Profile) -> Iterator[str]:
    found = profile.calibration
    yield "constants:"
    for f in fields(Constants):
        state = "measured" if f.name in found.measured_names else "assumed"
        value = getattr(found.constants, f.name)
        yield from _entry(f.name, value, state, f.metadata["meaning"], profile.intervals)


def _memory(profile: Profile) -> Iterator[str]:
    yield "memory:"
    for f in fields(MemoryConstants):
        state = "measured" if f.name in profile.memory_measured else "assumed"
        value = getattr(profile.calibration.memory, f.name)
        yield from _entry(f.name, value, state, f.metadata["meaning"], {})


def _entry(
    name: str,
    value: float,
    state: str,
    meaning: str,
    intervals: Mapping[str, tuple[float, float]],
) -> Iterator[str]:
    yield f"  # {meaning}"
    between = ""
    if name in intervals:
        low, high = intervals[name]
        between = f"low: {number(low)}, high: {number(high)}, "
    yield f"  {name}: {{value: {number(value)}, {between}state: {state}}}"


def _spread(profile: Profile) -> Iterator[str]:
    yield "# standard deviations of the log of what is predicted over what is measured"
    yield "spread:"
    for f in fields(Spread):
        yield f"  # {SPREAD_MEANING[f.name]}"
        yield f"  {f.name}: {number(getattr(profile.calibration.spread, f.name))}"


def _nearby(profile: Profile) -> Iterator[str]:
    nearby = profile.calibration.nearby
    if nearby:
        yield "# measured runs and by how much they took longer than the constants say"
        yield "nearby: |"
        yield from (f"  {line}" for line in nearby_text(nearby).splitlines())
