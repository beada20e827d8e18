"""Units that convert, counts that read well, and errors that a user can act on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoparallel import errors, units
from autoparallel.counts import counted
from autoparallel.errors import AutoparallelError, CatalogError, ConfigError, bad_value, nearest

WORDS = st.lists(
    st.text("abcdefgh_", min_size=1, max_size=10), min_size=1, max_size=10, unique=True
)


def test_units_are_si_or_binary_as_named() -> None:
    assert (units.MIB, units.GIB) == (2**20, 2**30)
    assert (units.GB, units.TERA, units.MS, units.US) == (1e9, 1e12, 1e-3, 1e-6)
    assert units.DAY_S == 24 * 60 * 60


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (2685, "2,685 runs")]
)
def test_a_count_of_one_reads_as_one(number: int, text: str) -> None:
    assert counted(number, "run") == text


def test_a_product_of_units_stays_a_float_column() -> None:
    tokens = np.array([300], dtype=np.int64) * units.GB
    assert tokens.dtype == np.float64
    assert (6 * tokens * 1e12 * units.TERA > 0).all()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("AutoparallelError", 70),
        ("ConfigError", 2),
        ("CatalogError", 2),
        ("ProfileError", 2),
        ("NothingFitsError", 3),
        ("LaunchError", 4),
    ],
)
def test_exit_codes_of_the_contract(name: str, code: int) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, AutoparallelError)
    assert kind.exit_code == code


def test_the_tree_is_the_one_drawn() -> None:
    drawn = {word for word in (errors.__doc__ or "").split() if word.endswith("Error")}
    found = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, AutoparallelError)
    }
    assert drawn == found
    assert issubclass(CatalogError, ConfigError)


@given(st.text(max_size=20), st.one_of(st.integers(), st.text(max_size=20), st.none()))
def test_a_bad_value_has_its_four_parts(hint: str, value: object) -> None:
    error = bad_value("num_gpus", value, "is not in 1..8", hint)
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"num_gpus: {value!r} is not in 1..8")
    assert str(error).endswith(f"; {hint}" if hint else "1..8")


@given(WORDS)
def test_a_known_word_is_nearest_to_itself(words: list[str]) -> None:
    for word in words:
        assert nearest(word, words) == f"did you mean {word!r}?"


@given(st.text(max_size=30), WORDS)
def test_the_hint_is_always_a_known_word_or_all_of_them(word: str, words: list[str]) -> None:
    hints = {f"did you mean {w!r}?" for w in words} | {"known: " + ", ".join(sorted(words))}
    assert nearest(word, words) in hints


def test_one_slip_of_the_finger_is_found() -> None:
    assert nearest("hiden_size", ["hidden_size", "num_layers"]) == "did you mean 'hidden_size'?"
    assert nearest("xyz", ["b", "a"]) == "known: a, b"
    assert nearest("x", iter(())) == "known: "
