"""All of it: files of measured runs in, calibrations with intervals and their errors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoparallel.calibration.fit import Fit
from autoparallel.calibration.identify import why_held
from autoparallel.calibration.left_out import left_out
from autoparallel.calibration.memory import FITTED, fit_families, lent
from autoparallel.calibration.memory_rows import (
    memory_code,
    memory_data,
    memory_family,
    with_noted_reserved,
)
from autoparallel.calibration.profile_file import Profile, rounded, write_profile
from autoparallel.calibration.training import (
    LeftOut,
    Rows,
    calibrate,
    errors_of,
    rows_of,
    timed_rows,
)
from autoparallel.constants import NORMAL_90, MemoryConstants, bounds
from autoparallel.counts import counted
from autoparallel.errors import ProfileError
from autoparallel.measured.cases import Reading
from autoparallel.profiles import Calibration

Column = NDArray[np.float64]
Progress = Callable[[str], None]

MIN_ROWS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What a calibration found.

    Attributes:
        profiles: One a family, and one of everything.
        held: Family -> constant that its runs do not determine -> why.
        after: log(predicted / measured) of every timed run under the new constants.
        left_out: The same predicted from the other split groups; None when that was not asked for.
    """

    rows: Rows
    profiles: Mapping[str, Profile]
    held: Mapping[str, Mapping[str, str]]
    after: Column
    left_out: LeftOut | None


def run(
    readings: Sequence[Reading],
    source: str,
    *,
    leave_one_out: bool = True,
    workers: int = 2,
    progress: Progress = lambda text: None,
) -> Outcome:
    """Calibrate every family that `readings` have.

    Args:
        readings: Measured runs, timed or not.
        source: What the profile files say of where the runs are from.
        leave_one_out: Whether spreads come from predictions of left-out groups; else they stay
            priors.
        workers: Processes that leave groups out.
        progress: Told what is going on.

    Raises:
        ProfileError: fewer than 3 timed runs.
    """
    count = sum(1 for r in readings if r.run.seconds)
    if count < MIN_ROWS:
        raise ProfileError(
            f"iteration_s: {counted(count, 'timed run')}; a calibration needs {MIN_ROWS} or more"
        )
    rows = timed_rows(readings)
    blind = left_out(rows, workers=workers, progress=progress) if leave_one_out else None
    progress("fitting the constants of every family")
    found, fits = calibrate(rows, blind, source)
    progress("fitting memory")
    found, measured = with_memory(found, readings)
    found = {name: rounded(c) for name, c in found.items()}
    return Outcome(
        rows=rows,
        profiles={name: _profile(rows, c, fits[name], measured) for name, c in found.items()},
        held={
            name: why_held(rows.at(rows_of(rows, name)), fits[name], c.measured_names)
            for name, c in found.items()
        },
        after=errors_of(rows, found),
        left_out=blind,
    )


def write(folder: Path, outcome: Outcome) -> list[Path]:
    """Write every profile under `folder`; returns the paths."""
    return [write_profile(folder, profile) for profile in outcome.profiles.values()]


def _profile(rows: Rows, found: Calibration, fit: Fit, memory_measured: frozenset[str]) -> Profile:
    groups = dict.fromkeys(rows.data.groups[rows_of(rows, found.family)].tolist())
    return Profile(
        calibration=found,
        groups=tuple(groups),
        intervals=intervals(fit),
        memory_measured=moved(found.memory) if found.family in memory_measured else (),
    )


def moved(found: MemoryConstants) -> tuple[str, ...]:
    """The memory constants that runs moved from their prior; of the others they say nothing."""
    prior = MemoryConstants()
    return tuple(n for n in FITTED if not np.isclose(getattr(found, n), getattr(prior, n)))


def intervals(fit: Fit) -> dict[str, tuple[float, float]]:
    """5 and 95 % of every fitted constant, inside its bounds."""
    found = {}
    for name, deviation in fit.deviations.items():
        value, (low, high) = float(getattr(fit.constants, name)), bounds(name)
        factor = float(np.exp(min(NORMAL_90 * deviation, 50.0)))
        found[name] = (max(value / factor, low), min(value * factor, high))
    return found


# --- memory --------------------------------------------------------------------------------------


def with_memory(
    found: Mapping[str, Calibration], readings: Sequence[Reading]
) -> tuple[dict[str, Calibration], frozenset[str]]:
    """Calibrations with fitted memory constants, and the families whose runs determine them.

    A run teaches by its peak, by having run out of memory, or by having run at all. A family takes
    the constants of the code base that most of its runs used; one without runs takes its nearest
    relative's, and without those what holds for any framework.
    """
    rows = with_noted_reserved(readings)
    names = np.array([memory_family(r) for r in rows])
    fitted = fit_families(memory_data(rows), names, MemoryConstants())
    return (
        {n: replace(c, memory=lent(memory_code(n), fitted)) for n, c in found.items()},
        frozenset(name for name in found if memory_code(name) in fitted),
    )
