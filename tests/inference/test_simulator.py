from __future__ import annotations

import numpy as np
import pytest
from cases import DENSE, SMALL_CLUSTER

from autoparallel import catalog
from autoparallel.inference import (
    Instance,
    Load,
    backend,
    closed_loop,
    max_throughput,
    poisson,
    setting,
)
from autoparallel.inference.simulator import Arrivals, even_arrivals, simulate

LENGTHS = (1000, 200)
INSTANCE = Instance(max_batch_size=32.0, max_num_tokens=2048.0)


def here(name="vllm", model=DENSE):
    return setting(model, SMALL_CLUSTER, backend(name), "bf16")


@pytest.mark.parametrize("name", ["vllm", "sglang"])
@pytest.mark.parametrize("clients", [1, 4, 16, 32])
def test_closed_form_and_simulator_agree_on_a_closed_loop(name, clients):
    load = Load(input_tokens=1000.0, output_tokens=200.0, concurrency=float(clients), served=0.0)
    formula = closed_loop(here(name), INSTANCE, load)
    arrivals = even_arrivals(
        *LENGTHS, 6 * clients + 20, clients=clients, cycle_s=float(formula.e2e_s)
    )
    seen = simulate(here(name), INSTANCE, arrivals)
    whole = seen.figures("e2e_s", clients)[0]
    assert clients / whole == pytest.approx(float(formula.requests_per_s), rel=0.1)
    assert seen.figures("tpot_s", clients)[0] == pytest.approx(float(formula.tpot_s), rel=0.1)


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_closed_form_and_simulator_agree_under_random_arrivals(share):
    model = catalog.model("llama-3.1-8b")
    load = Load(input_tokens=1000.0, output_tokens=200.0, served=0.0)
    full = closed_loop(
        here(model=model),
        INSTANCE,
        Load(input_tokens=1000.0, output_tokens=200.0, concurrency=32.0),
    )
    rate = share * float(full.requests_per_s)
    formula = poisson(here(model=model), INSTANCE, load, np.array([rate]))
    seen = simulate(
        here(model=model), INSTANCE, even_arrivals(*LENGTHS, 600, request_rate=rate, seed=1)
    )
    assert seen.figures("tpot_s")[0] == pytest.approx(float(formula.tpot_s[0]), rel=0.15)
    assert seen.requests_per_s == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize("name", ["vllm", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_first_tokens_of_random_arrivals_agree_at_low_and_high_load(name, share):
    case = here(name, catalog.model("llama-3.1-8b"))
    load = Load(input_tokens=1000.0, output_tokens=200.0, served=0.0)
    rate = share * float(max_throughput(case, INSTANCE, load).requests_per_s)
    formula = poisson(case, INSTANCE, load, np.array([rate]))
    seen = simulate(case, INSTANCE, even_arrivals(*LENGTHS, 600, request_rate=rate, seed=1))
    assert seen.figures("ttft_s", 60)[0] == pytest.approx(float(formula.ttft_s[0]), rel=0.15)


def test_every_request_is_answered_whole():
    draw = np.random.default_rng(3)
    inputs = draw.integers(1, 5000, 200).tolist()
    outputs = draw.integers(1, 300, 200).tolist()
    times = np.sort(draw.uniform(0, 30, 200)).tolist()
    arrivals = Arrivals(arrival_s=times, input_tokens=inputs, output_tokens=outputs)
    seen = simulate(here(), INSTANCE, arrivals)
    assert sorted(seen.tokens.tolist()) == sorted(map(float, outputs))
    assert np.all(seen.ttft_s > 0)
    assert np.all(seen.e2e_s >= seen.ttft_s - 1e-9)
    assert np.isnan(seen.tpot_s).sum() == outputs.count(1)
    assert 0 < seen.running <= 200


def test_percentiles_are_in_order_and_same_seed_is_same_answer():
    first, second = (
        simulate(here(), INSTANCE, even_arrivals(*LENGTHS, 100, request_rate=2.0)) for _ in "ab"
    )
    _, p50, p90, p99 = first.figures("ttft_s")
    assert p50 <= p90 <= p99
    assert np.array_equal(first.ttft_s, second.ttft_s)


def test_a_burst_waits_longer_than_a_trickle():
    together = Arrivals(arrival_s=[0.0] * 40, input_tokens=[2000] * 40, output_tokens=[50] * 40)
    apart = Arrivals(
        arrival_s=[3.0 * i for i in range(40)], input_tokens=[2000] * 40, output_tokens=[50] * 40
    )
    burst, trickle = (simulate(here(), INSTANCE, a).figures("ttft_s") for a in (together, apart))
    assert burst[0] > 3 * trickle[0]
    assert trickle[3] == pytest.approx(trickle[1])


def test_a_request_larger_than_the_cache_still_ends():
    long = Arrivals(arrival_s=[0.0, 0.0], input_tokens=[900_000, 100], output_tokens=[2, 2])
    assert simulate(here(), INSTANCE, long).ttft_s.size == 2
