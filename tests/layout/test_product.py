"""A product of choices says the same as the columns it stands for, and who read what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.layout import (
    KNOB_FIELDS,
    OVERLAPS,
    RECOMPUTE_MODULES,
    Choices,
    Knobs,
    Part,
    Product,
    product,
)
from autoparallel.layout.distinct import combinations

MESH = {"tp": [1.0, 2.0, 2.0, 8.0], "pp": [1.0, 1.0, 4.0, 4.0], "cp": [1.0, 2.0, 1.0, 1.0]}
BATCH = {"mbs": [1.0, 2.0, 4.0]}
MEMORY = {"granularity": [0.0, 1.0, 1.0, 2.0], "modules": [0.0, 1.0, 10.0, 0.0]}
SWITCH = {"overlap": [0.0, 11.0, 3.0], "zero": [0.0, 1.0, 3.0]}
TABLES = (MESH, BATCH, MEMORY, SWITCH)


def a_product(rows: int = 200, seed: int = 0) -> Product:
    random = np.random.default_rng(seed)
    parts = []
    for table in TABLES:
        choices = Choices({name: np.array(values) for name, values in table.items()})
        parts.append(Part(choices, random.integers(0, choices.rows, rows)))
    return Product(parts, rows, num_gpus=64, global_batch_size=256)


def plain(of: Product) -> Knobs:
    columns: dict[str, Any] = {f.name: np.full(of.size, np.nan) for f in KNOB_FIELDS}
    columns |= {"num_gpus": np.full(of.size, 64.0), "global_batch_size": np.full(of.size, 256.0)}
    for part in of.parts:
        columns |= {n: c[part.index] for n, c in part.choices.columns.items()}
    return Knobs(**columns)


def whole(value: Any, rows: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (rows,))


def assert_same(of: Product, knobs: Knobs) -> None:
    for f in KNOB_FIELDS:
        own = whole(getattr(of, f.name), of.size)
        np.testing.assert_array_equal(own, whole(getattr(knobs, f.name), of.size), f.name)
    for name in ("dp", "micro_batches"):
        np.testing.assert_array_equal(whole(getattr(of, name), of.size), getattr(knobs, name))
    for name in RECOMPUTE_MODULES:
        np.testing.assert_array_equal(whole(of.module(name), of.size), knobs.module(name))
    for name in OVERLAPS:
        np.testing.assert_array_equal(whole(of.overlaps(name), of.size), knobs.overlaps(name))
    for stage in (1, 2, 3):
        np.testing.assert_array_equal(whole(of.sharded(stage), of.size), knobs.sharded(stage))


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 99))
def test_a_product_is_its_columns(rows: int, seed: int) -> None:
    of = a_product(rows, seed)
    knobs = plain(of)
    assert of.size == rows
    assert_same(of, knobs)
    some = np.random.default_rng(seed).integers(0, rows, 7)
    assert_same(of.at(some), knobs.take(some))
    assert_same(of.at(some).at(np.array([3, 1])), knobs.take(some[[3, 1]]))
    taken = of.take(some)
    for f in KNOB_FIELDS:
        np.testing.assert_array_equal(getattr(taken, f.name), getattr(knobs, f.name)[some])


def test_a_knob_that_is_the_same_everywhere_is_a_scalar() -> None:
    of = a_product()
    one = Part(of.parts[1].choices.take(np.array([2])), np.zeros(of.size, dtype=np.intp))
    fixed = Product([of.parts[0], one], of.size, num_gpus=64, global_batch_size=256)
    assert np.ndim(fixed.mbs) == 0
    assert np.shape(fixed.tp) == (of.size,)
    assert fixed.take(np.arange(3)).mbs.tolist() == [4.0, 4.0, 4.0]


def test_choices_that_no_layout_has_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    of = a_product(40)
    some = of.parts[0].at(np.flatnonzero(of.parts[0].index != 1))
    assert some.compact() is some
    monkeypatch.setattr(product, "FEW", 1)
    fewer = some.compact()
    assert fewer.choices.rows == 3
    for name, column in fewer.choices.columns.items():
        np.testing.assert_array_equal(column[fewer.index], some.choices.columns[name][some.index])


def test_codes_tell_apart_what_differs_in_the_names() -> None:
    choices = Choices({name: np.array(values) for name, values in MESH.items()})
    code, count = choices.codes(frozenset(("tp", "pp")))
    assert count == 4
    assert sorted(code.tolist()) == [0, 1, 2, 3]
    code, count = choices.codes(frozenset(("pp",)))
    assert code.tolist() == [0, 0, 1, 1]
    assert count == 2


def test_what_is_read_of_a_part_is_read_of_the_whole() -> None:
    of = a_product()
    inner = of.at(np.arange(9)).at(np.arange(4))
    assert of.read == set()
    _ = inner.mbs
    assert of.read == inner.read == {"mbs"}
    _ = inner.dp
    assert of.read >= {"tp", "pp", "cp"}
    _ = inner.module("mlp"), inner.overlaps("grad")
    assert of.read >= {"modules", "granularity", "overlap.grad"}
    assert "overlap" not in of.read, "other switches do not matter"
    assert np.isnan(inner.ep), "an axis that is not chosen yet"
    with pytest.raises(AttributeError):
        _ = inner.no_knob


@given(st.integers(1, 60), st.integers(0, 99))
@settings(deadline=None)
def test_parts_become_one_table_that_says_the_same(rows: int, seed: int) -> None:
    of = a_product(rows, seed)
    one = Part(Choices.fused(of.parts), np.arange(rows))
    fused = Product([one], rows, num_gpus=64, global_batch_size=256)
    assert_same(fused, plain(of))
    some = np.random.default_rng(seed).integers(0, rows, 9)
    assert_same(fused.at(some), plain(of).take(some))
    for names in ({"tp", "mbs"}, {"overlap.grad", "zero.3"}, {"granularity", "cp", "zero"}):
        numbers = [combinations(knobs.coded(names))[1] for knobs in (of, fused)]
        alike = [own if len(own) else np.zeros(rows, dtype=np.intp) for own in numbers]
        pairs = {tuple(pair) for pair in np.stack(alike).T.tolist()}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_rows_that_differ_in_a_switch_alone_are_alike_for_who_asks_of_another() -> None:
    of = a_product(400)
    grad, _ = combinations(of.coded({"overlap.grad"}))
    switches, _ = combinations(of.coded({"overlap"}))
    assert (len(grad), len(switches)) == (2, 3)
