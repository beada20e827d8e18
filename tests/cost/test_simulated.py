from __future__ import annotations

from dataclasses import replace

import pytest

from autoparallel import planning
from autoparallel.cost import simulated as room
from autoparallel.cost.simulated import one_row, simulated
from autoparallel.cost.step import step_time
from autoparallel.layout import Layout, knobs
from autoparallel.planning import setting
from autoparallel.request import training_request


def case(words: str, model: str = "gpt3-20b", gpus: int = 64):  # type: ignore[no-untyped-def]
    request = planning.checked(training_request(model=model, num_gpus=gpus))
    where = setting(request)
    return where.case(knobs([Layout.parse(words)], [gpus], [request.global_batch_size]))


@pytest.mark.parametrize(
    "words",
    [
        "tp4 pp1 mbs1 sp zero1",
        "tp4 pp4 mbs1 sp zero1",
        "tp2 pp4 vpp11 mbs1 sp zero1",
        "tp2 pp8 mbs2 sp zero1 stages=5,6*6,3",
    ],
)
def test_the_simulator_and_the_closed_form_agree(words: str) -> None:
    found = simulated(case(words))
    assert found is not None
    assert found.difference == pytest.approx(0.0, abs=0.025)


def test_the_pipeline_is_that_of_the_step() -> None:
    one = replace(case("tp4 pp4 mbs1 sp zero1"), nearby=None)
    one = replace(one, constants=replace(one.constants, straggling=0.0))
    parts, found = step_time(one), simulated(one)
    assert found is not None
    bubble = parts.bubble_s / one.constants.bubble
    others = parts.dp_comm_s + parts.optimizer_s
    pipeline = parts.iteration_s - others - parts.bubble_s + bubble
    assert float(pipeline[0]) == pytest.approx(found.closed_form_s, rel=1e-6)


def test_a_pipeline_of_too_many_events_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    one = case("tp4 pp4 mbs1 sp zero1")
    events = 2 * one_row(one).pp * one_row(one).micro_batches
    monkeypatch.setattr(room, "MOST_EVENTS", int(events) - 1)
    assert simulated(one) is None
