"""Every goal in docs/accuracy-goals.md has a figure of today beside it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scripts import script

from autoparallel.scoreboard.predictions import predict
from autoparallel.scoreboard.score import read_files
from autoparallel.scoreboard.serving import validate_serving


@pytest.fixture(scope="module")
def accuracy():
    with script("accuracy") as module:
        yield module


@pytest.fixture(scope="module")
def today(accuracy):
    readings, _ = read_files([accuracy.MEASURED])
    return accuracy.view(readings, predict(readings))


@pytest.fixture(scope="module")
def served(accuracy):
    return validate_serving([accuracy.SERVED]).table


def test_each_goal_is_measured_once(accuracy, today, served):
    table = accuracy.goals([("today", today)], served)
    assert table.columns == ("goal", "today", "bar", "stretch", "best peer")
    for start in (*accuracy.TODAY, *accuracy.SERVING):
        assert len([row for row in table.rows if row[0].startswith(start)]) == 1, start
    for name, figure, *_ in table.rows:
        assert re.match(r"\d+(\.\d+)? %", figure), name
        assert not figure.endswith("of 0"), name


def test_a_serving_figure_is_the_mean_error_of_its_rows(accuracy, served):
    for metric in accuracy.SERVING.values():
        rows = served.take(served.metric == metric)
        mean = np.abs(rows.predicted / rows.measured - 1).mean()
        figure, _, count = accuracy.serving_today(served, metric).partition(" % of ")
        assert float(figure) == pytest.approx(100 * mean, abs=0.051)
        assert int(count) == len(rows) > 100


def test_a_goal_without_a_figure_is_an_error(accuracy, today, served, tmp_path, monkeypatch):
    page = tmp_path / "goals.md"
    page.write_text("| goal | bar |\n|---|---|\n| a new goal | 1 % |\n")
    monkeypatch.setattr(accuracy, "GOALS", page)
    with pytest.raises(SystemExit, match="a new goal"):
        accuracy.goals([("today", today)], served)


def test_the_cuts_are_the_rows_they_say(accuracy, today):
    runs = {name: figure(today) for name, figure in accuracy.TODAY.items()}
    assert runs["step time, arXiv:2205.05198"].endswith("of 4")
    assert runs["step time, vTrain single node"].endswith("of 720")
    above = [r for r in today.readings if r.framework.name == "nanotron" and accuracy.mfu(r) > 0.1]
    assert 0 < len(above) < 761
    half = [r for r in today.readings if not r.run.precision.startswith("fp8")]
    assert max(accuracy.mfu(r) for r in half) < 0.75
