"""The evaluator: the numbers of an estimate, and of the formulas row by row."""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import numpy as np
import pytest

from autoparallel.cost import unique
from autoparallel.cost.case import Case
from autoparallel.cost.memory import fits_probability, memory
from autoparallel.cost.step import step_time
from autoparallel.layout import Knobs
from autoparallel.planning import candidates_of, estimate
from autoparallel.ranking import Ranked, Scores, Setting, Table, cost_model, setting
from autoparallel.request import training_request

JOBS = {
    "gpt-175b": (1024, "default"),
    "llama-3.1-405b": (2048, "default"),
    "mixtral-8x7b": (256, "full"),
    "deepseek-v3": (2048, "default"),
}


@cache
def random_candidates(model: str, rows: int = 1_000) -> tuple[Setting, Knobs]:
    """Legal candidates drawn from the first blocks of a space, in random order."""
    gpus, space = JOBS[model]
    request = training_request(model=model, num_gpus=gpus, space=space, allow_numerics=True)
    where = setting(request)
    random = np.random.default_rng(3)
    block = next(iter(candidates_of(request, where)))
    return where, block.take(random.choice(block.size, rows, replace=False))


def row_by_row(case: Case, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Every output of the formulas with nothing shared between rows."""
    monkeypatch.setattr(unique, "FEWEST_ROWS", 1 << 40)
    step, used = step_time(case), memory(case)
    monkeypatch.undo()
    parts = {f.name: getattr(step, f.name) for f in fields(step)}
    parts |= {f.name: getattr(used, f.name) for f in fields(used)}
    probability = fits_probability(used, case.machine.memory_bytes, case.memory)
    whole = {
        "iteration_s": step.iteration_s,
        "memory_bytes": used.total_bytes,
        "fits_probability": probability,
    }
    return parts | whole


def predicted(scores: Scores, name: str) -> np.ndarray:
    """A column of the scores, wherever it is kept."""
    for record in (scores, scores.step, scores.memory):
        if hasattr(record, name):
            return np.broadcast_to(getattr(record, name), scores.iteration_s.shape)
    raise AssertionError(name)


@pytest.mark.parametrize("model", JOBS)
def test_factored_evaluation_is_the_plain_one(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, knobs = random_candidates(model)
    scores = cost_model(where)(knobs)
    plain = row_by_row(where.case(knobs), monkeypatch)
    for name, column in plain.items():
        np.testing.assert_allclose(predicted(scores, name), column, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("model", JOBS)
def test_one_row_alone_is_the_same_row_in_a_block(model: str) -> None:
    where, knobs = random_candidates(model)
    evaluate = cost_model(where)
    whole = evaluate(knobs)
    for row in range(0, knobs.size, 50):
        one = evaluate(knobs.take(np.array([row])))
        for name in ("iteration_s", "memory_bytes", "fits_probability"):
            np.testing.assert_allclose(getattr(one, name)[0], getattr(whole, name)[row], rtol=1e-9)


def assert_estimates_agree(model: str, rows: range) -> None:
    where, knobs = random_candidates(model)
    scores = cost_model(where)(knobs)
    for row in rows:
        layout = knobs.layout(row, where.framework.name)
        entry = estimate(where.request, layout, among=found_nothing(scores, knobs)).entry
        assert entry.iteration_s == pytest.approx(float(scores.iteration_s[row]), rel=1e-9)
        assert entry.memory_bytes == pytest.approx(float(scores.memory_bytes[row]), rel=1e-9)
        for parts in (entry.parts, entry.memory_parts):
            assert parts is not None
            for name, value in parts.items():
                own = float(predicted(scores, name)[row])
                assert value == pytest.approx(own, rel=1e-9, abs=1e-9 * entry.iteration_s), name


def found_nothing(scores: Scores, knobs: Knobs) -> Ranked:
    """A finished search, so that an estimate does not search for its place."""
    best = Table(knobs=knobs, scores=scores)
    return Ranked(best=best, sample=None, nearest_miss=None, evaluated=1, feasible=best.size)


@pytest.mark.parametrize("model", JOBS)
def test_estimates_agree_with_the_block(model: str) -> None:
    assert_estimates_agree(model, range(0, 1_000, 40))


@pytest.mark.slow
@pytest.mark.parametrize("model", JOBS)
def test_a_thousand_estimates_agree_with_the_block(model: str) -> None:
    assert_estimates_agree(model, range(1_000))


def test_a_block_is_evaluated_on_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, space = JOBS["mixtral-8x7b"]
    request = training_request(
        model="mixtral-8x7b", num_gpus=gpus, space=space, allow_numerics=True
    )
    where = setting(request)
    block = next(iter(candidates_of(request, where)))
    sizes = []
    whole = unique.combinations

    def counted(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        first, own = whole(columns)
        sizes.append((len(first), len(own)))
        return first, own

    cost_model(where)(block)
    monkeypatch.setattr(unique, "combinations", counted)
    cost_model(where)(block)
    outer = [few for few, rows in sizes if rows == block.size]
    assert min(outer) < block.size / 4


def test_columns_of_a_block_are_whole() -> None:
    where, knobs = random_candidates("gpt-175b")
    scores = cost_model(where)(knobs)
    for name in ("iteration_s", "memory_bytes", "fits_probability"):
        assert getattr(scores, name).shape == (knobs.size,)
