"""Which rows of some columns are alike: every column's values numbered, the numbers combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]
Index = NDArray[np.intp]

_GUESS = 2048
"""Rows whose values are tried for a whole column first; knobs take few values."""
_TABLE = 4
"""Entries a row that a table of keys may have; more keys than that are sorted instead."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coded:
    """A column as numbers of its distinct values, 0 to `count` - 1."""

    codes: Index
    count: int

    def take(self, index: Index) -> Coded:
        """The rows at `index`, under the same numbers."""
        return Coded(codes=self.codes[index], count=self.count)


def coded(column: Column) -> Coded:
    """`column` numbered. Neighbours are often equal: each run of equals is looked up once."""
    new = np.ones(len(column), dtype=bool)
    np.not_equal(column[1:], column[:-1], out=new[1:])
    heads = np.flatnonzero(new)
    values = column[heads]
    distinct = np.unique(values[:_GUESS])
    codes = np.minimum(np.searchsorted(distinct, values), len(distinct) - 1)
    if (distinct[codes] != values).any():
        distinct, codes = np.unique(values, return_inverse=True)
    if len(heads) < len(column):
        codes = np.repeat(codes, np.diff(heads, append=len(column)))
    return Coded(codes=codes.astype(np.intp), count=len(distinct))


def combinations(columns: Sequence[Coded]) -> tuple[Index, Index]:
    """One row of each distinct combination, and for every row the number of its own."""
    varied = [c for c in columns if c.count > 1]
    if not varied:
        return np.zeros(1, dtype=np.intp), np.zeros(0, dtype=np.intp)
    key, count = varied[0].codes, varied[0].count
    for c in varied[1:]:
        if count * c.count > _TABLE * len(key):
            one, key = _numbered(key, count)
            count = len(one)
        key, count = key * c.count + c.codes, count * c.count
    return _numbered(key, count)


def _numbered(key: Index, count: int) -> tuple[Index, Index]:
    """One row of each distinct key below `count`, and every row's number among them."""
    rows = len(key)
    if count > _TABLE * rows:
        _, one, own = np.unique(key, return_index=True, return_inverse=True)
        return one, own
    row_of = np.full(count, -1, dtype=np.intp)
    row_of[key] = np.arange(rows)
    distinct = np.flatnonzero(row_of >= 0)
    one = row_of.take(distinct)
    row_of[distinct] = np.arange(len(distinct))
    return one, row_of.take(key)
