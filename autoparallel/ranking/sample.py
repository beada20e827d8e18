"""A sample of candidates that is even over meshes, drawn the same way in any order of blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoparallel.cost.unique import numbered
from autoparallel.layout import KNOB_FIELDS, Knobs, Product
from autoparallel.layout.distinct import coded, combinations

STRATA = ("tp", "pp", "cp", "ep")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = {
    f.name: np.uint64(int(_MULTIPLIER) * (2 * i + 3) % 2**64) for i, f in enumerate(KNOB_FIELDS)
}


def stratified(
    blocks: Sequence[Knobs],
    most: int,
    quota: int | None = None,
    luck: NDArray[np.float64] | None = None,
) -> NDArray[np.intp]:
    """Rows of a sample of at most `most`: as many of every (tp, pp, cp, ep) that has enough.

    A row's luck depends on its knobs alone, so a sample of samples is the sample of the whole.
    `quota` is a number beyond which no mesh is wanted, if one is known, `luck` that of all rows.
    Rows are numbered through all blocks.
    """
    mesh = _strata(blocks)
    counts = np.bincount(mesh)
    each = _quota(counts, most) if quota is None else min(_quota(counts, most), quota)
    if counts.max() <= each and len(mesh) <= most:
        return np.arange(len(mesh))
    if luck is None:
        luck = np.concatenate([lucks(knobs) for knobs in blocks])
    wanted = np.minimum(counts, each)
    rows = np.flatnonzero(luck < ((wanted + 6 * np.sqrt(wanted) + 1) / counts).take(mesh))
    if (np.bincount(mesh[rows], minlength=len(counts)) < wanted).any():
        rows = np.arange(len(mesh))
    order = rows[np.lexsort((luck[rows], mesh[rows]))]
    found = np.bincount(mesh[rows], minlength=len(counts))
    place = np.arange(len(order)) - np.repeat(np.cumsum(found) - found, found)
    return order[place < each][:most]


def largest_stratum(blocks: Sequence[Knobs]) -> int:
    """Rows of the (tp, pp, cp, ep) that has most."""
    return int(np.bincount(_strata(blocks)).max())


def _strata(blocks: Sequence[Knobs]) -> NDArray[np.intp]:
    """The number of its stratum, for every row."""
    if len(blocks) == 1:
        numbers = numbered(blocks[0], STRATA, {})
    else:
        columns = [[_column(knobs, name) for knobs in blocks] for name in STRATA]
        numbers = [coded(np.concatenate(parts)) for parts in columns]
    _, stratum = combinations(numbers)
    return stratum if len(stratum) else np.zeros(sum(k.size for k in blocks), dtype=np.intp)


def _column(knobs: Knobs, name: str) -> NDArray[np.float64]:
    return np.broadcast_to(getattr(knobs, name), (knobs.size,))


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


def lucks(knobs: Knobs) -> NDArray[np.float64]:
    """A number in [0, 1) that looks random and follows from a row's knobs."""
    bits = _mixed(knobs) * _MULTIPLIER
    bits = (bits ^ (bits >> np.uint64(32))) * _MULTIPLIER
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(knobs: Knobs) -> NDArray[np.uint64]:
    """A number a row that differs where any of the knobs does.

    Numbers of the single knobs are added, in any order: those of a product's part on its table.
    """
    total = np.zeros(knobs.size, dtype=np.uint64)
    parts = knobs.parts if isinstance(knobs, Product) else ()
    for part in parts:
        own = np.zeros(part.choices.rows, dtype=np.uint64)
        for name, column in part.choices.columns.items():
            own += _hashed(name, column)
        total += own.take(part.index)
    for name in _FACTORS.keys() - {name for part in parts for name in part.choices.columns}:
        total += _hashed(name, np.asarray(getattr(knobs, name)))
    return total


def _hashed(name: str, column: NDArray[np.float64]) -> NDArray[np.uint64]:
    bits = np.atleast_1d(column).astype(np.float64).view(np.uint64) * _FACTORS[name]
    mixed: NDArray[np.uint64] = (bits ^ (bits >> np.uint64(29))) * _MULTIPLIER
    return mixed
