"""How much longer a step takes than the formulas say, as measured runs near the layout show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoparallel.cost.case import Case, flag
from autoparallel.cost.compute import is_narrow, tokens
from autoparallel.cost.unique import per_combination
from autoparallel.layout.distinct import coded, combinations
from autoparallel.nearby import LENGTHS, PLACE
from autoparallel.units import Num


def slower(case: Case) -> Num:
    """What every part of the step is multiplied by; 1 where no measured run is near."""
    return 1.0 if case.nearby is None else _slower(case)


@per_combination
def _slower(case: Case) -> Num:
    assert case.nearby is not None
    where, split = places(case), len(LENGTHS)
    sizes, own_sizes = _distinct(where[:, :split])
    choices, own_choices = _distinct(where[:, split:])
    factors = case.nearby.factors(sizes, choices)
    return _num(factors[own_sizes, own_choices])


def _distinct(columns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The distinct rows of some columns, and which of them every row is."""
    one, own = combinations([coded(column) for column in columns.T])
    return columns[one], own if len(own) else np.zeros(len(columns), dtype=np.intp)


def doubt(case: Case) -> Num:
    """Share of a prediction's variance that measured runs near the layout leave; 1 without any."""
    return 1.0 if case.nearby is None else _num(case.nearby.doubt(places(case)))


def _num(column: NDArray[np.float64]) -> Num:
    """A column, or the number of a single row."""
    return column if len(column) > 1 else float(column[0])


def places(case: Case) -> NDArray[np.float64]:
    """Where each row is among layouts, [N, len(PLACE)]."""
    k = case.knobs
    columns: dict[str, Num] = {
        "hidden_size": case.model.h,
        "micro_batch_tokens": tokens(case),
        "tp": k.tp,
        "pp": k.pp,
        "vpp": k.vpp,
        "cp": k.cp,
        "ep": k.ep,
        "dp": k.dp,
        "micro_batches": k.micro_batches,
        "zero": k.zero,
        "sequence_parallel": k.sp,
        "recompute": k.granularity,
        "narrow": flag(is_narrow(case)),
    }
    found = np.broadcast_arrays(*(np.atleast_1d(columns[name]) for name in PLACE))
    return np.stack(found, axis=1).astype(np.float64)
