"""Work done once per distinct combination: what depends on few knobs is computed on few rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoparallel.cost.case import Case
from autoparallel.cost.distinct import Coded, Index, coded, combinations
from autoparallel.layout import KNOB_FIELDS, Knobs

Result = TypeVar("Result")

FEWEST_ROWS = 512
"""Below it gathering costs more than it saves."""
WORTH_IT = 0.7
"""Share of distinct rows above which it does so too."""
_NAMES = frozenset(f.name for f in KNOB_FIELDS)


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
        names = known.copy()
        first, inverse = combinations(_coded(case, names))
        if names and len(first) > min(WORTH_IT * len(inverse), len(inverse) - FEWEST_ROWS):
            return formula(case)
        rows = Rows(case.knobs, first)
        fewer = replace(case, knobs=rows, machine=gathered(case.machine, first))
        fewer.codes.update(
            {name: case.codes[name].take(first) for name in names & case.codes.keys()}
        )
        few = formula(fewer)
        if rows.read <= names:
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


def _coded(case: Case, names: set[str]) -> list[Coded]:
    """Knobs and what of the machine differs from row to row, each numbered once a case."""
    varied = {name: value for name in sorted(names) if np.ndim(value := getattr(case.knobs, name))}
    for f in fields(case.machine):
        if np.ndim(value := getattr(case.machine, f.name)):
            varied[f"machine.{f.name}"] = value
    for name, value in varied.items():
        if name not in case.codes:
            case.codes[name] = coded(value)
    return [case.codes[name] for name in varied]
