"""Predictions of measured rows: every row under the constants of its own family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoparallel import catalog
from autoparallel.calibration.memory_rows import forecast, memory_data
from autoparallel.cost.neighbours import doubt
from autoparallel.cost.step import interval_s, step_time
from autoparallel.cost.unique import gathered
from autoparallel.measured.cases import Reading
from autoparallel.profiles import Calibration, first_calibration

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """What is predicted of N rows, with 5-95 % intervals; every column is [N].

    `memory_bytes` is of the kind (allocated, reserved, device) and the rank that the row measured.
    """

    seconds: Column
    seconds_low: Column
    seconds_high: Column
    memory_bytes: Column
    memory_low: Column
    memory_high: Column
    fits_probability: Column

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Rows of which everything is a finite number, times and sizes above zero."""
        columns = [getattr(self, f.name) for f in fields(self)]
        finite = np.all(np.isfinite(columns), axis=0)
        return np.asarray(finite & (self.seconds_low > 0) & (self.memory_low > 0))

    def take(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> Predictions:
        """The rows at `index`."""
        rows: Predictions = gathered(self, index)
        return rows


def folders(profiles_dir: Path | None) -> tuple[Path, ...]:
    """Where profiles are looked for, in order: the user's own folder, then the shipped one."""
    shipped = catalog.data_dir() / "profiles"
    return (profiles_dir, shipped) if profiles_dir else (shipped,)


def calibration_of(reading: Reading, where: Sequence[Path]) -> Calibration:
    """The calibration a row is scored with: its family's own, else that of the most runs."""
    family, _, generation = reading.family.rpartition("-")
    return first_calibration(family, generation, where)


def predict(readings: Sequence[Reading], profiles_dir: Path | None = None) -> Predictions:
    """Predict every row, each family of rows as one case."""
    families = np.array([r.family for r in readings])
    columns = {f.name: np.full(len(readings), np.nan) for f in fields(Predictions)}
    where = folders(profiles_dir)
    for family in dict.fromkeys(families.tolist()):
        index = np.flatnonzero(families == family)
        mine = [readings[int(i)] for i in index]
        part = predict_family(mine, calibration_of(mine[0], where))
        for name, column in columns.items():
            column[index] = getattr(part, name)
    return Predictions(**columns)


def predict_family(readings: Sequence[Reading], constants: Calibration) -> Predictions:
    """Predict rows that share their constants. Absurd rows give absurd numbers, not errors."""
    with np.errstate(all="ignore"):
        data = memory_data(readings)
        known = replace(data.case, constants=constants.constants, nearby=constants.nearby)
        data = replace(data, case=known)
        step = step_time(data.case)
        low, high = interval_s(step, constants.spread, doubt(known))
        memory = forecast(data, constants.memory)
        return Predictions(
            seconds=np.asarray(step.iteration_s),
            seconds_low=np.asarray(low),
            seconds_high=np.asarray(high),
            memory_bytes=memory.bytes,
            memory_low=memory.low,
            memory_high=memory.high,
            fits_probability=memory.fits,
        )
