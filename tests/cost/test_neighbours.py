"""Measured runs near a layout: one factor on every part of its step, and a narrower range."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from cases import columns_of, dense, moe, scalar, taken

from autoparallel.constants import Constants
from autoparallel.cost.case import Case
from autoparallel.cost.neighbours import doubt, places, slower
from autoparallel.cost.step import StepTime, interval_s, step_time
from autoparallel.nearby import PLACE, Nearby, nearby_of
from autoparallel.profiles import Spread

CASES = {"dense": dense(), "moe": moe()}
BOTH = pytest.mark.parametrize("of", CASES.values(), ids=CASES)
PARTS = tuple(f.name for f in fields(StepTime))


def measured(of: Case, *rows: int, slow: float = 1.1) -> Nearby:
    """Runs of some rows that took `slow` times what the formulas say."""
    return nearby_of(places(of)[list(rows)], np.full(len(rows), slow))


@BOTH
def test_without_runs_a_step_is_what_the_formulas_say(of: Case) -> None:
    assert slower(of) == doubt(of) == 1.0
    assert places(of).shape == (of.knobs.size, len(PLACE))


@BOTH
def test_every_part_is_longer_by_one_factor(of: Case) -> None:
    known = replace(of, nearby=measured(of, 0))
    factor = np.broadcast_to(slower(known), (of.knobs.size,))
    assert factor[0] > 1.05
    assert factor.max() == factor[0]
    before, after = (
        columns_of(step_time(of), of.knobs.size),
        columns_of(step_time(known), of.knobs.size),
    )
    for name in PARTS:
        np.testing.assert_allclose(after[name], before[name] * factor, rtol=1e-12, err_msg=name)


@BOTH
def test_a_scalar_layout_has_the_factor_of_its_column(of: Case) -> None:
    known = replace(of, nearby=measured(of, 0, 2))
    column, left = slower(known), doubt(known)
    for row in range(of.knobs.size):
        one = replace(scalar(of, row), nearby=known.nearby)
        np.testing.assert_allclose(slower(one), np.asarray(column)[row], rtol=1e-9)
        np.testing.assert_allclose(doubt(one), np.asarray(left)[row], rtol=1e-9)


def test_many_rows_have_the_factors_of_few() -> None:
    of = dense()
    known = measured(of, 1)
    few = np.asarray(slower(replace(of, nearby=known)))
    index = np.arange(5_000) % of.knobs.size
    many = slower(replace(taken(of, index), nearby=known))
    np.testing.assert_allclose(many, few[index], rtol=1e-12)


@BOTH
def test_a_range_is_narrower_near_a_run_and_never_narrower_than_between_layouts(of: Case) -> None:
    known = replace(of, nearby=measured(of, 0))
    step, spread = step_time(known), Spread(layout=0.02)
    wide, near = interval_s(step, spread), interval_s(step, spread, doubt(known))
    assert np.all(near[0] >= wide[0])
    assert np.all(near[1] <= wide[1])
    assert near[1][0] < wide[1][0]
    certain = interval_s(step, spread, 0.0)
    np.testing.assert_allclose(np.log(certain[1] / step.iteration_s), 1.645 * 0.02, rtol=1e-9)


def test_a_faster_gpu_is_as_much_faster_with_neighbours() -> None:
    of = dense()
    known = replace(of, nearby=measured(of, 0))
    faster = Constants(gemm_efficiency=1.1)
    gain = [
        np.asarray(step_time(replace(c, constants=faster)).iteration_s / step_time(c).iteration_s)
        for c in (of, known)
    ]
    np.testing.assert_allclose(*gain, rtol=1e-12)
