"""The order: what streams by is kept as brute force would, whatever the blocks and threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest

from autoparallel.constants import FITS
from autoparallel.cost.memory import Memory
from autoparallel.cost.step import StepTime
from autoparallel.layout import KNOB_FIELDS, Knobs
from autoparallel.planning import candidates_of
from autoparallel.ranking import Scores, Setting, cost_model, order, ranked, setting
from autoparallel.request import training_request
from autoparallel.space import candidates
from autoparallel.space.spec import SpaceSpec


@cache
def small_space() -> tuple[Setting, Knobs]:
    """A few thousand candidates of a real job, as one block."""
    request = training_request(model="gpt-175b", num_gpus=256, allow_numerics=True)
    where = setting(request)
    spec = SpaceSpec.from_mapping(request.space)
    space = candidates(spec, request.model, request.cluster, where.framework, request)
    return where, space.knobs


def cut_up(knobs: Knobs, rows: int) -> Iterator[Knobs]:
    for start in range(0, knobs.size, rows):
        yield knobs.take(slice(start, start + rows))


def row_by_row(where: Setting, knobs: Knobs) -> list[tuple[float, float, int]]:
    """(time, memory, row) of every fitting candidate, evaluated one at a time, best first."""
    evaluate = cost_model(where)
    found = []
    for row in range(knobs.size):
        scores = evaluate(knobs.take(np.array([row])))
        if scores.fits_probability[0] >= FITS:
            found.append((float(scores.iteration_s[0]), float(scores.memory_bytes[0]), row))
    return sorted(found)


def test_the_best_is_brute_forces() -> None:
    where, knobs = small_space()
    few = knobs.take(slice(0, None, max(knobs.size // 300, 1)))
    by_hand = row_by_row(where, few)
    result = ranked(cut_up(few, 97), cost_model(where), "iteration_s")
    assert result.evaluated == few.size
    assert result.feasible == len(by_hand) > 10
    assert result.best is not None
    times = result.best.scores.iteration_s
    np.testing.assert_allclose(times, [time for time, _, _ in by_hand], rtol=1e-9)
    best = few.layout(by_hand[0][2])
    assert float(times[0]) == pytest.approx(by_hand[0][0], rel=1e-9)
    assert result.best.knobs.layout(0) == best or times[1] == pytest.approx(times[0], rel=1e-9)


def made_up(knobs: Knobs) -> Scores:
    """Scores that tie often: time is mbs, memory tp, half of the rows fit."""
    n = knobs.size
    column = np.asarray(knobs.mbs, dtype=np.float64)
    used = np.asarray(knobs.tp, dtype=np.float64)
    return Scores(
        step=StepTime(**{f.name: column / 10 for f in fields(StepTime)}),
        memory=Memory(**{f.name: used / 8 for f in fields(Memory)}),
        iteration_s=column,
        memory_bytes=used,
        fits_probability=np.where(np.asarray(knobs.pp) % 2 == 0, 0.9, 0.1) * np.ones(n),
    )


def numbered(rows: int) -> Knobs:
    random = np.random.default_rng(1)
    values = {f.name: np.zeros(rows) for f in KNOB_FIELDS}
    values["num_gpus"] = np.arange(rows, dtype=np.float64)
    values["mbs"] = random.integers(1, 6, rows).astype(float)
    values["tp"] = random.integers(1, 50, rows).astype(float)
    values["pp"] = random.integers(1, 9, rows).astype(float)
    return Knobs(**values)


@pytest.mark.parametrize("rows", [1, 37, 250, 5_000])
def test_ties_do_not_depend_on_blocks(rows: int) -> None:
    knobs = numbered(150 if rows == 1 else 5_000)
    keep = 30
    result = ranked(cut_up(knobs, rows), made_up, "iteration_s", keep)
    scores = made_up(knobs)
    fitting = np.flatnonzero(scores.fits_probability >= FITS)
    by_hand = fitting[
        np.lexsort((fitting, scores.memory_bytes[fitting], scores.iteration_s[fitting]))
    ]
    assert result.best is not None
    assert result.best.knobs.num_gpus.tolist() == by_hand[:keep].tolist()
    assert result.feasible == len(fitting)


def test_memory_can_be_the_objective() -> None:
    knobs = numbered(3_000)
    result = ranked(cut_up(knobs, 400), made_up, "memory_bytes", 100)
    assert result.best is not None
    used = result.best.scores.memory_bytes
    fitting = made_up(knobs).fits_probability >= FITS
    assert np.array_equal(used, np.sort(np.asarray(knobs.tp)[fitting])[:100])


def test_nothing_fits_and_the_nearest_miss() -> None:
    knobs = numbered(900)
    knobs = knobs.take(np.flatnonzero(np.asarray(knobs.pp) % 2 == 1))
    chances = np.linspace(0.01, 0.4, knobs.size)

    def evaluate(block: Knobs) -> Scores:
        scores = made_up(block)
        own = chances[np.searchsorted(knobs.num_gpus, block.num_gpus)]
        return Scores(
            step=scores.step,
            memory=scores.memory,
            iteration_s=scores.iteration_s,
            memory_bytes=scores.memory_bytes,
            fits_probability=own,
        )

    result = ranked(cut_up(knobs, 100), evaluate, "iteration_s")
    assert result.best is None
    assert result.feasible == 0
    assert result.nearest_miss is not None
    assert result.nearest_miss.scores.fits_probability[0] == pytest.approx(0.4)


def test_no_candidates_at_all() -> None:
    result = ranked([], made_up, "iteration_s")
    assert (result.evaluated, result.best, result.sample, result.nearest_miss) == (
        0,
        None,
        None,
        None,
    )


def test_the_sample_is_even_and_the_same_for_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "SAMPLED", 200)
    knobs = numbered(6_000)
    knobs = replace(knobs, tp=np.minimum(knobs.tp, 3.0))
    mixed = [ranked(cut_up(knobs, rows), made_up, "iteration_s").sample for rows in (300, 6_000)]
    drawn = [sorted(table.knobs.num_gpus.tolist()) for table in mixed if table is not None]
    assert len(drawn) == 2
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == len(drawn[0]) <= 200


def test_blocks_are_drawn_only_a_little_ahead() -> None:
    knobs = numbered(1_000)
    drawn = 0

    def blocks() -> Iterator[Knobs]:
        nonlocal drawn
        for block in cut_up(knobs, 10):
            drawn += 1
            yield block

    stream = iter(order.evaluated_blocks(blocks(), made_up))
    first, _ = next(stream)
    assert first.num_gpus[0] == 0
    assert drawn <= 2


def test_a_search_streams_the_space_it_counts() -> None:
    where, knobs = small_space()
    found = candidates_of(where.request, where)
    result = ranked(found, cost_model(where), "iteration_s")
    assert result.evaluated == knobs.size
    assert found.considered == result.evaluated + sum(found.pruned.values())
