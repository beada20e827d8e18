"""Factored formulas: the same numbers as row by row, on few rows, without being told on what."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from cases import case, taken

from autoparallel.cost.case import Case
from autoparallel.cost.step import StepTime
from autoparallel.cost.unique import (
    FEWEST_ROWS,
    Rows,
    Shared,
    gathered,
    kept_per_combination,
    per_combination,
)
from autoparallel.layout import Choices, Knobs, Part, Product
from autoparallel.units import Num

ROWS = 4 * FEWEST_ROWS
TEXTS = ("tp1 pp1 mbs1 zero1", "tp2 pp4 mbs2 zero1 sp", "tp4 pp2 cp2 mbs1 zero1", "tp8 pp1 mbs4")


def many(texts: tuple[str, ...] = TEXTS, rows: int = ROWS) -> Case:
    """The layouts again and again."""
    few = case(texts)
    return taken(few, np.arange(rows) % len(texts))


def test_computes_every_combination_once() -> None:
    sizes = []

    @per_combination
    def formula(c: Case) -> Num:
        sizes.append(np.size(c.knobs.tp))
        return c.knobs.tp * 10 + c.knobs.pp

    whole = many()
    assert np.array_equal(formula(whole), whole.knobs.tp * 10 + whole.knobs.pp)
    assert sizes == [1, len(TEXTS)]
    formula(whole)
    assert len(sizes) == 2, "a case keeps its results"


def test_learns_a_knob_that_only_some_rows_read() -> None:
    @per_combination
    def formula(c: Case) -> Num:
        return c.knobs.tp + (c.knobs.mbs if np.any(np.asarray(c.knobs.tp) == 8) else 0.0)

    small = many(TEXTS[:2])
    assert np.array_equal(formula(small), small.knobs.tp)
    whole = many()
    assert np.array_equal(formula(whole), whole.knobs.tp + whole.knobs.mbs)


def test_nested_formulas_tell_the_outer_one_what_they_read() -> None:
    @per_combination
    def inner(c: Case) -> Num:
        return 1.0 * c.knobs.mbs

    @per_combination
    def outer(c: Case) -> Num:
        return inner(c) + c.knobs.dp

    whole = many()
    assert np.array_equal(outer(whole), whole.knobs.mbs + whole.knobs.dp)


def test_a_column_of_the_machine_counts_as_a_knob() -> None:
    @per_combination
    def formula(c: Case) -> Num:
        return c.knobs.tp * c.machine.peak_flops_per_s

    whole = many()
    peaks = np.where(np.arange(ROWS) % 3 == 0, 1e15, 2e15)
    mixed = replace(whole, machine=replace(whole.machine, peak_flops_per_s=peaks))
    assert np.array_equal(formula(mixed), whole.knobs.tp * peaks)


@pytest.mark.parametrize("rows", [1, 3, FEWEST_ROWS - 1])
def test_few_rows_are_computed_as_they_are(rows: int) -> None:
    sizes = []

    @per_combination
    def formula(c: Case) -> Num:
        sizes.append(np.size(c.knobs.tp))
        return 1.0 * c.knobs.tp

    whole = many(rows=rows)
    assert np.array_equal(np.broadcast_to(formula(whole), rows), whole.knobs.tp)
    assert sizes[-1] == rows


def test_rows_note_what_is_read() -> None:
    knobs = many().knobs
    rows = Rows(knobs, np.array([1, 2]))
    assert rows.read == set()
    assert np.array_equal(rows.dp, knobs.dp[1:3])
    assert rows.read == {"num_gpus", "tp", "pp", "cp"}
    assert isinstance(rows, Knobs)
    with pytest.raises(AttributeError):
        _ = rows.no_knob  # type: ignore[attr-defined]


def test_gathers_records_and_leaves_scalars() -> None:
    index = np.array([1, 1, 0])
    machine = many().machine
    some = gathered(replace(machine, peak_flops_per_s=np.array([1.0, 2.0])), index)
    assert np.array_equal(some.peak_flops_per_s, [2.0, 2.0, 1.0])
    assert some.sms == machine.sms
    assert gathered((3.0, np.array(4.0)), index) == (3.0, 4.0)


def test_a_kept_record_is_gathered_column_by_column() -> None:
    @kept_per_combination
    def formula(c: Case) -> tuple[StepTime, Num]:
        parts = {f.name: c.knobs.tp * i for i, f in enumerate(fields(StepTime))}
        step = StepTime(**parts)
        return step, step.iteration_s

    whole = many()
    step, total = formula(whole)
    assert isinstance(step, Shared)
    assert np.array_equal(step.optimizer_s, whole.knobs.tp * 8)
    assert np.array_equal(step.iteration_s, total)
    some = np.array([5, 1, 2])
    assert np.array_equal(step.at(some).launch_s, whole.knobs.tp[some] * 9)
    taken_out = gathered(step, some)
    assert isinstance(taken_out, StepTime)
    assert np.array_equal(taken_out.launch_s, whole.knobs.tp[some] * 9)


@pytest.mark.parametrize("rows", [3, ROWS])
def test_a_product_is_evaluated_as_its_columns(rows: int) -> None:
    @per_combination
    def formula(c: Case) -> Num:
        return c.knobs.tp * 10 + c.knobs.mbs * c.knobs.dp + c.knobs.module("mlp")

    random = np.random.default_rng(5)
    tables = (
        {"tp": [1.0, 2.0, 4.0], "pp": [1.0, 2.0, 2.0], "cp": [1.0, 1.0, 2.0]},
        {"mbs": [1.0, 2.0]},
        {"granularity": [0.0, 1.0], "modules": [0.0, 8.0]},
    )
    parts = []
    for table in tables:
        choices = Choices({name: np.array(values) for name, values in table.items()})
        parts.append(Part(choices, random.integers(0, choices.rows, rows)))
    knobs = Product(parts, rows, num_gpus=64, global_batch_size=256)
    one = case(TEXTS[:1])
    of = replace(one, knobs=knobs, machine=replace(one.machine, peak_flops_per_s=1e15))
    plain = knobs.take(np.arange(rows))
    found = np.broadcast_to(formula(of), rows)
    assert np.array_equal(found, plain.tp * 10 + plain.mbs * plain.dp + plain.module("mlp"))
