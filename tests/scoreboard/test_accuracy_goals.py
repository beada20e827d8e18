"""Every goal in docs/accuracy-goals.md has a figure beside it, or says that it has none yet."""

from __future__ import annotations

import pytest
from scripts import script

from autoparallel.scoreboard.predictions import predict
from autoparallel.scoreboard.score import read_files


@pytest.fixture(scope="module")
def accuracy():
    with script("accuracy") as module:
        yield module


@pytest.fixture(scope="module")
def today(accuracy):
    readings, _ = read_files([accuracy.MEASURED])
    return accuracy.view(readings, predict(readings))


def test_each_goal_is_measured_once(accuracy, today):
    table = accuracy.goals([("today", today)])
    assert table.columns == ("goal", "today", "bar", "stretch", "best peer")
    for start in accuracy.TODAY:
        assert len([row for row in table.rows if row[0].startswith(start)]) == 1, start
    for name, figure, *_ in table.rows:
        assert (figure == "not measured") == name.startswith("serving"), name
        assert "of 0" not in figure


def test_the_cuts_are_the_rows_they_say(accuracy, today):
    runs = {name: figure(today) for name, figure in accuracy.TODAY.items()}
    assert runs["step time, arXiv:2205.05198"].endswith("of 4")
    assert runs["step time, vTrain single node"].endswith("of 720")
    above = [r for r in today.readings if r.framework.name == "nanotron" and accuracy.mfu(r) > 0.1]
    assert 0 < len(above) < 761
    half = [r for r in today.readings if not r.run.precision.startswith("fp8")]
    assert max(accuracy.mfu(r) for r in half) < 0.75
