"""Memory predicted from the runs of other jobs, GPU generations or frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from autoparallel.calibration.memory import fit_families, lent
from autoparallel.calibration.memory_rows import Forecast, MemoryData, forecast
from autoparallel.constants import MemoryConstants
from autoparallel.profiles import RELATIVES


def left_out(
    data: MemoryData, families: NDArray[np.str_], held_together: NDArray[np.str_]
) -> Forecast:
    """Every row from constants fitted without the rows that share its value of `held_together`.

    Args:
        data: Measured runs.
        families: Whose memory constants each row is scored with.
        held_together: Split groups, GPU generations or frameworks: what is left out as a whole.
    """
    found = {f.name: np.full(len(families), np.nan) for f in fields(Forecast)}
    for value in np.unique(held_together):
        held = held_together == value
        mine = np.unique(families[held])
        others = _fits(data, families, ~held, mine)
        for family in mine:
            rows = held & (families == family)
            part = forecast(data.take(rows), lent(str(family), others))
            for name, column in found.items():
                column[rows] = getattr(part, name)
    return Forecast(**found)


def _fits(
    data: MemoryData, families: NDArray[np.str_], among: NDArray[np.bool_], mine: NDArray[np.str_]
) -> Mapping[str, MemoryConstants]:
    """Fits of the families that `mine` and their relatives are."""
    known = set(families[among].tolist())
    wanted = {r for f in mine for r in (str(f), *RELATIVES.get(str(f), ())) if r in known}
    use = among & np.isin(families, sorted(wanted))
    return fit_families(data.take(use), families[use], MemoryConstants())
