"""Calibrated serving constants as a file that people read: one YAML a family, with intervals.

`inference.calibrated.read_serving` reads it back exactly: values are rounded before they are
written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

from autoparallel.calibration.profile_file import number, quoted, versions
from autoparallel.calibration.serving import ServingFit
from autoparallel.constants import NORMAL_90
from autoparallel.files import write_text
from autoparallel.inference.calibrated import FOLDER, ServingCalibration, ServingSpread
from autoparallel.inference.constants import ServingConstants, bounds

Record = TypeVar("Record", ServingConstants, ServingSpread)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingProfile:
    """A calibration and what a reader of its file wants to know besides.

    Attributes:
        models: Models of the figures behind it.
    """

    calibration: ServingCalibration
    fit: ServingFit
    models: Sequence[str]


def rounded(calibration: ServingCalibration) -> ServingCalibration:
    """The calibration as its file will say it."""
    return replace(
        calibration,
        constants=_rounded(calibration.constants),
        spread=_rounded(calibration.spread),
    )


def _rounded(record: Record) -> Record:
    return replace(
        record, **{f.name: float(number(getattr(record, f.name))) for f in fields(record)}
    )


def write_serving(folder: Path, profile: ServingProfile) -> Path:
    """Write `folder`/serving/<family>.yaml atomically; returns the path.

    Raises:
        ConfigError: the file cannot be written.
    """
    name = f"{FOLDER}/{profile.calibration.family}.yaml"
    return write_text(folder, name, profile_text(profile))


def profile_text(profile: ServingProfile) -> str:
    """The file's content."""
    return "\n".join([*_head(profile), *_constants(profile), *_spread(profile), ""])


def _head(profile: ServingProfile) -> Iterator[str]:
    found = profile.calibration
    yield "# Serving constants fitted to measured figures; low and high are 5 and 95 % given them."
    yield "# `measured`: the runs determine it. `assumed`: they do not, it is at or near its prior."
    yield f"family: {quoted(found.family)}"
    yield f"fitted: {quoted(datetime.now(UTC).date().isoformat())}"
    yield f"source: {quoted(found.source)}"
    yield f"rows: {found.rows}"
    yield "models:"
    yield from (f"  - {quoted(name)}" for name in profile.models)
    yield f"gpus: [{', '.join(quoted(name) for name in found.gpus)}]"
    yield "versions:"
    yield from (f"  {name}: {quoted(text)}" for name, text in versions().items())


def _constants(profile: ServingProfile) -> Iterator[str]:
    found = profile.calibration
    yield "constants:"
    for f in fields(ServingConstants):
        state = "measured" if f.name in found.measured_names else "assumed"
        value = float(getattr(found.constants, f.name))
        between = ""
        if f.name in profile.fit.deviations:
            low, high = interval(f.name, value, profile.fit.deviations[f.name])
            between = f"low: {number(low)}, high: {number(high)}, "
        yield f"  # {f.metadata['meaning']}"
        yield f"  {f.name}: {{value: {number(value)}, {between}state: {state}}}"


def interval(name: str, value: float, deviation: float) -> tuple[float, float]:
    """5 and 95 % of a constant, inside its bounds."""
    low, high = bounds(name)
    factor = float(np.exp(min(NORMAL_90 * deviation, 50.0)))
    return max(value / factor, low), min(value * factor, high)


def _spread(profile: ServingProfile) -> Iterator[str]:
    yield "# standard deviations of the log of predicted over measured, models left out"
    yield "spread:"
    for f in fields(ServingSpread):
        yield f"  {f.name}: {number(getattr(profile.calibration.spread, f.name))}"
