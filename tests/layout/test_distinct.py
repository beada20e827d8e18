from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.layout import distinct
from autoparallel.layout.distinct import coded, combinations

VALUES = st.sampled_from([0.0, 1.0, 2.0, 3.0, 64.0, 0.1])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(*[VALUES] * 4), min_size=1, max_size=60), st.integers(1, 40))
def test_combinations_are_numpys(rows: list[tuple[float, ...]], times: int) -> None:
    table = np.tile(np.array(rows), (times, 1))
    first, own = combinations([coded(c) for c in table.T])
    wanted = np.unique(table, axis=0)
    assert np.array_equal(np.unique(table[first], axis=0), wanted)
    assert len(first) == len(wanted)
    if len(wanted) > 1:
        assert np.array_equal(table[first][own], table)


@pytest.mark.parametrize("entries", [0, 1, 4, 1000])
def test_a_table_of_any_size_finds_the_same(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(3).integers(0, 9, (500, 6)).astype(float)
    monkeypatch.setattr(distinct, "_TABLE", entries)
    first, own = combinations([coded(c) for c in table.T])
    assert len(first) == len(np.unique(table, axis=0))
    assert np.array_equal(table[first][own], table)


def test_many_columns_of_many_values_do_not_overflow() -> None:
    rows = np.random.default_rng(4).permutation(3000)
    columns = [coded(np.roll(rows, i).astype(float)) for i in range(12)]
    first, own = combinations(columns)
    assert len(first) == len(rows)
    assert np.array_equal(first[own], np.arange(len(rows)))


def test_values_that_come_late_are_numbered() -> None:
    column = np.concatenate([np.ones(3000), np.arange(50.0)])
    numbered = coded(column)
    assert numbered.count == 50
    assert np.array_equal(np.unique(column)[numbered.codes], column)


def test_rows_keep_their_numbers() -> None:
    numbered = coded(np.array([5.0, 7.0, 5.0, 9.0]))
    some = numbered.take(np.array([1, 3]))
    assert some.codes.tolist() == numbered.codes[[1, 3]].tolist()
    assert some.count == numbered.count
