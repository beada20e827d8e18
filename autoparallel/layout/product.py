"""Layouts of a product of choices: knobs chosen together share a table, a layout has a row in each.

A search multiplies axes out, so a block of a hundred thousand candidates is made of few choices an
axis. Kept as rows of those, a block is cut, joined and compared in a fraction of the columns, and
what depends on one axis alone is worked out on its table. A column is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoparallel.layout.columns import FEATURES, KNOB_FIELDS, Knobs, recomputed
from autoparallel.layout.distinct import Coded, combinations
from autoparallel.units import Num

Column = NDArray[np.float64]
Index = NDArray[np.intp]

FEW = 32
"""Choices that are not worth looking through for some that no layout has."""
_NAMES = frozenset(f.name for f in KNOB_FIELDS)


class Choices:
    """Values that some knobs take together: a row each choice."""

    def __init__(self, columns: Mapping[str, Column], of: Sequence[Part] = ()) -> None:
        """`of` are the parts that the columns were taken of, if any."""
        self.columns = dict(columns)
        self._of = tuple(of)
        self.rows = len(next(iter(self.columns.values())))
        self._codes: dict[frozenset[str], tuple[Index, int]] = {}
        self._features: dict[str, Column] = {}

    @classmethod
    def fused(cls, parts: Sequence[Part]) -> Choices:
        """A row each layout of `parts`, which are of the same layouts."""
        columns = {
            name: column.take(part.index)
            for part in parts
            for name, column in part.choices.columns.items()
        }
        return cls(columns, parts)

    def values(self, name: str) -> Column:
        """A knob of every row, or a feature of one."""
        if name in self.columns:
            return self.columns[name]
        if name not in self._features:
            of = FEATURES[name]
            self._features[name] = np.asarray(of.value(self.columns[of.knob]))
        return self._features[name]

    def own(self, names: Collection[str]) -> set[str]:
        """Which of some knobs and features this table decides."""
        knobs = self.columns.keys()
        return {n for n in names if (FEATURES[n].knob if n in FEATURES else n) in knobs}

    def take(self, rows: Index) -> Choices:
        """Some of the choices."""
        return Choices.fused([Part(self, rows)])

    def codes(self, names: frozenset[str]) -> tuple[Index, int]:
        """Every row's number among the distinct values of `names`, and how many there are."""
        if names not in self._codes:
            self._codes[names] = self._coded(names)
        return self._codes[names]

    def _coded(self, names: frozenset[str]) -> tuple[Index, int]:
        if self._of:
            one, own = combinations([coded for part in self._of for coded in part.coded(names)])
            return (own, len(one)) if len(own) else (np.zeros(self.rows, dtype=np.intp), 1)
        code, count = np.zeros(self.rows, dtype=np.intp), 1
        for name in sorted(names):
            values, own = np.unique(self.values(name), return_inverse=True)
            keys, code = np.unique(code * len(values) + own, return_inverse=True)
            count = len(keys)
        return code, count


class Part:
    """One table of choices, and the row of it that every layout has."""

    def __init__(self, choices: Choices, index: Index, of: Part | None = None) -> None:
        """`index` holds rows of `choices`; or, with `of`, layouts of that part, for later."""
        self.choices = choices
        self._index, self._of = index, of

    @property
    def index(self) -> Index:
        """The row of every layout."""
        if self._of is not None:
            self._index, self._of = self._of.index.take(self._index), None
        return self._index

    def at(self, layouts: Index) -> Part:
        """The same for some of the layouts."""
        return Part(self.choices, layouts, self)

    def compact(self) -> Part:
        """The same without choices that no layout has, unless they are few."""
        if self.choices.rows <= FEW:
            return self
        present = np.flatnonzero(np.bincount(self.index, minlength=self.choices.rows))
        if len(present) == self.choices.rows:
            return self
        place = np.zeros(self.choices.rows, dtype=np.intp)
        place[present] = np.arange(len(present))
        return Part(self.choices.take(present), place.take(self.index))

    def coded(self, names: Collection[str]) -> list[Coded]:
        """The values of those of some knobs and features that this part decides, numbered."""
        own = self.choices.own(names)
        codes, count = self.choices.codes(frozenset(own)) if own else (self.index, 1)
        return [Coded(codes=codes, count=count, rows=self.index)] if count > 1 else []

    def spread(self, values: NDArray[Any]) -> Any:
        """Values a row of the table, for every layout; a scalar where all are equal."""
        return values[0] if (values == values[0]).all() else values.take(self.index)


class Product(Knobs):
    """Knobs kept as parts. Which knobs were read is noted, here and in what this was taken of."""

    def __init__(
        self,
        parts: Sequence[Part],
        size: int,
        *,
        num_gpus: Num,
        global_batch_size: Num,
        stage_table: tuple[tuple[int, ...], ...] = ((),),
        taken_of: Product | None = None,
    ) -> None:
        self.__dict__.update(
            parts=tuple(parts),
            num_gpus=np.float64(num_gpus),
            global_batch_size=np.float64(global_batch_size),
            stage_table=stage_table,
            read=set(),
            _size=size,
            _taken_of=taken_of,
            _part_of={name: part for part in parts for name in part.choices.columns},
        )

    parts: tuple[Part, ...]
    read: set[str]

    def __getattr__(self, name: str) -> Any:
        if name not in _NAMES:
            raise AttributeError(name)
        self._note((name,))
        part = self._part_of.get(name)
        value = np.float64(np.nan) if part is None else part.spread(part.choices.columns[name])
        self.__dict__[name] = value
        return value

    def _note(self, names: Iterable[str]) -> None:
        self.read.update(names)
        if self._taken_of is not None:
            self._taken_of._note(names)

    @property
    def size(self) -> int:
        """Number of candidates."""
        return int(self._size)

    @cached_property
    def dp(self) -> Num:
        """Data-parallel size."""
        return self._of_one_part(
            lambda tp, pp, cp: self.num_gpus / (tp * pp * cp), "tp", "pp", "cp"
        )

    @cached_property
    def micro_batches(self) -> Num:
        """Micro-batches a pipeline runs in one step."""

        def count(mbs: Column, tp: Column, pp: Column, cp: Column) -> Num:
            return self.global_batch_size / (mbs * (self.num_gpus / (tp * pp * cp)))

        return self._of_one_part(count, "mbs", "tp", "pp", "cp")

    def module(self, name: str) -> Num:
        """1 where `name` is recomputed selectively."""
        return self._of_one_part(
            lambda modules, granularity: recomputed(modules, granularity, name),
            "modules",
            "granularity",
        )

    def feature(self, name: str) -> Num:
        """The entry `name` of `FEATURES`: noted as read in the place of its knob."""
        if (part := self._part_of.get(FEATURES[name].knob)) is None:
            return super().feature(name)
        self._note((name,))
        found: Num = part.spread(part.choices.values(name))
        return found

    def _of_one_part(self, formula: Callable[..., Any], *names: str) -> Num:
        """`formula` of some knobs: on the table where one holds them all, else on their columns."""
        part = self._part_of.get(names[0])
        if part is None or any(self._part_of.get(name) is not part for name in names):
            plain: Num = formula(*(getattr(self, name) for name in names))
            return plain
        self._note(names)
        found: Num = part.spread(formula(*(part.choices.columns[name] for name in names)))
        return found

    def at(self, layouts: Index) -> Product:
        """Some of the layouts, as a product that tells this one what is read of it."""
        return Product(
            [part.at(layouts) for part in self.parts],
            len(layouts),
            num_gpus=self.num_gpus,
            global_batch_size=self.global_batch_size,
            stage_table=self.stage_table,
            taken_of=self,
        )

    def coded(self, names: Collection[str]) -> list[Coded]:
        """The values of some knobs and features numbered, part by part."""
        return [coded for part in self.parts for coded in part.coded(names)]

    def take(self, index: NDArray[Any] | slice) -> Knobs:
        """The rows at `index`, every knob a column."""
        rows = np.arange(self.size)[index]
        columns: dict[str, Any] = {
            name: np.full(len(rows), getattr(self, name))
            for name in _NAMES
            if name not in self._part_of
        }
        for part in self.parts:
            own = part.index.take(rows)
            columns |= {name: v.take(own) for name, v in part.choices.columns.items()}
        return Knobs(**columns, stage_table=self.stage_table)
