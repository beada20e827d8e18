"""Work done once per distinct combination: what depends on few knobs is computed on few rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoparallel.cost.case import Case
from autoparallel.layout import KNOB_FIELDS, Knobs

Result = TypeVar("Result")
Column = NDArray[np.float64]
Index = NDArray[np.intp]

FEWEST_ROWS = 512
"""Below it gathering costs more than it saves."""
WORTH_IT = 0.7
"""Share of distinct rows above which it does so too."""
_NAMES = frozenset(f.name for f in KNOB_FIELDS)
_WEIGHTS = np.random.default_rng(0).random(64)
_MULTIPLIER = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)


def per_combination(formula: Callable[[Case], Result]) -> Callable[[Case], Result]:
    """`formula`, computed once per distinct combination of the knobs it reads, and gathered.

    Nobody declares those knobs: the rows that it is given note which columns it takes. Should it
    take one that was not known to matter, the combinations are made anew with that one. Where model
    or GPU differ from row to row, as in a file of runs, it is computed row by row.
    """
    known: dict[tuple[bool, bool], set[str]] = defaultdict(set)

    @wraps(formula)
    def factored(case: Case) -> Result:
        if formula not in case.done:
            case.done[formula] = _factored(formula, case, known[_kind(case)])
        result: Result = case.done[formula]
        return result

    return factored


def _kind(case: Case) -> tuple[bool, bool]:
    """What decides which knobs a formula reads: experts, and uneven stages."""
    return bool(np.any(case.model.E)), len(case.knobs.stage_table) > 1


def _factored(formula: Callable[[Case], Result], case: Case, known: set[str]) -> Result:
    if np.ndim(case.gpu_index) or np.ndim(case.model.L):
        return formula(case)
    while True:
        names = sorted(known)
        columns = [*(getattr(case.knobs, name) for name in names), *_columns(case.machine)]
        first, inverse = combinations([c for c in columns if np.ndim(c)])
        if names and len(first) > min(WORTH_IT * len(inverse), len(inverse) - FEWEST_ROWS):
            return formula(case)
        rows = Rows(case.knobs, first)
        few = formula(replace(case, knobs=rows, machine=gathered(case.machine, first)))
        if rows.read <= set(names):
            result: Result = gathered(few, inverse)
            return result
        known.update(rows.read)


class Rows(Knobs):
    """Rows of other knobs: a column is taken, and noted as read, when it is first asked for."""

    def __init__(self, whole: Knobs, index: Index) -> None:
        self.__dict__.update(_whole=whole, _index=index, stage_table=whole.stage_table)

    def __getattr__(self, name: str) -> Any:
        if name not in _NAMES:
            raise AttributeError(name)
        column = gathered(getattr(self._whole, name), self._index)
        self.__dict__[name] = column
        return column

    @property
    def read(self) -> frozenset[str]:
        """Names of the columns that were asked for."""
        return _NAMES & self.__dict__.keys()


def combinations(columns: Sequence[Column]) -> tuple[Index, Index]:
    """The first row of each distinct combination, and for every row the number of its own.

    Equal neighbours, of which a search space has many, are put together first.
    """
    columns = [c for c in columns if (c != c[0]).any()]
    if not columns:
        return np.zeros(1, dtype=np.intp), np.zeros(0, dtype=np.intp)
    new = np.zeros(len(columns[0]), dtype=bool)
    new[0] = True
    for c in columns:
        new[1:] |= c[1:] != c[:-1]
    heads, run = np.flatnonzero(new), np.cumsum(new) - 1
    few = [c[heads] for c in columns]
    alike = _first_alike(few)
    if any((c[alike] != c).any() for c in few):  # two combinations happen to share a key
        return heads, run
    first = alike == np.arange(len(alike))
    return heads[first], (np.cumsum(first) - 1)[alike][run]


def _first_alike(columns: Sequence[Column]) -> Index:
    """For every row the first one with its key, found through a table of hashed keys."""
    key = sum(c * (w / np.abs(c).max()) for c, w in zip(columns, _WEIGHTS, strict=False))
    bits = np.asarray(key, dtype=np.float64).view(np.uint64)
    size = 2 + len(bits).bit_length()
    table = np.empty(1 << size, dtype=np.intp)
    alike, rest = np.empty(len(bits), dtype=np.intp), np.arange(len(bits))
    multiplier = _MULTIPLIER
    while len(rest):
        slot = ((bits[rest] * multiplier) >> np.uint64(64 - size)).astype(np.intp)
        table[slot[::-1]] = rest[::-1]
        found = table[slot]
        same = bits[found] == bits[rest]
        alike[rest[same]] = found[same]
        rest, multiplier = rest[~same], multiplier * _MULTIPLIER
    return alike


def gathered(result: Any, index: Index | NDArray[np.bool_]) -> Any:
    """A column, or a record or tuple of columns, taken at `index`; scalars stay scalars."""
    if isinstance(result, np.ndarray):
        return result[index] if result.ndim else result
    if isinstance(result, tuple):
        return tuple(gathered(part, index) for part in result)
    if is_dataclass(result) and not isinstance(result, type):
        parts = {f.name: gathered(getattr(result, f.name), index) for f in fields(result)}
        return type(result)(**parts)
    return result


def _columns(record: Any) -> list[Column]:
    """Those values of a record that differ from row to row."""
    values = (getattr(record, f.name) for f in fields(record))
    return [value for value in values if np.ndim(value)]
