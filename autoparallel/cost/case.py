"""A case: everything the formulas of this room need, each part scalar or column."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autoparallel.constants import Constants, MemoryConstants
from autoparallel.framework import Traits
from autoparallel.hardware import Machine
from autoparallel.layout import Knobs
from autoparallel.layout.distinct import Coded
from autoparallel.model import Shape
from autoparallel.nearby import Nearby
from autoparallel.operators import Operators
from autoparallel.units import Num


def flag(condition: Any) -> Num:
    """1 where `condition` holds, else 0."""
    return np.where(condition, 1.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """Layouts of a model on a machine under a framework: N candidates, or N measured runs.

    Any number in any part may be a scalar (shared by all rows) or a column [N].

    Attributes:
        operators: Measured tables of the GPUs: one for a search, several for a file of runs.
        gpu_index: Which of them a row uses; scalar 0 or [N].
        nearby: Measured runs of the family that `constants` were fitted to; None without any.
        done: Results of this very case, so that a formula that several others use runs once.
        codes: Columns of this very case with their values numbered, for the same reason.
    """

    model: Shape
    machine: Machine
    knobs: Knobs
    traits: Traits
    constants: Constants
    memory: MemoryConstants = field(default_factory=MemoryConstants)
    operators: tuple[Operators, ...]
    gpu_index: Num = 0.0
    nearby: Nearby | None = None
    done: dict[Callable[[Case], Any], Any] = field(default_factory=dict, init=False, repr=False)
    codes: dict[str, Coded] = field(default_factory=dict, init=False, repr=False)

    def look_up(self, table: Callable[..., Num], *columns: Num) -> Num:
        """`table(operators, *columns)` with every row's own GPU."""
        if len(self.operators) == 1:
            return table(self.operators[0], *columns)
        size = np.size(self.gpu_index)
        out = np.empty(size)
        for i, operators in enumerate(self.operators):
            rows = np.asarray(self.gpu_index) == i
            own = [np.broadcast_to(np.asarray(c), (size,))[rows] for c in columns]
            out[rows] = table(operators, *own)
        return out
