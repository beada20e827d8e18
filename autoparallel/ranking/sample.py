"""A sample of candidates that is even over meshes, drawn the same way in any order of blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoparallel.cost.distinct import coded, combinations
from autoparallel.layout import KNOB_FIELDS, Knobs

STRATA = ("tp", "pp", "cp", "ep")
_WEIGHTS = np.sqrt(np.arange(2.0, 2.0 + len(KNOB_FIELDS))) * np.pi
_MULTIPLIER = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)


def stratified(knobs: Knobs, most: int, quota: int | None = None) -> NDArray[np.intp]:
    """Rows of a sample of at most `most`: as many of every (tp, pp, cp, ep) that has enough.

    A row's luck depends on its knobs alone, so a sample of samples is the sample of the whole.
    `quota` is a number beyond which no mesh is wanted, if one is known.
    """
    mesh = _strata(knobs)
    counts = np.bincount(mesh)
    each = _quota(counts, most) if quota is None else min(_quota(counts, most), quota)
    if counts.max() <= each and knobs.size <= most:
        return np.arange(knobs.size)
    luck, wanted = _luck(knobs), np.minimum(counts, each)
    rows = np.flatnonzero(luck < ((wanted + 6 * np.sqrt(wanted) + 1) / counts)[mesh])
    if (np.bincount(mesh[rows], minlength=len(counts)) < wanted).any():
        rows = np.arange(knobs.size)
    order = rows[np.lexsort((luck[rows], mesh[rows]))]
    found = np.bincount(mesh[rows], minlength=len(counts))
    place = np.arange(len(order)) - np.repeat(np.cumsum(found) - found, found)
    return order[place < each][:most]


def largest_stratum(knobs: Knobs) -> int:
    """Rows of the (tp, pp, cp, ep) that has most."""
    return int(np.bincount(_strata(knobs)).max())


def _strata(knobs: Knobs) -> NDArray[np.intp]:
    """The number of its stratum, for every row."""
    columns = [np.broadcast_to(getattr(knobs, name), (knobs.size,)) for name in STRATA]
    _, stratum = combinations([coded(c) for c in columns])
    return stratum if len(stratum) else np.zeros(knobs.size, dtype=np.intp)


def _quota(counts: NDArray[np.intp], most: int) -> int:
    """The largest number of rows a stratum for which all strata together stay within `most`."""
    low, high = 0, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(counts, middle).sum()) <= most:
            low = middle
        else:
            high = middle - 1
    return max(low, 1)


def _luck(knobs: Knobs) -> NDArray[np.float64]:
    """A number in [0, 1) that looks random and follows from a row's knobs."""
    bits = _mixed(knobs, [f.name for f in KNOB_FIELDS]).view(np.uint64) * _MULTIPLIER
    bits = (bits ^ (bits >> np.uint64(32))) * _MULTIPLIER
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(knobs: Knobs, names: tuple[str, ...] | list[str]) -> NDArray[np.float64]:
    """A number a row that differs where any of the knobs does."""
    total = np.zeros(knobs.size)
    for name, weight in zip(names, _WEIGHTS, strict=False):
        total += weight * np.asarray(getattr(knobs, name), dtype=np.float64)
    return total
