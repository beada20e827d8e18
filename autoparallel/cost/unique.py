"""Work done once per distinct combination: what depends on few knobs is computed on few rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from autoparallel.cost.case import Case

Record = TypeVar("Record")

WORTH_IT = 0.7
"""Share of distinct rows above which gathering costs more than it saves."""
_WEIGHTS = np.sqrt(np.arange(2.0, 2.0 + 64.0)) * np.pi


def on_unique(
    case: Case, names: Sequence[str], formula: Callable[[Case], Record], *more: NDArray[np.float64]
) -> Record:
    """`formula(case)`, computed once per distinct combination of the knobs `names` and gathered.

    `formula` must read no other knob column; `more` are further columns it depends on (through knobs
    that are not named, such as the layers of a chunk). The other parts of the case must be scalars,
    else it is computed row by row.
    """
    columns = [np.asarray(getattr(case.knobs, name)) for name in names]
    columns = [c for c in (*columns, *more) if c.ndim]
    if not columns or np.ndim(case.gpu_index) or np.ndim(case.model.L):
        return formula(case)
    key = sum(c * w for c, w in zip(columns, _WEIGHTS, strict=False))
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    if len(first) > WORTH_IT * len(inverse):
        return formula(case)
    for c in columns:  # two combinations with one key would be a wrong answer: compute row by row
        if not np.array_equal(c[first][inverse], c):
            return formula(case)
    few = formula(replace(case, knobs=case.knobs.take(first)))
    return gathered(few, inverse)


def gathered(record: Record, index: NDArray[np.intp]) -> Record:
    """The record with every column taken at `index`."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}  # type: ignore[arg-type]
    taken = {k: v[index] if isinstance(v, np.ndarray) and v.ndim else v for k, v in values.items()}
    return type(record)(**taken)


