"""Finding a value in a table: by name, or between its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from autoparallel.errors import ProfileError, nearest
from autoparallel.units import Num

T = TypeVar("T")
Array = NDArray[np.float64]


def entry(table: Mapping[str, T], key: str, what: str) -> T:
    """What `table` has under `key`; `what` names its entries in the error."""
    try:
        return table[key]
    except KeyError:
        raise ProfileError(f"{what}: {key!r} is not tabulated; {nearest(key, table)}") from None


def bilinear(table: Array, row: Num, column: Num) -> Num:
    """Linear interpolation at fractional indices that lie inside the table."""
    i, x = _cell(row, table.shape[0])
    j, y = _cell(column, table.shape[1])
    flat, corner = table.ravel(), i * table.shape[1] + j
    low = flat[corner] * (1 - y) + flat[corner + 1] * y
    corner = corner + table.shape[1]
    high = flat[corner] * (1 - y) + flat[corner + 1] * y
    result: Num = low + (high - low) * x
    return result


def trilinear(table: Array, plane: Num, row: Num, column: Num) -> Num:
    """`bilinear` with one more axis in front."""
    i, x = _cell(plane, table.shape[0])
    j, y = _cell(row, table.shape[1])
    k, z = _cell(column, table.shape[2])
    flat, stride = table.ravel(), table.shape[1] * table.shape[2]
    corner = i * stride + j * table.shape[2] + k
    result: Num = 0.0
    for offset_i, weight_i in ((0, 1 - x), (stride, x)):
        for offset_j, weight_j in ((0, 1 - y), (table.shape[2], y)):
            at = corner + (offset_i + offset_j)
            result = result + (flat[at] + (flat[at + 1] - flat[at]) * z) * (weight_i * weight_j)
    return result


def _cell(position: Num, size: int) -> tuple[NDArray[np.intp], Num]:
    """Index of the cell's lower corner and the position inside the cell, in [0, 1]."""
    corner = np.minimum(np.asarray(position).astype(np.intp), size - 2)
    return corner, position - corner
