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
_TABLE = 8
"""Entries a row that a table of keys may have; more keys than that are sorted instead."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coded:
    """A column as numbers of its distinct values, 0 to `count` - 1.

    Attributes:
        codes: The number of every row; with `rows`, of every entry of a table.
        rows: Which entry of that table a row is.
    """

    codes: Index
    count: int
    rows: Index | None = None

    def take(self, index: Index) -> Coded:
        """The rows at `index`, under the same numbers."""
        if self.rows is None:
            return Coded(codes=self.codes[index], count=self.count)
        return Coded(codes=self.codes, count=self.count, rows=self.rows[index])

    def times(self, step: int) -> Index:
        """The number of every row, `step` apart."""
        codes = self.codes * step
        return codes if self.rows is None else codes.take(self.rows)


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
    first, *rest = varied
    rows = len(first.codes if first.rows is None else first.rows)
    while True:
        group, count = [first], first.count
        while rest and (len(group) == 1 or count * rest[0].count <= _TABLE * rows):
            group.append(rest.pop(0))
            count *= group[-1].count
        one, own = _numbered(_key(group), count)
        if not rest:
            return one, own
        first = Coded(codes=own, count=len(one))


def _key(columns: Sequence[Coded]) -> Index:
    """A number that differs where any column does; the last column's count by ones."""
    key, step = columns[-1].times(1), columns[-1].count
    for c in columns[-2::-1]:
        own = c.times(step)
        key, step = np.add(key, own, out=own), step * c.count
    return key


def _numbered(key: Index, count: int) -> tuple[Index, Index]:
    """One row of each distinct key below `count`, and every row's number among them."""
    rows = len(key)
    if count > _TABLE * rows:
        _, one, own = np.unique(key, return_index=True, return_inverse=True)
        return one, own
    present = np.zeros(count, dtype=bool)
    present[key] = True
    distinct = np.flatnonzero(present)
    number = np.empty(count, dtype=np.intp)
    number[distinct] = np.arange(len(distinct))
    own = number.take(key)
    one = np.empty(len(distinct), dtype=np.intp)
    one[own] = np.arange(rows)
    return one, own
