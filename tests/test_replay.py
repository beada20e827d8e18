"""Replayed search groups: regret falls with runs, and a strategy sees only what it has run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripts import script

from autoparallel.profiles import Spread

SECONDS = np.array([3.0, 1.0, 2.0, np.inf, 1.5])
SPREAD = Spread(compute=0.05, communication=0.5, bubble=0.1, launch=0.1, layout=0.02)


@pytest.fixture(scope="module")
def replays():
    with script("replay") as module:
        yield module


@pytest.fixture
def job(replays):
    shares = np.zeros((4, 5))
    shares[0], shares[1] = [0.5, 1.0, 0.5, 1.0, 1.0], [0.5, 0.0, 0.5, 0.0, 0.0]
    predicted = np.array([0.6, 1.1, 0.7, 1.2, 1.5])
    return replays.Job(
        name="a job",
        seconds=SECONDS,
        predicted=predicted,
        fits=np.array([1.0, 1.0, 1.0, 0.2, 1.0]),
        shares=shares,
        spread=SPREAD,
    )


def test_an_oracle_has_no_regret_and_any_order_ends_without(replays, job):
    oracle = replace(job, predicted=np.where(np.isfinite(SECONDS), SECONDS, 9.0))
    assert (replays.replay(oracle, replays.predicted_order) == 0).all()
    for choose in (replays.predicted_order, replays.learning, replays.at_random(3)):
        regret = replays.replay(job, choose)
        assert len(regret) == replays.GOAL_RUNS
        assert (np.diff(regret[np.isfinite(regret)]) <= 0).all()
        assert regret[-1] == 0


def test_what_is_called_too_big_is_tried_last(replays, job):
    tried: list[int] = []
    for _ in range(job.size):
        tried.append(replays.predicted_order(job, tried))
    assert tried[-1] == 3
    assert sorted(tried) == list(range(job.size))


def test_a_run_that_ends_in_want_of_memory_is_spent(replays, job):
    first = replace(job, predicted=np.array([0.6, 1.1, 0.7, 0.1, 1.5]), fits=np.ones(5))
    regret = replays.replay(first, replays.predicted_order)
    assert np.isinf(regret[0])
    assert np.isfinite(regret[1])


def test_one_slow_run_warns_of_those_that_share_its_communication(replays, job):
    """Layout 0 takes five times what was predicted, half of it communication: 2 is avoided."""
    assert replays.predicted_order(job, [0]) == 2
    assert replays.learning(job, [0]) == 1
    assert (replays.corrections(job, []) == 0).all()
    assert replays.corrections(job, [0])[2] > 3 * abs(replays.corrections(job, [0])[1])


def test_equal_layouts_are_one_candidate_at_their_median(replays):
    readings, _ = replays.read_files([replays.MEASURED])
    group = next(r.run.search_group for r in readings if r.run.split_group == "zerobubble-h2304")
    rows = [r for r in readings if r.run.search_group == group]
    twice = replays._job("twice", [*rows, *rows], replays.uncalibrated(rows[0]))
    once = replays._job("once", rows, replays.uncalibrated(rows[0]))
    assert twice.size == once.size
    assert np.array_equal(twice.seconds, once.seconds)
