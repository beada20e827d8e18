"""What measured runs say of layouts near them, and of no others."""

from __future__ import annotations

import numpy as np
import pytest

from autoparallel.nearby import (
    AMPLITUDE,
    LENGTHS,
    NOISE,
    PLACE,
    Nearby,
    nearby_of,
    nearby_text,
    read_nearby,
)


def places(*rows: dict[str, float]) -> np.ndarray:
    base = dict.fromkeys(PLACE, 1.0) | {"hidden_size": 4096.0, "micro_batch_tokens": 2048.0}
    return np.array([[(base | row)[name] for name in PLACE] for row in rows])


def factor(nearby: Nearby, at: np.ndarray) -> np.ndarray:
    """The factor of each layout by itself."""
    split = len(LENGTHS)
    return np.diag(nearby.factors(at[:, :split], at[:, split:]))


HERE = places({"tp": 2})
SLOWER = 1.1


@pytest.fixture
def one() -> Nearby:
    return nearby_of(HERE, np.array([SLOWER]))


def test_a_run_is_believed_as_far_as_it_is_not_its_own_noise(one: Nearby) -> None:
    share = AMPLITUDE**2 / (AMPLITUDE**2 + NOISE**2)
    assert np.log(factor(one, HERE)) == pytest.approx(share * np.log(SLOWER))
    assert one.doubt(HERE) == pytest.approx(1 - share)


@pytest.mark.parametrize("name", PLACE)
def test_a_run_says_less_the_farther_a_layout_is_and_nothing_far_away(
    one: Nearby, name: str
) -> None:
    at = PLACE.index(name)
    steps = np.repeat(HERE, 6, axis=0)
    scale = np.array([1, 2, 4, 8, 64, 2.0**20])
    steps[:, at] = steps[:, at] * scale
    factors, doubts = factor(one, steps), one.doubt(steps)
    assert (np.diff(factors) <= 1e-12).all()
    assert factors[0] > factors[1]
    assert (np.diff(doubts) >= -1e-12).all()
    assert doubts[1] > doubts[0]
    assert factors[-1] == pytest.approx(1, abs=1e-3)
    assert doubts[-1] == pytest.approx(1, abs=1e-3)


def test_more_runs_of_one_layout_are_believed_more() -> None:
    once = nearby_of(HERE, np.array([SLOWER]))
    often = nearby_of(np.repeat(HERE, 9, axis=0), np.full(9, SLOWER))
    assert len(often.places) == 1
    assert often.runs.tolist() == [9]
    assert 1 < factor(once, HERE)[0] < factor(often, HERE)[0] < SLOWER
    assert often.doubt(HERE)[0] < once.doubt(HERE)[0]


def test_a_layout_between_two_runs_is_between_them() -> None:
    two = nearby_of(places({"tp": 1}, {"tp": 4}), np.array([0.9, 1.1]))
    low, middle, high = factor(two, places({"tp": 1}, {"tp": 2}, {"tp": 4}))
    assert low < middle < high
    assert middle == pytest.approx(1, abs=0.01)


def test_a_run_gone_wrong_counts_no_more_than_a_bad_one() -> None:
    wrong, bad = (factor(nearby_of(HERE, np.array([x])), HERE)[0] for x in (40.0, np.exp(0.3)))
    assert wrong == pytest.approx(bad)


def test_many_layouts_at_once_are_each_by_itself() -> None:
    random = np.random.default_rng(3)
    many = places(*({"tp": 2.0**i} for i in random.integers(0, 4, 10_000)))
    known = nearby_of(places({"tp": 1}, {"tp": 8}), np.array([0.95, 1.2]))
    assert factor(known, many)[:7] == pytest.approx(
        [factor(known, many[i : i + 1])[0] for i in range(7)]
    )


def test_of_very_many_layouts_some_are_kept_from_end_to_end() -> None:
    many = places(*({"dp": float(i)} for i in range(1, 4_101)))
    kept = nearby_of(many, np.full(len(many), SLOWER)).places[:, PLACE.index("dp")]
    assert len(kept) <= 1_000
    assert kept.min() == 1
    assert kept.max() > 4_090


def test_a_table_reads_back_as_written() -> None:
    known = nearby_of(places({"tp": 1}, {"dp": 12}), np.array([0.9512, 1.2001]))
    again = read_nearby(nearby_text(known))
    assert (again.places == known.places).all()
    assert (again.runs == known.runs).all()
    assert again.slower == pytest.approx(known.slower, abs=1e-4)
    assert nearby_text(again) == nearby_text(known)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace("tp", "pt", 1), "columns"),
        (lambda t: t.splitlines()[0], "a row"),
        (lambda t: t + ",1", "a row"),
        (lambda t: t.replace("4096", "-4096"), "negative"),
        (lambda t: t.replace("4096", "nan"), "negative"),
        (lambda t: t.replace("4096", "1e300"), "above 1e"),
        (lambda t: t + t.splitlines()[1].join(["\n"] * 1_002), "at most 1,000"),
        (lambda t: t.replace("4096", "x"), "could not convert"),
        (lambda t: t.replace(",1,1.1000", ",0,1.1000"), "fewer runs"),
        (lambda t: t.replace("1.1000", "0.0"), "time of 0"),
    ],
)
def test_a_table_that_is_none_is_refused(one: Nearby, change, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        read_nearby(change(nearby_text(one)))
