"""Continuous batching in closed form: latencies and throughput of a replica under a load.

The load is a closed loop (`concurrency` clients, each sends its next request when the last answer
is complete) or a Poisson stream of `request_rate`. All requests have the same lengths.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from autoparallel.inference.engine_memory import kv_capacity_sequences
from autoparallel.inference.instance import Instance
from autoparallel.inference.open_loop import Stream, first_token
from autoparallel.inference.setting import Setting
from autoparallel.inference.steps import Batch, StepTime, mixed_step
from autoparallel.units import Num

SOLVER_STEPS = 30
"""Halvings of the bracket when the concurrency of a request rate is sought."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """Requests that arrive at one replica; every field is a scalar or [N].

    Attributes:
        input_tokens: Prompt length.
        output_tokens: Tokens generated a request, the first included.
        concurrency: Requests in the system of a closed loop.
        prefix_tokens: Leading tokens of the prompt found in the prefix cache.
        accepted_tokens: Tokens a decode step yields a sequence: 1, more with speculation.
        rounds: Requests each client of the closed loop sends; the first of all clients come at
            once. Infinity leaves the steady state.
        served: 1 where answers are streamed through the server's front end, more where that is an
            older and slower one, 0 where the engine is driven offline.
    """

    input_tokens: Num
    output_tokens: Num
    concurrency: Num = 1.0
    prefix_tokens: Num = 0.0
    accepted_tokens: Num = 1.0
    rounds: Num = np.inf
    served: Num = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Latencies:
    """What a load meets on one replica; every field is a scalar or [N].

    Attributes:
        ttft_s: Time to the first token, mean; `_p50`, `_p90`, `_p99` its percentiles.
        tpot_s: Time per token after the first, mean over requests, and percentiles.
        e2e_s: Time to the last token, mean and percentiles.
        tokens_per_s: Output tokens of the replica.
        requests_per_s: Answers completed.
        running: Requests that run at once; the others of the load queue.
        utilization: Share of the requests the replica can complete that this load asks for.
        decode, prompt: Parts of a step without and with prompt tokens.
    """

    ttft_s: Num
    ttft_s_p50: Num
    ttft_s_p90: Num
    ttft_s_p99: Num
    tpot_s: Num
    tpot_s_p50: Num
    tpot_s_p90: Num
    tpot_s_p99: Num
    e2e_s: Num
    e2e_s_p50: Num
    e2e_s_p90: Num
    e2e_s_p99: Num
    tokens_per_s: Num
    requests_per_s: Num
    running: Num
    utilization: Num
    decode: StepTime
    prompt: StepTime


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cycle:
    """One request's way through a replica that runs `running` of them all the time.

    `lag_s` is the part of `first_s` in which it waits for the server's front end to catch up.
    """

    total_s: Num
    first_s: Num
    between_s: Num
    lag_s: Num
    running: Num
    decode: StepTime
    prompt: StepTime


def running_limit(setting: Setting, instance: Instance, load: Load) -> Num:
    """Requests the replica can run at once: by its batch limit, KV cache and token budget."""
    room = kv_capacity_sequences(setting, instance, load.input_tokens + load.output_tokens)
    copies = instance.attention_data_parallel_size * instance.pipeline_model_parallel_size
    limit = np.minimum(room, instance.most_running)
    if setting.backend.mixed_steps:
        limit = np.minimum(limit, _budget_limit(instance, load) * copies)
    return np.maximum(limit, 1.0)


def _budget_limit(instance: Instance, load: Load) -> Num:
    """Requests of one copy that the token budget of a step keeps going.

    A step's budget holds what the running requests generate and the prompts that replace those that
    finish: with more running, prompts come in more slowly than answers end. Where prompts are not
    split, a whole number of them goes into a step.
    """
    new, budget = new_tokens(load), instance.max_num_tokens
    prompts = budget / (new + load.output_tokens)
    fewer = np.floor(prompts)
    whole = np.maximum(fewer * load.output_tokens, budget - (fewer + 1.0) * new)
    limit: Num = np.where(
        np.asarray(instance.whole_prompts) > 0, whole, prompts * load.output_tokens
    )
    return limit


def new_tokens(load: Load) -> Num:
    """Tokens of a prompt that are not in the prefix cache."""
    return np.maximum(load.input_tokens - load.prefix_tokens, 1.0)


def closed_loop(setting: Setting, instance: Instance, load: Load) -> Latencies:
    """Latencies of `load.concurrency` clients that wait for each answer before they ask again."""
    limit = running_limit(setting, instance, load)
    running = np.minimum(load.concurrency, limit)
    cycle = _cycle(setting, instance, load, running)
    rate = running / cycle.total_s
    queue_s = (load.concurrency - running) / rate
    return _latencies(cycle, load, rate, queue_s, utilization=1.0 + 0.0 * rate, open_loop=False)


def poisson(setting: Setting, instance: Instance, load: Load, request_rate: Num) -> Latencies:
    """Latencies of requests that come at random at `request_rate` a second."""
    limit = running_limit(setting, instance, load)
    full = limit / _cycle(setting, instance, load, limit).total_s
    utilization = request_rate / full
    low, high = 0.0 * utilization, limit + 0.0 * utilization
    for _ in range(SOLVER_STEPS):
        middle = (low + high) / 2
        served = middle / _cycle(setting, instance, load, np.maximum(middle, 1.0)).total_s
        low, high = (
            np.where(served < request_rate, middle, low),
            np.where(served < request_rate, high, middle),
        )
    running = np.maximum(high, 1.0)
    cycle = _cycle(setting, instance, load, running)
    rate = np.minimum(request_rate, full)
    lanes = instance.pipeline_model_parallel_size
    first = first_token(setting, instance, _stream(instance, load, rate / lanes, high / lanes))
    slot_s = _slot_wait_s(utilization, high, limit, cycle.total_s)
    queue_s = np.where(utilization < 1, first.gate_s + first.queue_s + slot_s, np.inf)
    own_s = setting.constants.request_s + first.own_s + cycle.lag_s
    gaps = np.maximum(load.output_tokens - 1.0, 1.0)
    steps_s = np.maximum(load.output_tokens - 1.0, 0.0) / load.accepted_tokens * cycle.decode.total
    between = np.maximum(cycle.total_s - own_s, steps_s) / gaps
    cycle = replace(cycle, first_s=own_s, between_s=between)
    return _latencies(cycle, load, rate, queue_s, utilization=utilization, open_loop=True)


def _stream(instance: Instance, load: Load, rate: Num, running: Num) -> Stream:
    """What one group of stages meets: `rate` arrivals a second beside `running` requests."""
    new = np.maximum(load.input_tokens - load.prefix_tokens, 1.0)
    budget = instance.max_num_tokens * instance.attention_data_parallel_size
    return Stream(
        rate=rate,
        new_tokens=new,
        attended=load.prefix_tokens + new / 2,
        running=running,
        context_tokens=load.input_tokens + load.output_tokens / 2,
        chunk_tokens=np.maximum(budget - running, 1.0),
    )


def _slot_wait_s(utilization: Num, running: Num, slots: Num, service_s: Num) -> Num:
    """Mean wait for one of `slots` places, random arrivals and equal service times.

    Sakasegawa's approximation of the M/M/c queue (1977), halved for service that does not vary.
    Steps are faster while fewer run: what is taken is `running` of `slots`, less than utilization.
    """
    taken = np.minimum(running / slots, 1.0)
    waiting = taken ** np.sqrt(2.0 * (slots + 1.0)) / np.maximum(1.0 - utilization, 1e-9)
    wait: Num = waiting * service_s / slots / 2.0
    return wait


def max_throughput(setting: Setting, instance: Instance, load: Load) -> Latencies:
    """The replica at infinite rate: as many requests run as it has room for."""
    limit = running_limit(setting, instance, load)
    return closed_loop(setting, instance, replace(load, concurrency=limit, served=0.0))


def _cycle(setting: Setting, instance: Instance, load: Load, running: Num) -> _Cycle:
    """From a request's arrival to its last token, `running` requests in the replica.

    In a cycle every request prefills once and decodes `output_tokens - 1` times. Where prompts and
    decodes share steps, each step with prompt tokens also advances the decodes.
    """
    c, lanes = setting.constants, instance.pipeline_model_parallel_size
    b = np.maximum(running / lanes, 1.0)
    new = new_tokens(load)
    decode_steps = np.maximum(load.output_tokens - 1.0, 0.0) / load.accepted_tokens
    context = load.input_tokens + load.output_tokens / 2
    together = np.maximum(b / np.maximum(decode_steps, 1.0), 1.0)
    chunk = np.minimum(prompt_room(instance, load, b) * new, new * together)
    prompt_steps = b * new / chunk
    attended = load.prefix_tokens + new / 2
    mixed = float(setting.backend.mixed_steps)
    prompt = mixed_step(
        setting,
        instance,
        Batch(
            decoding=mixed * (b - 1.0),
            context_tokens=context,
            prompt_tokens=chunk,
            prompt_context=attended,
            prompts=together,
        ),
    )
    decode = mixed_step(setting, instance, Batch(decoding=b, context_tokens=context))
    shared = mixed * prompt_steps * (b - 1.0) / b
    plain = np.maximum(decode_steps - shared, 0.0)
    engine_s = prompt_steps * prompt.total + plain * decode.total + c.request_s
    stream_s = load.served * running * load.output_tokens * c.stream_s
    total = np.maximum(engine_s, stream_s)
    alone = mixed_step(setting, instance, Batch(prompt_tokens=new, prompt_context=attended)).total
    streamed = load.served * running * load.accepted_tokens * c.stream_s
    behind = decode_steps * np.maximum(streamed - decode.total, 0.0)
    lag = c.stream_lag * behind
    first = c.request_s + alone * (1.0 + prompts_ahead(setting, load, b)) + lag
    gaps = np.maximum(load.output_tokens - 1.0, 1.0)
    between = np.maximum(total - first, decode_steps * decode.total) / gaps
    return _Cycle(
        total_s=first + gaps * between,
        first_s=first,
        between_s=between,
        lag_s=lag,
        running=b * lanes,
        decode=decode,
        prompt=prompt,
    )


def prompt_room(instance: Instance, load: Load, running: Num) -> Num:
    """Prompts that fit into a step beside `running` decodes of one lane.

    Less than one where a prompt is split; a whole number where prompts are not.
    """
    new, copies = new_tokens(load), instance.attention_data_parallel_size
    split = np.maximum(instance.max_num_tokens - running / copies, 1.0) / new
    whole = np.asarray(instance.whole_prompts) > 0
    room: Num = np.where(whole, np.maximum(np.floor(split), 1.0), split) * copies
    return room


def prompts_ahead(setting: Setting, load: Load, running: Num) -> Num:
    """Prompts of other clients that a request of a closed loop waits behind, mean over the run.

    Clients that finish close to each other ask again close to each other, so a few prompts are
    always in line; and all clients start at once, so that in the first of `rounds` rounds half of
    the others are ahead.
    """
    others, most = running - 1.0, setting.constants.prompts_in_line
    steady = most * -np.expm1(-others / most)
    line: Num = steady + others / 2.0 / load.rounds
    return line


def _latencies(
    cycle: _Cycle, load: Load, rate: Num, queue_s: Num, *, utilization: Num, open_loop: bool
) -> Latencies:
    """Means and percentiles from a cycle and the wait before it."""
    ttft = cycle.first_s + queue_s
    spread = {"p50": np.log(2.0), "p90": np.log(10.0), "p99": np.log(100.0)}
    wait = {k: queue_s * (v if open_loop else 1.0) for k, v in spread.items()}
    tokens = np.maximum(load.output_tokens - 1.0, 0.0)
    first = {k: cycle.first_s + w for k, w in wait.items()}
    e2e = {k: f + cycle.between_s * tokens for k, f in first.items()}
    return Latencies(
        ttft_s=ttft,
        ttft_s_p50=first["p50"],
        ttft_s_p90=first["p90"],
        ttft_s_p99=first["p99"],
        tpot_s=cycle.between_s,
        tpot_s_p50=cycle.between_s,
        tpot_s_p90=cycle.between_s,
        tpot_s_p99=cycle.between_s,
        e2e_s=ttft + cycle.between_s * tokens,
        e2e_s_p50=e2e["p50"],
        e2e_s_p90=e2e["p90"],
        e2e_s_p99=e2e["p99"],
        tokens_per_s=rate * load.output_tokens,
        requests_per_s=rate,
        running=cycle.running,
        utilization=utilization,
        decode=cycle.decode,
        prompt=cycle.prompt,
    )
