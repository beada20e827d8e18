"""Scores as laws of arrays and as figures small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoparallel.scoreboard.scores import (
    Errors,
    error_block,
    macro_block,
    out_of_memory_block,
    rank_group,
    ranking_block,
    ranks,
    spearman,
)

TIMES = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=30).map(np.array)


def errors(predicted, measured, width=0.1):
    guess, truth = np.array(predicted, dtype=float), np.array(measured, dtype=float)
    low, high = guess * (1 - width / 2), guess * (1 + width / 2)
    return Errors(predicted=guess, measured=truth, low=low, high=high)


def test_figures_of_three_rows():
    block = error_block(errors([1.1, 2.0, 2.0], [1.0, 2.0, 4.0]))
    assert block["n"] == 3
    assert block["mape"] == pytest.approx(0.2)
    assert block["median_ape"] == pytest.approx(0.1)
    assert block["p90_ape"] == pytest.approx(0.42)
    assert block["bias"] == pytest.approx(0.0)
    assert block["coverage_90"] == pytest.approx(1 / 3)
    assert block["median_relative_width"] == pytest.approx(0.1)


def test_no_rows_have_no_figures():
    block = error_block(errors([], []))
    assert block.pop("n") == 0
    assert set(block.values()) == {None}


@given(TIMES)
def test_perfect_predictions_have_no_error(truth):
    block = error_block(errors(truth, truth))
    assert (block["mape"], block["median_ape"], block["p90_ape"], block["bias"]) == (0, 0, 0, 0)
    assert block["coverage_90"] == 1


@given(TIMES, st.floats(0.5, 2))
def test_a_common_factor_is_the_bias(truth, factor):
    block = error_block(errors(truth * factor, truth))
    assert block["bias"] == pytest.approx(factor - 1)
    assert block["mape"] == pytest.approx(abs(factor - 1), abs=1e-9)


@given(TIMES, st.floats(0.5, 2))
def test_the_unit_does_not_matter(truth, scale):
    one, other = (
        error_block(errors(truth * 1.2, truth)),
        error_block(errors(truth * 1.2 * scale, truth * scale)),
    )
    assert one == pytest.approx(other)


def test_false_alarms():
    fits = np.array([0.9, 0.2, 0.6, 0.4, 1.0, 0.3])
    ran_out = np.array([True, True, False, False, False, False])
    ran = np.array([False, False, True, True, True, False])
    block = out_of_memory_block(fits, ran_out, ran)
    assert (block["n_oom"], block["n_ran"]) == (2, 3)
    assert block["false_fit_rate"] == 0.5
    assert block["false_oom_rate"] == pytest.approx(1 / 3)
    brier = np.mean([0.81, 0.04, 0.16, 0.36, 0.0])
    assert block["brier"] == pytest.approx(brier)  # the last row is neither


def test_false_alarms_of_nothing_are_none():
    nothing = np.zeros(0, dtype=bool)
    block = out_of_memory_block(np.zeros(0), nothing, nothing)
    assert block == {
        "n_oom": 0, "n_ran": 0, "false_fit_rate": None, "false_oom_rate": None, "brier": None
    }  # fmt: skip


def test_macro_counts_groups_alike_and_drops_small_ones():
    relative = np.array([0.1, -0.1, 0.1, *[0.3] * 30, 9.0, 9.0])
    groups = np.array(["a"] * 3 + ["b"] * 30 + ["c"] * 2)
    block = macro_block(relative, groups)
    assert block["groups"] == 2
    assert block["median_of_medians"] == pytest.approx(0.2)
    assert block["mean_of_medians"] == pytest.approx(0.2)
    assert block["within_15pct"] == 0.5
    assert macro_block(np.zeros(2), np.array(["a", "a"]))["median_of_medians"] is None


def test_ranking_figures():
    truth = np.array([1.0, 1.02, 1.5, 2.0, 3.0])
    guess = np.array([1.2, 1.1, 0.9, 2.0, 3.0])
    fits = np.ones(5, dtype=bool)
    found = rank_group(list("abcde"), guess, truth, fits)
    assert (found.top1, found.top1_within_3pct, found.top3) == (False, False, True)
    assert found.regret == pytest.approx(0.5)
    fits[2] = False  # what we pick is among those we call fitting
    found = rank_group(list("abcde"), guess, truth, fits)
    assert (found.top1, found.top1_within_3pct, found.top3) == (False, True, True)
    assert found.regret == pytest.approx(0.02)
    block = ranking_block([found])
    assert (block["groups"], block["distinct_layouts"]) == (1, 5)
    assert block["mean_regret"] == block["max_regret"] == pytest.approx(0.02)


def test_identical_layouts_count_once_at_their_median():
    names = ["a", "a", "a", "b", "c"]
    truth = np.array([1.0, 2.0, 9.0, 1.5, 3.0])
    assert rank_group(names, truth, truth, np.ones(5, dtype=bool)) is None  # three layouts
    found = rank_group([*names, "d"], np.append(truth, 4), np.append(truth, 4), np.ones(6) > 0)
    assert found.layouts == 4
    assert found.top1  # b at 1.5 beats a, whose median is 2 although its best run is 1


def test_all_called_too_big_still_picks():
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    found = rank_group(list("abcd"), truth, truth, np.zeros(4, dtype=bool))
    assert found.top1


@given(st.lists(st.floats(0.1, 100), min_size=4, max_size=12, unique=True).map(np.array))
def test_the_measured_order_is_perfect_and_its_reverse_is_not(truth):
    names, fits = [str(i) for i in range(len(truth))], np.ones(len(truth), dtype=bool)
    best = rank_group(names, truth**2, truth, fits)
    assert (best.top1, best.top3, best.regret) == (True, True, 0)
    assert best.spearman == pytest.approx(1)
    worst = rank_group(names, 1 / truth, truth, fits)
    assert worst.spearman == pytest.approx(-1)
    assert worst.regret == pytest.approx(truth.max() / truth.min() - 1)


def test_spearman_shares_ranks_of_equals():
    assert ranks(np.array([5.0, 1.0, 5.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]
    assert spearman(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) == 0
    tied = spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4]))
    assert tied == pytest.approx(0.9486833)


def test_no_rankings_have_no_figures():
    block = ranking_block([])
    assert (block.pop("groups"), block.pop("distinct_layouts")) == (0, 0)
    assert set(block.values()) == {None}
