"""First token of a request that comes at random, while the replica's steps follow each other.

A request that finds the replica busy waits for the step that runs, then shares the next one with
the prompts that came during the same step. Prompts beyond a step's token budget and requests
beyond the replica's limit queue on top of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoparallel.inference.instance import Instance
from autoparallel.inference.setting import Setting
from autoparallel.inference.steps import Batch, mixed_step
from autoparallel.units import Num

ROUNDS = 12
"""Repetitions until the mean step and the prompts that come in it agree."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """Requests at random on one replica; every field is a scalar or [N].

    Attributes:
        rate: Arrivals a second at one group of stages that shares steps.
        new_tokens: Of a prompt, without its cached prefix.
        attended: Tokens each of them attends to, mean.
        running: Requests that decode in these steps.
        context_tokens: Tokens each of them attends to.
        chunk_tokens: Prompt tokens a step takes at most.
    """

    rate: Num
    new_tokens: Num
    attended: Num
    running: Num
    context_tokens: Num
    chunk_tokens: Num


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FirstToken:
    """Parts of the time to the first token: the step that runs, the own steps, and the queue."""

    gate_s: Num
    own_s: Num
    queue_s: Num


def first_token(setting: Setting, instance: Instance, stream: Stream) -> FirstToken:
    """Mean time to the first token of `stream`, without the time outside the engine."""
    decoding = stream.running * float(setting.backend.mixed_steps)
    chunk = np.minimum(stream.new_tokens, stream.chunk_tokens)
    steps = stream.new_tokens / chunk
    room = np.maximum(stream.chunk_tokens / stream.new_tokens, 1.0)

    def prompts_s(prompts: Num) -> Num:
        """Time of a step with the part of `prompts` prompts that fits."""
        batch = Batch(
            decoding=decoding,
            context_tokens=stream.context_tokens,
            prompt_tokens=chunk * prompts,
            prompt_context=stream.attended,
            prompts=prompts,
        )
        return mixed_step(setting, instance, batch).total

    quiet = Batch(decoding=stream.running, context_tokens=stream.context_tokens)
    decode_s = mixed_step(setting, instance, quiet).total
    each_s = steps * prompts_s(room) / room
    seen_s, own_s = decode_s, steps * prompts_s(1.0)
    for _ in range(ROUNDS):
        came = stream.rate * seen_s
        together = np.minimum(came / -np.expm1(-np.maximum(came, 1e-9)), room)
        own_s = steps * prompts_s(np.minimum(1.0 + came, room))
        share = np.minimum(stream.rate * steps * prompts_s(together) / together, 1.0)
        seen_s = (1.0 - share) * decode_s + share * prompts_s(together)
    load = np.minimum(stream.rate * each_s, 0.98)
    busy = -np.expm1(-stream.running)
    queue_s = stream.rate * each_s**2 / (2.0 * (1.0 - load))
    return FirstToken(gate_s=busy * seen_s / 2.0, own_s=own_s, queue_s=queue_s)
