"""Laws of continuous batching in closed form."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from settings_served import served

from autoparallel.inference import (
    Instance,
    Latencies,
    Load,
    StepTime,
    closed_loop,
    max_throughput,
    poisson,
)
from autoparallel.inference.batching import prompts_ahead, running_limit
from autoparallel.inference.engine_memory import kv_capacity_sequences

CASE = served("llama-3.1-8b")
LOAD = Load(input_tokens=1000.0, output_tokens=200.0)
CLIENTS = np.array([1.0, 2.0, 8.0, 32.0, 128.0])


def test_every_client_is_always_waiting_for_one_answer():
    found = closed_loop(CASE, Instance(), replace(LOAD, concurrency=CLIENTS))
    np.testing.assert_allclose(found.requests_per_s * found.e2e_s, CLIENTS, rtol=1e-9)
    np.testing.assert_allclose(found.tokens_per_s, found.requests_per_s * 200)


def test_a_request_is_its_first_token_and_the_gaps():
    found = closed_loop(CASE, Instance(), replace(LOAD, concurrency=CLIENTS))
    np.testing.assert_allclose(found.e2e_s, found.ttft_s + 199 * found.tpot_s)


def test_more_clients_get_more_out_and_wait_longer():
    found = closed_loop(CASE, Instance(), replace(LOAD, concurrency=CLIENTS))
    for column in (found.tokens_per_s, found.ttft_s, found.tpot_s):
        assert np.all(np.diff(column) > 0)


def test_a_column_is_its_rows_one_by_one():
    load = replace(LOAD, concurrency=CLIENTS, rounds=8.0)
    together = closed_loop(CASE, Instance(), load)
    for i, clients in enumerate(CLIENTS):
        alone = closed_loop(CASE, Instance(), replace(load, concurrency=float(clients)))
        for f in fields(Latencies):
            one, many = getattr(alone, f.name), getattr(together, f.name)
            if not isinstance(one, StepTime):
                assert np.broadcast_to(many, (5,))[i] == pytest.approx(float(one), rel=1e-12)


def test_clients_beyond_what_fits_queue_and_add_nothing():
    limit = float(running_limit(CASE, Instance(), LOAD))
    full = closed_loop(CASE, Instance(), replace(LOAD, concurrency=limit))
    over = closed_loop(CASE, Instance(), replace(LOAD, concurrency=2 * limit))
    assert over.tokens_per_s == pytest.approx(full.tokens_per_s)
    assert over.tpot_s == pytest.approx(full.tpot_s)
    assert over.ttft_s > full.ttft_s + 0.9 * full.e2e_s


def test_what_runs_is_limited_by_batch_cache_and_budget():
    long = Load(input_tokens=30_000.0, output_tokens=1000.0)
    assert running_limit(CASE, Instance(), long) <= kv_capacity_sequences(
        CASE, Instance(), 31_000.0
    )
    assert running_limit(CASE, Instance(max_batch_size=4.0), LOAD) == 4
    prompts = Load(input_tokens=4000.0, output_tokens=10.0)
    budget = Instance(max_num_tokens=8192.0, max_batch_size=1e4)
    assert running_limit(CASE, budget, prompts) == pytest.approx(8192 * 10 / 4010)


def test_the_first_round_adds_half_of_the_others_and_steady_state_only_a_few():
    steady = prompts_ahead(CASE, LOAD, CLIENTS)
    assert steady[0] == 0
    assert np.all(steady <= CASE.constants.prompts_in_line)
    first = prompts_ahead(CASE, replace(LOAD, rounds=1.0), CLIENTS)
    np.testing.assert_allclose(first - steady, (CLIENTS - 1) / 2)


def test_a_cached_prefix_and_accepted_guesses_make_requests_shorter():
    load = replace(LOAD, concurrency=16.0)
    plain = closed_loop(CASE, Instance(), load)
    cached = closed_loop(CASE, Instance(), replace(load, prefix_tokens=800.0))
    guessed = closed_loop(CASE, Instance(), replace(load, accepted_tokens=2.0))
    assert cached.ttft_s < plain.ttft_s
    assert guessed.tpot_s < 0.7 * plain.tpot_s


def test_a_rate_is_served_up_to_the_maximum():
    most = max_throughput(CASE, Instance(), replace(LOAD, served=0.0)).requests_per_s
    load = replace(LOAD, served=0.0)
    for share in (0.2, 0.6, 0.9):
        found = poisson(CASE, Instance(), load, share * most)
        assert found.requests_per_s == pytest.approx(share * most)
        assert found.utilization == pytest.approx(share, rel=0.05)
        assert found.running == pytest.approx(share * most * found.e2e_s, rel=0.4)
    assert np.isinf(poisson(CASE, Instance(), load, 2 * most).ttft_s)


def test_percentiles_are_in_order():
    found = poisson(CASE, Instance(), LOAD, 4.0)
    assert found.ttft_s_p50 <= found.ttft_s_p90 <= found.ttft_s_p99
    assert found.e2e_s_p50 <= found.e2e_s_p90 <= found.e2e_s_p99


def test_stages_raise_throughput_but_not_the_speed_of_one_request():
    load = replace(LOAD, concurrency=64.0)
    one = closed_loop(CASE, Instance(), load)
    two = closed_loop(CASE, Instance(pipeline_model_parallel_size=2.0), load)
    assert one.tokens_per_s < two.tokens_per_s < 2 * one.tokens_per_s
    alone = replace(LOAD, concurrency=1.0)
    staged = closed_loop(CASE, Instance(pipeline_model_parallel_size=2.0), alone)
    assert staged.tpot_s >= closed_loop(CASE, Instance(), alone).tpot_s


def test_a_saturated_front_end_bounds_the_tokens_it_streams():
    slow = replace(CASE, constants=replace(CASE.constants, stream_s=300e-6))
    tp8 = Instance(tensor_model_parallel_size=8.0)
    found = closed_loop(slow, tp8, replace(LOAD, concurrency=128.0))
    assert found.tokens_per_s == pytest.approx(1 / 300e-6)
    offline = closed_loop(slow, tp8, replace(LOAD, concurrency=128.0, served=0.0))
    assert offline.tokens_per_s > 1.2 * found.tokens_per_s


def test_a_front_end_slower_than_decode_steps_keeps_new_requests_waiting():
    tp8, load = Instance(tensor_model_parallel_size=8.0), replace(LOAD, concurrency=64.0)
    step = closed_loop(CASE, tp8, load).decode.total

    def loop(stream_s):
        case = replace(CASE, constants=replace(CASE.constants, stream_s=stream_s))
        return closed_loop(case, tp8, load)

    keeps_up, late, later = (loop(share * step / 64) for share in (0.99, 1.2, 1.4))
    offline = closed_loop(CASE, tp8, replace(load, served=0.0))
    assert keeps_up.ttft_s == pytest.approx(offline.ttft_s)
    waits = late.ttft_s - keeps_up.ttft_s
    assert waits == pytest.approx(CASE.constants.stream_lag * 199 * step / 5)
    assert later.ttft_s - late.ttft_s == pytest.approx(waits)
    assert late.e2e_s == pytest.approx(keeps_up.e2e_s)
    assert late.tpot_s < keeps_up.tpot_s


def test_random_arrivals_wait_for_a_front_end_that_is_behind_too():
    tp8 = Instance(tensor_model_parallel_size=8.0)
    rate = 0.8 * max_throughput(CASE, tp8, LOAD).requests_per_s
    slow = replace(CASE, constants=replace(CASE.constants, stream_s=0.9 / (200 * rate)))
    assert poisson(slow, tp8, LOAD, rate).ttft_s > 1.05 * poisson(CASE, tp8, LOAD, rate).ttft_s
    guessed = replace(LOAD, concurrency=64.0, accepted_tokens=2.0)
    step = closed_loop(CASE, tp8, guessed).decode.total
    late = replace(CASE, constants=replace(CASE.constants, stream_s=0.6 * step / 64))
    assert closed_loop(late, tp8, guessed).ttft_s > closed_loop(CASE, tp8, guessed).ttft_s
