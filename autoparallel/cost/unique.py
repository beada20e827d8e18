"""Work done once per distinct combination: what depends on few knobs is computed on few rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from autoparallel.cost.case import Case
from autoparallel.layout import FEATURES, KNOB_FIELDS, Knobs, Product
from autoparallel.layout.distinct import Coded, Index, coded, combinations
from autoparallel.units import Num

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
    return _per_combination(formula, gathered)


def kept_per_combination(formula: Callable[[Case], Result]) -> Callable[[Case], Result]:
    """As `per_combination`, with records of columns gathered only when they are asked for."""
    return _per_combination(formula, _shared)


def _per_combination(
    formula: Callable[[Case], Result], spread: Callable[[Result, Index], Result]
) -> Callable[[Case], Result]:
    known: dict[tuple[bool, bool], set[str]] = defaultdict(set)

    @wraps(formula)
    def factored(case: Case) -> Result:
        if formula not in case.done:
            few, own = _factored(formula, case, known[_kind(case)])
            case.done[formula] = few if own is None else spread(few, own)
        result: Result = case.done[formula]
        return result

    return factored


def _kind(case: Case) -> tuple[bool, bool]:
    """What decides which knobs a formula reads: experts, and uneven stages."""
    return bool(np.any(case.model.E)), len(case.knobs.stage_table) > 1


def _factored(
    formula: Callable[[Case], Result], case: Case, known: set[str]
) -> tuple[Result, Index | None]:
    """The formula on few rows, and which of them each row is; None where it took all rows."""
    if np.ndim(case.gpu_index) or np.ndim(case.model.L):
        return formula(case), None
    while True:
        names = known.copy()
        first, inverse = combinations(_coded(case, names))
        if names and len(first) > min(WORTH_IT * len(inverse), len(inverse) - FEWEST_ROWS):
            return formula(case), None
        rows = case.knobs.at(first) if isinstance(case.knobs, Product) else Rows(case.knobs, first)
        fewer = replace(case, knobs=rows, machine=gathered(case.machine, first))
        wanted = names | _machine_columns(case).keys()
        fewer.codes.update(
            {name: case.codes[name].take(first) for name in wanted & case.codes.keys()}
        )
        few = formula(fewer)
        if rows.read <= names:
            return few, inverse
        known.update(rows.read)


class Rows(Knobs):
    """Rows of other knobs: a column is taken, and noted as read, when it is first asked for."""

    def __init__(self, whole: Knobs, index: Index) -> None:
        self.__dict__.update(
            _whole=whole, _index=index, _features={}, stage_table=whole.stage_table
        )

    def __getattr__(self, name: str) -> Any:
        if name not in _NAMES:
            raise AttributeError(name)
        column = gathered(getattr(self._whole, name), self._index)
        self.__dict__[name] = column
        return column

    def feature(self, name: str) -> Num:
        """The entry `name` of `FEATURES`: noted as read in the place of its knob."""
        if name not in self._features:
            self._features[name] = gathered(self._whole.feature(name), self._index)
        found: Num = self._features[name]
        return found

    @property
    def read(self) -> frozenset[str]:
        """Names of the columns and features that were asked for."""
        return frozenset((_NAMES & self.__dict__.keys()) | self._features.keys())


class Shared:
    """A record of columns kept once per combination: a column is gathered when asked for."""

    def __init__(self, few: Any, own: Index) -> None:
        self._few, self._own = few, own

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return gathered(getattr(self._few, name), self._own)

    def at(self, index: Index) -> Shared:
        """The rows at `index`, left for later."""
        return Shared(self._few, self._own.take(index))

    def taken(self, index: Index | NDArray[np.bool_]) -> Any:
        """The record itself with the rows at `index`."""
        return gathered(self._few, self._own[index])


class Assembled:
    """A record that is made of others, when something of it is asked for."""

    def __init__(self, made: Callable[..., Any], *sources: Any) -> None:
        self._made, self._sources, self._whole = made, sources, None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._whole is None:
            self._whole = self._made(*self._sources)
        return getattr(self._whole, name)

    def at(self, index: Index) -> Assembled:
        """The rows at `index`, left for later."""
        return Assembled(self._made, *(later(source, index) for source in self._sources))

    def taken(self, index: Index | NDArray[np.bool_]) -> Any:
        """The record itself with the rows at `index`."""
        return self._made(*(gathered(source, index) for source in self._sources))


def assembled(made: Callable[..., Result], *sources: Any) -> Result:
    """`made` of the sources: at once, or when asked for where one of them is kept for later."""
    kept = (part for x in sources for part in (x if isinstance(x, tuple) else (x,)))
    if any(isinstance(part, Shared | Assembled) for part in kept):
        postponed: Any = Assembled(made, *sources)
        return cast("Result", postponed)
    return made(*sources)


def later(record: Any, index: Index) -> Any:
    """Rows of a record, left for later where it is kept so."""
    if isinstance(record, tuple):
        return tuple(later(part, index) for part in record)
    if isinstance(record, Shared | Assembled):
        return record.at(index)
    return gathered(record, index)


def _shared(result: Any, own: Index) -> Any:
    """`result` for every row: columns gathered, records left for later."""
    if isinstance(result, tuple):
        return tuple(_shared(part, own) for part in result)
    return Shared(result, own) if is_dataclass(result) else gathered(result, own)


def gathered(result: Any, index: Index | NDArray[np.bool_]) -> Any:
    """A column, or a record or tuple of columns, taken at `index`; scalars stay scalars."""
    if isinstance(result, np.ndarray):
        if not result.ndim:
            return result
        return result[index] if index.dtype == bool else result.take(index, axis=0)
    if isinstance(result, Shared | Assembled):
        return result.taken(index)
    if isinstance(result, tuple):
        return tuple(gathered(part, index) for part in result)
    if is_dataclass(result) and not isinstance(result, type):
        parts = {f.name: gathered(getattr(result, f.name), index) for f in fields(result)}
        return type(result)(**parts)
    return result


def _coded(case: Case, names: set[str]) -> list[Coded]:
    """Knobs and what of the machine differs from row to row, numbered."""
    columns = _machine_columns(case)
    return numbered(case.knobs, names, case.codes) + _numbered_columns(columns, case.codes)


def numbered(knobs: Knobs, names: Collection[str], known: dict[str, Coded]) -> list[Coded]:
    """The values of some knobs numbered: of a product part by part, else a column each.

    `known` are columns that are numbered already; new ones are added.
    """
    if isinstance(knobs, Product):
        return knobs.coded(names)
    columns = {n: knobs.feature(n) if n in FEATURES else getattr(knobs, n) for n in names}
    return _numbered_columns(dict(sorted(columns.items())), known)


def _numbered_columns(columns: dict[str, Num], known: dict[str, Coded]) -> list[Coded]:
    varied = {name: np.asarray(value) for name, value in columns.items() if np.ndim(value)}
    for name, value in varied.items():
        if name not in known:
            known[name] = coded(value)
    return [known[name] for name in varied]


def _machine_columns(case: Case) -> dict[str, Num]:
    """What of the machine differs from row to row."""
    values = {f"machine.{f.name}": getattr(case.machine, f.name) for f in fields(case.machine)}
    return {name: value for name, value in values.items() if np.ndim(value)}
