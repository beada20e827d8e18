"""How sure an order is: chances of being best, shared errors that cancel, ties."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.constants import NORMAL_90
from autoparallel.cost.step import StepTime
from autoparallel.profiles import Spread
from autoparallel.ranking import (
    best_probability,
    interval_ties,
    sampled_times,
    surest_choice,
    ties,
)

PARTS = tuple(f.name for f in fields(StepTime))
SPREAD = Spread()
STEPS = st.integers(1, 8).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(0.01, 10.0), min_size=len(PARTS), max_size=len(PARTS)),
        min_size=n,
        max_size=n,
    )
)


def steps(rows: list[list[float]]) -> StepTime:
    """One row of parts a layout."""
    return StepTime(**dict(zip(PARTS, np.array(rows).T, strict=True)))


def named(**parts: list[float]) -> StepTime:
    n = len(next(iter(parts.values())))
    columns: dict[str, Any] = {name: np.zeros(n) for name in PARTS}
    return StepTime(**columns | {name: np.array(values) for name, values in parts.items()})


def chances(step: StepTime, spread: Spread = SPREAD, fits: Any = 1.0) -> np.ndarray:
    times = sampled_times(step, spread)
    return best_probability(times, np.broadcast_to(np.asarray(fits, float), times.shape[1:]))


@given(STEPS)
@settings(max_examples=40, deadline=None)
def test_chances_sum_to_one(rows: list[list[float]]) -> None:
    found = chances(steps(rows))
    assert found.shape == (len(rows),)
    assert np.all(found >= 0)
    assert found.sum() == pytest.approx(1)


@given(STEPS, st.data())
@settings(max_examples=40, deadline=None)
def test_only_what_can_fit_can_be_best(rows: list[list[float]], data: Any) -> None:
    fits = np.array(
        data.draw(
            st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(rows), max_size=len(rows))
        )
    )
    found = chances(steps(rows), fits=fits)
    assert np.all(found[fits == 0] == 0)
    assert found.sum() == pytest.approx(1 if fits.any() else 0)


@given(STEPS)
@settings(max_examples=25, deadline=None)
def test_a_layout_faster_in_every_part_always_wins(rows: list[list[float]]) -> None:
    """Errors common to all layouts cannot turn it around, however large."""
    best = np.min(rows, axis=0) * 0.9
    wild = Spread(compute=1.0, communication=2.0, bubble=2.0, launch=2.0, layout=0.0)
    found = chances(steps([*rows, best.tolist()]), wild)
    assert found[-1] == 1
    assert chances(steps([*rows, (best / 2).tolist()]))[-1] > 0.99


def test_identical_layouts_share() -> None:
    found = chances(named(compute_s=[1.0, 1.0, 1.0, 1.0], dp_comm_s=[0.1] * 4))
    assert np.all(np.abs(found - 0.25) < 0.05)
    two = chances(named(compute_s=[1.0, 1.0, 5.0]))
    assert abs(two[0] - two[1]) < 0.08
    assert two[2] == 0


def test_the_faster_is_the_likelier_and_more_so_the_surer_we_are() -> None:
    step = named(compute_s=[1.0, 1.02, 1.05], tp_comm_s=[0.1, 0.1, 0.1])
    sure, unsure = chances(step, Spread(layout=0.005)), chances(step, Spread(layout=0.1))
    for found in (sure, unsure):
        assert found[0] > found[1] > found[2]
    assert sure[0] > 0.98
    assert unsure[0] < 0.7


def test_trading_compute_for_communication_is_a_gamble() -> None:
    """Equal totals: which part we are wrong about decides; equal parts: nothing does."""
    gamble = named(compute_s=[1.0, 0.5], tp_comm_s=[0.1, 0.55])
    alike = named(compute_s=[1.0, 0.99], tp_comm_s=[0.1, 0.1])
    certain = Spread(compute=0.1, communication=0.5, layout=1e-4)
    assert 0.2 < chances(gamble, certain)[1] < 0.8
    assert chances(alike, certain)[1] == 1


@given(STEPS)
@settings(max_examples=20, deadline=None)
def test_samples_are_repeatable_and_centred(rows: list[list[float]]) -> None:
    step = steps(rows)
    times = sampled_times(step, SPREAD)
    np.testing.assert_array_equal(times, sampled_times(step, SPREAD))
    assert np.all(times > 0)
    ratio = np.median(times, axis=0) / np.asarray(step.iteration_s)
    assert np.all(np.abs(np.log(ratio)) < 0.25)
    exact = Spread(compute=0, communication=0, bubble=0, launch=0, layout=0)
    np.testing.assert_allclose(
        sampled_times(step, exact, 3), np.broadcast_to(step.iteration_s, (3, len(rows)))
    )


def test_a_likelier_fit_wins_more_often() -> None:
    step = named(compute_s=[1.0, 1.2])
    found = [chances(step, fits=[p, 1.0])[0] for p in (0.1, 0.5, 0.9)]
    assert found == sorted(found)
    np.testing.assert_allclose(found, [0.1, 0.5, 0.9], atol=0.05)


@given(STEPS)
@settings(max_examples=20, deadline=None)
def test_the_first_ties_with_itself_and_slow_ones_do_not(rows: list[list[float]]) -> None:
    slow = np.max(rows, axis=0) * 10
    found = ties(sampled_times(steps([*rows, slow.tolist()]), SPREAD))
    assert found[0]
    assert not found[-1]


def test_ties() -> None:
    step = named(compute_s=[1.0, 1.0, 1.005, 1.5])
    assert ties(sampled_times(step, Spread(layout=0.03))).tolist() == [True, True, True, False]
    assert ties(sampled_times(step, Spread(layout=1e-4))).tolist() == [True, True, False, False]


def test_ranges_tie_as_samples_of_them_would() -> None:
    seconds, sigma = np.array([1.0, 1.02, 1.05, 1.2, 0.99]), np.array([0.03, 0.03, 0.08, 0.03, 0.0])
    drawn = np.random.default_rng(0).standard_normal((100_000, 5))
    beats = np.mean(seconds * np.exp(sigma * drawn) < np.exp(sigma[0] * drawn[:, :1]), axis=0)
    found = interval_ties(seconds, seconds * np.exp(NORMAL_90 * sigma))
    assert found.tolist() == [True, *(beats[1:] >= 0.25)] == [True, True, True, False, True]


def test_what_did_not_run_ties_with_nothing() -> None:
    never = np.array([np.inf, 1.0, np.inf])
    assert interval_ties(never[1:], never[1:] * 1.1).tolist() == [True, False]
    assert interval_ties(never[::2], never[::2]).tolist() == [True, False]


def test_one_layout_is_best_and_ties_alone() -> None:
    one = named(compute_s=[2.0])
    assert chances(one).tolist() == [1]
    assert ties(sampled_times(one, SPREAD)).tolist() == [True]


def choice(seconds: list[float], fits: list[float]) -> int:
    tied = ties(sampled_times(named(compute_s=seconds), SPREAD))
    return surest_choice(tied, np.array(seconds), np.array(fits))


def test_of_layouts_that_tie_the_safer_is_chosen() -> None:
    assert choice([10.0, 10.05, 10.1], [0.5, 0.6, 0.99]) == 2
    assert choice([10.0, 10.05], [0.9, 0.9]) == 0
    assert choice([10.0, 10.0], [0.7, 0.8]) == 1


def test_safety_does_not_buy_what_is_truly_slower() -> None:
    assert choice([10.0, 20.0], [0.5, 1.0]) == 0


def test_a_little_safety_does_not_pay_for_much_time() -> None:
    assert choice([10.0, 10.2], [0.90, 0.95]) == 0
