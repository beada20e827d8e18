"""Repeated measurements: the readers, and the test that outliers do not sway."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.errors import ConfigError
from autoparallel.regression.kinds import TRAINING
from autoparallel.regression.lock import Samples
from autoparallel.regression.measurements import compared, read_samples, worse_p

OLD = tuple(10 + 0.1 * x for x in range(8))


def slower(new, **given) -> bool:
    return compared(OLD, new, least_effect=0.05, **given).worse


@given(st.lists(st.floats(0.9, 1.1), min_size=5, max_size=9), st.floats(0.1, 100))
@settings(max_examples=40, deadline=None)
def test_units_do_not_matter(noise, unit):
    new = [12 * x for x in noise]
    scaled = compared([x * unit for x in OLD], [x * unit for x in new], least_effect=0.05)
    assert scaled.worse == slower(new)


def test_the_same_runs_are_not_worse_and_far_slower_ones_are():
    assert not slower(OLD)
    assert slower([1.2 * x for x in OLD])
    assert not slower([0.5 * x for x in OLD])
    assert slower([0.5 * x for x in OLD], sign=-1)


def test_a_small_effect_passes_however_sure():
    assert not slower([1.03 * x for x in OLD * 5])


def test_one_wild_run_decides_nothing():
    assert not slower((*OLD[:-1], 1000.0))


def test_p_is_that_of_ranks_alone():
    """Five against five that do not overlap: one order in 252."""
    assert worse_p([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(1 / 252)
    assert worse_p([6, 7, 8, 9, 10], [1, 2, 3, 4, 5], sign=-1) == pytest.approx(1 / 252)


def test_too_few_runs_are_refused():
    with pytest.raises(ConfigError, match="at least 5 runs"):
        compared(OLD[:3], OLD[:3], least_effect=0.05)


def test_without_pinned_runs_the_predicted_range_decides():
    assert not compared((), (4.0,), least_effect=0.05, interval=(3.0, 5.0)).worse
    assert compared((), (6.0,), least_effect=0.05, interval=(3.0, 5.0)).worse
    assert compared((), (2.0,), least_effect=0.05, interval=(3.0, 5.0), sign=-1).worse


def test_a_level_of_one_percent_is_kept_under_heavy_tails():
    """Equal runs with heavy tails, no least effect: the test alone speaks in 1 % of the cases."""
    random = np.random.default_rng(3)
    draws = np.exp(random.standard_t(2, size=(600, 14)))
    alarms = [compared(x[:7], x[7:], least_effect=0.0).worse for x in draws]
    assert np.mean(alarms) < 0.025


# --- reading ----------------------------------------------------------------------------


def samples(path: Path, text: str | bytes) -> Samples:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_samples(path, TRAINING, "tp2 pp1 mbs1", lambda run: run.num_gpus == 8)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "runs.csv"


def test_a_row_a_run(csv):
    found = samples(csv, "iteration_s,peak_memory_gib\n1.5,2\n1.25,2\n")
    assert found.values == {"iteration_s": (1.5, 1.25), "memory_bytes": (2**31, 2**31)}


def test_steps_of_one_run_count_once(csv):
    found = samples(csv, "run,iteration_s\na,1\na,2\na,9\nb,4\n")
    assert found.values == {"iteration_s": (2.0, 4.0)}


def test_rows_of_another_layout_do_not_count(csv):
    text = "layout,iteration_s\ntp2 pp1 mbs1,1\ntp4 pp1 mbs1,5\ntp2  pp1 mbs1,2\n"
    assert samples(csv, text).values == {"iteration_s": (1.0, 2.0)}


def test_byte_order_mark_and_line_ends(csv):
    assert samples(csv, b"\xef\xbb\xbfiteration_s\r\n1.5\r\n").values == {"iteration_s": (1.5,)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("iteration_s\n", "holds no run"),
        ("layout,iteration_s\ntp4,1\n", "holds no run"),
        ("iteration_s\nnan\n", "not a finite number"),
        ("iteration_s\n-1\n", "not a finite number"),
        ("iteration_s\n1e999\n", "not a finite number"),
        ("iteration_s\nfast\n", "not a number"),
        ("iteration_s,iteration_s\n1,1\n", "stands twice"),
        ("iteration\n1\n", "did you mean 'iteration_s'"),
        ("iteration_s\n1,2\n", "2 cells under 1 columns"),
        ('iteration_s\n"1\n', "is not CSV"),
        (b"iteration_s\n\xff\n", "UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(csv, text, says):
    with pytest.raises(ConfigError, match=says):
        samples(csv, text)


@given(st.binary(max_size=200) | st.text('iteration_s,\n\r"0123456789.e-', max_size=80))
@settings(max_examples=60, deadline=None)
def test_junk_is_refused_or_read(tmp_path_factory, junk):
    data = junk if isinstance(junk, bytes) else ("iteration_s\n" + junk).encode()
    with suppress(ConfigError):
        found = samples(tmp_path_factory.mktemp("csv") / "a.csv", data)
        assert all(x > 0 for values in found.values.values() for x in values)
