"""Laws of an offline run: waves of equal requests that all come at once."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from settings_served import served

from autoparallel.inference import (
    Instance,
    Load,
    OfflineRun,
    StepTime,
    max_throughput,
    offline_run,
)
from autoparallel.inference.batching import running_limit
from autoparallel.inference.offline import mean_ceiling

CASE = served("llama-3.1-8b", engine="tensorrt-llm")
LOAD = Load(input_tokens=1000.0, output_tokens=200.0)
LIMITED = Instance(max_batch_size=64.0)


def test_a_run_is_its_steps_with_and_without_prompts():
    run = offline_run(CASE, LIMITED, LOAD, 640.0)
    plain = run.steps - run.prompt_steps
    parts = run.prompt_steps * run.prompt.total + plain * run.decode.total
    assert run.seconds == pytest.approx(float(parts))
    assert run.running == 64


@pytest.mark.parametrize("requests", [1.0, 64.0, 96.0, 500.0, 640.0])
def test_no_step_generates_more_than_a_token_of_every_place(requests):
    run = offline_run(CASE, LIMITED, LOAD, requests)
    assert requests * 200 / run.steps < run.running <= 64


def test_a_longer_run_gets_closer_to_the_steady_state():
    requests = 64.0 * np.array([4.0, 16.0, 64.0, 256.0, 4096.0])
    rates = requests * 200 / offline_run(CASE, LIMITED, LOAD, requests).seconds
    assert np.all(np.diff(rates) > 0)
    steady = max_throughput(CASE, LIMITED, LOAD).tokens_per_s
    assert rates[-1] == pytest.approx(float(steady), rel=0.15)


def test_a_wave_that_fills_the_places_in_part_takes_its_whole_answers():
    half, two = (offline_run(CASE, LIMITED, LOAD, n) for n in (96.0, 128.0))
    assert half.steps > 400
    assert 96 / half.steps < 128 / two.steps


def test_one_request_takes_its_prompt_and_a_step_a_token():
    run = offline_run(CASE, LIMITED, LOAD, 1.0)
    assert (run.running, run.prompt_steps) == (1, 1)
    assert run.steps == pytest.approx(201)


def test_prompts_that_are_not_split_go_in_whole():
    whole = replace(LIMITED, whole_prompts=1.0, max_num_tokens=2900.0)
    assert offline_run(CASE, whole, LOAD, 64.0).prompt_steps == pytest.approx(32)
    split = replace(whole, whole_prompts=0.0)
    assert offline_run(CASE, split, LOAD, 64.0).prompt_steps < 32
    least = replace(whole, max_num_tokens=1064.0)
    assert offline_run(CASE, least, LOAD, 64.0).prompt_steps == 64


def test_a_budget_of_whole_prompts_keeps_no_more_requests_than_one_of_parts():
    budgets = np.array([1100.0, 1500.0, 2300.0, 3000.0, 5000.0, 8192.0, 20000.0])
    wide = Instance(max_num_tokens=budgets, max_batch_size=1e6)
    parts = running_limit(CASE, wide, LOAD)
    whole = running_limit(CASE, replace(wide, whole_prompts=1.0), LOAD)
    assert np.all(whole <= parts * (1 + 1e-12))
    assert np.all(np.diff(whole) >= 0)


def test_a_column_is_its_rows_one_by_one():
    requests = np.array([1.0, 63.0, 64.0, 65.0, 3000.0])
    together = offline_run(CASE, LIMITED, LOAD, requests)
    for i, n in enumerate(requests):
        alone = offline_run(CASE, LIMITED, LOAD, float(n))
        for f in fields(OfflineRun):
            one, many = getattr(alone, f.name), getattr(together, f.name)
            if not isinstance(one, StepTime):
                assert np.broadcast_to(many, (5,))[i] == pytest.approx(float(one), rel=1e-12)


def test_the_mean_of_a_ceiling_lies_between_its_ends_and_never_falls():
    x = np.linspace(0.01, 40.0, 4000)
    mean = mean_ceiling(x)
    assert np.all(np.diff(mean) >= -1e-12)
    assert np.all(mean >= np.maximum(x, 1.0) - 1e-12)
    assert np.all(mean <= 1.06 * x + 1.0)
    assert mean_ceiling(0.7) == 1
    assert mean_ceiling(2.5) == pytest.approx(3.0)
    assert mean_ceiling(30.0) == pytest.approx(30.5, abs=0.1)
