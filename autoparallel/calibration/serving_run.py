"""All of it for serving: figures in, profiles with intervals and left-out errors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoparallel.calibration.serving import (
    calibrate_serving,
    left_out_predictions,
    predicted_with,
    with_spread,
)
from autoparallel.calibration.serving_cases import ServingReading
from autoparallel.calibration.serving_file import ServingProfile, rounded, write_serving
from autoparallel.errors import ProfileError
from autoparallel.inference.calibrated import EVERYTHING

Column = NDArray[np.float64]
MIN_ROWS = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingCalibrated:
    """What a calibration of serving figures found.

    Attributes:
        profiles: One a family, and one of everything.
        after: Figures under the new constants [N].
        left_out: The same with the row's model left out; None when that was not asked for.
    """

    readings: Sequence[ServingReading]
    profiles: Mapping[str, ServingProfile]
    after: Column
    left_out: Column | None


def run_serving(
    readings: Sequence[ServingReading],
    source: str,
    *,
    leave_one_out: bool = True,
    workers: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> ServingCalibrated:
    """Calibrate every backend and GPU generation that `readings` have.

    Args:
        readings: Measured figures.
        source: What the profile files say of where they are from.
        leave_one_out: Whether spreads come from predictions of left-out models; else they stay
            priors.
        workers: Processes that leave models out.
        progress: Told what is going on.

    Raises:
        ProfileError: fewer than 10 figures.
    """
    if len(readings) < MIN_ROWS:
        count = len(readings)
        raise ProfileError(f"value: {count} serving figures; a calibration needs {MIN_ROWS}")
    progress("serving: fitting the constants of every family")
    outcome = calibrate_serving(readings, source)
    blind = (
        left_out_predictions(readings, "model", workers=workers, progress=progress)
        if leave_one_out
        else None
    )
    found = dict(outcome.found) if blind is None else with_spread(outcome.found, readings, blind)
    found = {name: rounded(c) for name, c in found.items()}
    return ServingCalibrated(
        readings=readings,
        profiles={
            name: ServingProfile(
                calibration=c, fit=outcome.fits[name], models=_models(readings, name)
            )
            for name, c in found.items()
        },
        after=predicted_with(found, readings),
        left_out=blind,
    )


def _models(readings: Sequence[ServingReading], family: str) -> tuple[str, ...]:
    mine = (r for r in readings if family in (EVERYTHING, r.family))
    return tuple(dict.fromkeys(r.case.model.name for r in mine))


def write_profiles(folder: Path, calibrated: ServingCalibrated) -> list[Path]:
    """Write every profile under `folder`; returns the paths."""
    return [write_serving(folder, profile) for profile in calibrated.profiles.values()]
