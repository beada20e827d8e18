"""Units and the number type every formula accepts.

Inside the package everything is SI: bytes, seconds, bytes per second, FLOP per second. The names
below convert at the edges (YAML in, reports out) and nowhere else.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Num: TypeAlias = float | NDArray[np.float64]
"""A float, or a float64 column of shape [N]. A formula written for `Num` serves both."""

MIB = 1024.0**2
GIB = 1024.0**3
GB = 1e9
TERA = 1e12
US = 1e-6
MS = 1e-3
DAY_S = 86_400.0


def indicator(condition: Any) -> Num:
    """1.0 where `condition` holds and 0.0 elsewhere, scalar or [N]: a switch in a formula."""
    number: Num = np.asarray(condition, dtype=np.float64)
    return number
