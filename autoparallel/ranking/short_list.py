"""The short list: the best layouts, without near-duplicates of one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoparallel.layout import Knobs

MESH = ("tp", "pp", "cp", "ep", "etp")
SAME_MESH = 3
"""Layouts of one mesh (tp, pp, cp, ep, etp) on a short list before others get their turn."""


def short_list(
    knobs: Knobs, top: int, predicted: Sequence[NDArray[np.float64]] = ()
) -> NDArray[np.intp]:
    """Rows of an ordered table for the short list, in order.

    The first row always leads. No mesh takes more than `SAME_MESH` places while others are left, so
    a trial of the list learns something about each of them; and a layout that differs in nothing
    that is `predicted` (columns such as time and memory) from one on the list is left out.
    """
    same: set[tuple[float, ...]] = set()
    mesh = np.stack([np.broadcast_to(getattr(knobs, name), (knobs.size,)) for name in MESH])
    seen: dict[tuple[float, ...], int] = {}
    chosen: list[int] = []
    spare: list[int] = []
    for row in range(knobs.size):
        outcome = tuple(float(column[row]) for column in predicted)
        if predicted and outcome in same:
            continue
        same.add(outcome)
        key = tuple(mesh[:, row].tolist())
        seen[key] = seen.get(key, 0) + 1
        (chosen if seen[key] <= SAME_MESH else spare).append(row)
        if len(chosen) == top:
            break
    picked = sorted(chosen + spare[: top - len(chosen)])
    return np.array(picked, dtype=np.intp)
