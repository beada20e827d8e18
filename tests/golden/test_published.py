"""Published step times, predicted as `validate` does: measured row, case, step."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from autoparallel import catalog
from autoparallel.measured.cases import read
from autoparallel.measured.rows import MeasuredRun, read_runs
from autoparallel.scoreboard.predictions import predict

HERE = Path(__file__).parent
ROWS = HERE.parents[1] / "benchmarks" / "measured" / "training.csv"

needs_rows = pytest.mark.skipif(not ROWS.is_file(), reason="no measured rows in this checkout")
needs_profiles = pytest.mark.skipif(
    not (catalog.data_dir() / "profiles" / "training").is_dir(), reason="nothing calibrated yet"
)
Figure = dict[str, str]


def figures(name: str) -> list[Figure]:
    with (HERE / name).open(newline="") as file:
        return list(csv.DictReader(file))


STEPS, RATIOS = figures("published_steps.csv"), figures("published_ratios.csv")
EACH = pytest.mark.parametrize("figure", STEPS, ids=[f["section"] for f in STEPS])


@cache
def run_of(name: str) -> MeasuredRun:
    runs = [run for run in read_runs(ROWS) if run.id == name]
    assert len(runs) == 1, name
    return runs[0]


@cache
def predicted_s(name: str) -> float:
    return float(predict([read(run_of(name))]).seconds[0])


def published_s(figure: Figure) -> float:
    """Seconds of one step; from the printed FLOP/s by equation 3 of arXiv 2104.04473."""
    value = float(figure["value"])
    if figure["quantity"] == "iteration_s":
        return value
    run = run_of(figure["run"])
    b, s, layers, h = run.global_batch_size, run.seq_length, run.num_layers, run.hidden_size
    vocabulary = run.vocab_size or 51_200
    flops = 96.0 * b * s * layers * h**2 * (1 + s / (6 * h) + vocabulary / (16 * layers * h))
    return flops / (run.num_gpus * value * 1e12)


@needs_rows
@EACH
def test_the_measured_row_is_the_published_figure(figure: Figure) -> None:
    assert run_of(figure["run"]).seconds == pytest.approx(published_s(figure), rel=1e-4)


@needs_rows
@needs_profiles
@EACH
def test_predicted_step_time(figure: Figure) -> None:
    error = predicted_s(figure["run"]) / published_s(figure) - 1
    assert abs(error) <= float(figure["tolerance"]), f"{error:+.1%}"


@needs_rows
@needs_profiles
@pytest.mark.parametrize("figure", RATIOS, ids=[f["section"] for f in RATIOS])
def test_predicted_gain(figure: Figure) -> None:
    gain = predicted_s(figure["run"]) / predicted_s(figure["over"])
    assert gain == pytest.approx(float(figure["value"]), rel=float(figure["tolerance"]))


@needs_rows
def test_one_row_is_predicted_as_it_is_among_others() -> None:
    names = [f["run"] for f in STEPS]
    together = predict([read(run_of(name)) for name in names]).seconds
    np.testing.assert_allclose(together, [predicted_s(name) for name in names], rtol=1e-9)


def test_every_figure_says_where_it_is_from() -> None:
    for figure in (*STEPS, *RATIOS):
        assert figure["source"].startswith(("arXiv:", "https://"))
        assert figure["section"]
        assert figure["unit"]
        assert 0 < float(figure["tolerance"]) <= 0.15
