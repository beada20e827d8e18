"""Memory predicted from the runs of other jobs, GPU generations or frameworks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from autoparallel.calibration.memory import fit_families
from autoparallel.calibration.memory_rows import Forecast, MemoryData, forecast
from autoparallel.constants import MemoryConstants
from autoparallel.profiles import RELATIVES

UNKNOWN = ""
"""The entry of a family that neither has runs nor a relative with runs."""


def lender(family: str, known: Collection[str]) -> str:
    """Whose memory constants `family` takes: its own, its nearest relative's, or `UNKNOWN`'s."""
    return next((f for f in (family, *RELATIVES.get(family, ())) if f in known), UNKNOWN)


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
            part = forecast(data.take(rows), others[lender(str(family), others)])
            for name, column in found.items():
                column[rows] = getattr(part, name)
    return Forecast(**found)


def _fits(
    data: MemoryData, families: NDArray[np.str_], among: NDArray[np.bool_], mine: NDArray[np.str_]
) -> Mapping[str, MemoryConstants]:
    """Fits of the families that `mine` are predicted with."""
    known = set(families[among].tolist())
    wanted = [lender(str(f), known) for f in mine]
    use = among & np.isin(families, wanted)
    return fit_families(data.take(use), families[use], MemoryConstants())
