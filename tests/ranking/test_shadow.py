"""Shadow prices and the way to first place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoparallel.layout import Layout
from autoparallel.planning import solved
from autoparallel.ranking import setting
from autoparallel.ranking.reasons import judged, steps
from autoparallel.ranking.shadow import (
    LEAST_GAIN,
    job_memory_prices,
    memory_prices,
    rate_prices,
    way_to_win,
)
from autoparallel.request import training_request

REQUEST = training_request(model="gpt-175b", num_gpus=512)
FULL = Layout.parse("tp8 pp8 mbs2 sp zero1 recompute=full")


@pytest.fixture(scope="module")
def searched():
    where, result = solved(REQUEST)
    best = result.best.knobs.layout(0, where.framework.name)
    return where, result, judged(where, [best])[0]


def test_memory_prices_are_true_when_the_memory_is_there() -> None:
    where = setting(REQUEST)
    layout = Layout.parse("tp4 pp8 mbs1 sp zero1 recompute=full")
    small = replace(REQUEST.cluster.gpu, memory_bytes=40e9)
    where = replace(where, request=replace(REQUEST, cluster=replace(REQUEST.cluster, gpu=small)))
    now = judged(where, [layout])[0]
    found = memory_prices(where, now, steps(where, layout))
    assert found
    for price in found:
        assert price.gain_fraction >= LEAST_GAIN
        more = replace(small, memory_bytes=small.memory_bytes + price.more_bytes * 1.02)
        richer = replace(
            where, request=replace(REQUEST, cluster=replace(REQUEST.cluster, gpu=more))
        )
        verdict = judged(richer, [price.layout])[0]
        assert verdict.fits
        assert not judged(where, [price.layout])[0].fits
        assert 1 - verdict.iteration_s / now.iteration_s == pytest.approx(price.gain_fraction)
    gains = [price.gain_fraction for price in found]
    costs = [price.more_bytes for price in found]
    assert (gains, costs) == (sorted(gains), sorted(costs))


def test_the_jobs_price_is_of_layouts_that_beat_the_winner(searched) -> None:
    where, result, winner = searched
    for price in job_memory_prices(where, result.sample, winner.iteration_s):
        verdict = judged(where, [price.layout])[0]
        assert not verdict.fits
        assert verdict.iteration_s == pytest.approx(price.iteration_s)
        assert verdict.iteration_s < winner.iteration_s


def test_more_of_a_rate_never_costs_time(searched) -> None:
    where, _, winner = searched
    found = {p.resource: p.gain_fraction for p in rate_prices(where, winner)}
    assert len(found) == 4
    assert all(-1e-9 <= gain < 0.1 for gain in found.values())
    assert found["arithmetic"] > found["memory bandwidth"]


def test_the_way_to_win_wins_with_the_fewest_words(searched) -> None:
    where, _, winner = searched
    assert way_to_win(where, winner.layout, winner.layout, winner.iteration_s) is None
    found = way_to_win(where, FULL, winner.layout, winner.iteration_s)
    assert found is not None
    assert found.fits
    assert found.iteration_s <= winner.iteration_s * 1.002
    near = replace(winner.layout, micro_batch_size=winner.layout.micro_batch_size * 2)
    one = way_to_win(where, near, winner.layout, winner.iteration_s)
    assert one is not None
    assert one.iteration_s <= winner.iteration_s * 1.002
