"""The short list seen through the simulator: the spread of latencies, and traces as they come.

The closed form gives means that are calibrated; the simulator gives how far requests lie apart.
Percentiles are the closed form's mean times the simulated percentile over the simulated mean. A
trace is simulated as it is, means too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from autoparallel.inference.instance import Instance
from autoparallel.inference.options import Demand, Options, instance_rows
from autoparallel.inference.setting import Setting
from autoparallel.inference.simulator import Arrivals, Simulated, even_arrivals, simulate

LEAST_REQUESTS, MOST_REQUESTS = 100, 300
"""Requests simulated after every client of a closed loop has had its first."""
MOST_TRACE = 3000
"""Requests of a trace that are simulated on one replica."""
MOST_CLIENTS = 3000
"""Clients of a closed loop that are simulated, where the batch is not larger still: those who stand
in a longer line wait as evenly."""
LATENCIES = ("ttft_s", "tpot_s", "e2e_s")


def refined(one: Options, demand: Demand, trace: Arrivals | None = None) -> Options:
    """Aggregated deployments of one row with simulated latencies; others as they are.

    Args:
        one: The deployment.
        demand: What arrives.
        trace: The requests of the whole deployment, dealt out to the replicas in turn.
    """
    if one.prefill_count[0]:
        return one
    here = one.settings[int(one.setting[0])]
    instance = instance_rows(one.worker, np.array([0]))
    count = max(round(float(one.count[0])), 1)
    if trace is not None:
        return _of_trace(one, simulate(here, instance, _dealt(trace, count)), count)
    clients = max(float(one.concurrency[0]) / count, 1.0)
    at_once = float(np.ravel(instance.most_running)[0])
    share = min(1.0, max(MOST_CLIENTS, 2 * at_once) / clients)
    cycle = float(one.e2e_s[0][0]) * share
    seen, first = _equal_requests(here, instance, demand, round(clients * share), count, cycle)
    blocks: dict[str, Any] = {}
    for name in LATENCIES:
        figures, block = seen.figures(name, first), getattr(one, name)
        over = figures / figures[0] if figures[0] > 0 else np.ones(4)
        blocks[name] = block[:1] * np.maximum.accumulate(over)[:, None]
        blocks[name][0] = block[0]
    return replace(one, **blocks)


def _equal_requests(
    setting: Setting, instance: Instance, demand: Demand, clients: int, count: int, cycle_s: float
) -> tuple[Simulated, int]:
    """Equal requests at one replica, and how many of the first to leave out."""
    more = min(max(clients, LEAST_REQUESTS), MOST_REQUESTS)
    lengths = (demand.input_tokens, demand.output_tokens)
    kinds: dict[str, Any] = {
        "prefix_tokens": demand.prefix_tokens,
        "accepted_tokens": demand.accepted_tokens,
    }
    if demand.request_rate is not None:
        rate = demand.request_rate / count
        total = min(clients, MOST_REQUESTS) + more
        arrivals = even_arrivals(*lengths, total, request_rate=rate, **kinds)
        return simulate(setting, instance, arrivals), 0
    arrivals = even_arrivals(*lengths, clients + more, clients=clients, cycle_s=cycle_s, **kinds)
    return simulate(setting, instance, arrivals), clients


def _dealt(trace: Arrivals, count: int) -> Arrivals:
    """What the first of `count` replicas gets when requests are dealt out in turn."""
    cut = slice(0, MOST_TRACE * count, count)
    return replace(
        trace,
        arrival_s=trace.arrival_s[cut],
        input_tokens=trace.input_tokens[cut],
        output_tokens=trace.output_tokens[cut],
    )


def _of_trace(one: Options, seen: Simulated, count: int) -> Options:
    """The deployment with what a trace met on it."""
    blocks: dict[str, Any] = {name: seen.figures(name)[:, None] for name in LATENCIES}
    rate = np.array([seen.requests_per_s * count])
    tokens = np.array([float(seen.tokens.sum()) / seen.busy_s * count])
    running = np.array([seen.running * count])
    return replace(one, **blocks, requests_per_s=rate, tokens_per_s=tokens, concurrency=running)
