"""An offline run: a number of equal requests, all given to the engine at once.

Requests of equal lengths that enter together end together, and those that take their places enter
together again: the run goes in waves, each as long as an answer has tokens. The first fills up
prompt by prompt, and the last may fill the replica only in part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoparallel.inference.batching import Load, new_tokens, prompt_room, running_limit
from autoparallel.inference.instance import Instance
from autoparallel.inference.setting import Setting
from autoparallel.inference.steps import Batch, StepTime, mixed_step
from autoparallel.units import Num

FILLING = (0.125, 0.375, 0.625, 0.875)
"""Shares of the places that are taken while the first wave comes in."""
ROOM_ERROR = 0.06
"""Share by which the requests that fit at once may be wrong either way (as `MEMORY_SIGMA`)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OfflineRun:
    """An offline run of a replica; every field is a scalar or [N].

    Attributes:
        running: Requests that run at once at most.
        steps: Steps of the run, `prompt_steps` of them with prompts.
        decode, prompt: Parts of a step without and with prompts, at the mean.
        seconds: The whole run.
    """

    running: Num
    steps: Num
    prompt_steps: Num
    decode: StepTime
    prompt: StepTime
    seconds: Num


def offline_run(setting: Setting, instance: Instance, load: Load, requests: Num) -> OfflineRun:
    """How a replica gets through `requests` requests of the lengths of `load`.

    A request holds its place for as many steps as it has output tokens: the last of `w` waves ends
    `w` answers and its own prompts after the start. Step times are close to affine in the batch, so
    that its mean over the run stands for all of its values.
    """
    lanes, new = instance.pipeline_model_parallel_size, new_tokens(load)
    held = np.maximum(load.output_tokens / load.accepted_tokens, 1.0)
    each = requests / lanes
    most = np.minimum(running_limit(setting, instance, load) / lanes, each)
    waves = mean_ceiling(each / most)
    last = np.maximum(each - (waves - 1.0) * most, 0.0)
    prompt_steps = _prompt_steps(instance, load, each, most)
    together = each / prompt_steps
    steps = np.maximum(waves * held + last / together, prompt_steps)
    mean = each * held / steps
    mixed = float(setting.backend.mixed_steps)
    context = load.input_tokens + load.output_tokens / 2
    prompt = mixed_step(
        setting,
        instance,
        Batch(
            decoding=mixed * mean,
            context_tokens=context,
            prompt_tokens=new * together,
            prompt_context=load.prefix_tokens + new / 2,
            prompts=np.maximum(together, 1.0),
        ),
    )
    plain = Batch(decoding=mean, context_tokens=context, padding=instance.padding(mean))
    decode = mixed_step(setting, instance, plain)
    without = np.maximum(steps - mixed * prompt_steps, 0.0)
    return OfflineRun(
        running=most * lanes,
        steps=steps,
        prompt_steps=prompt_steps,
        decode=decode,
        prompt=prompt,
        seconds=prompt_steps * prompt.total + without * decode.total,
    )


def _prompt_steps(instance: Instance, load: Load, requests: Num, most: Num) -> Num:
    """Steps with prompts: as many prompts go into one as fit beside the requests that run.

    Those of the first wave find from none to all places taken, the others all.
    """

    def steps_of_one(running: Num) -> Num:
        room = np.minimum(prompt_room(instance, load, running), np.maximum(most, 1.0))
        return 1.0 / room

    filling = sum(steps_of_one(most * share) for share in FILLING) / len(FILLING)
    first = np.minimum(requests, most)
    steps: Num = first * filling + (requests - first) * steps_of_one(most)
    return steps


def mean_ceiling(x: Num) -> Num:
    """Mean of `ceil` over values within `ROOM_ERROR` of `x`: the places are not known exactly."""
    half = ROOM_ERROR * x
    mean: Num = (_area(x + half) - _area(x - half)) / (2.0 * half)
    return np.where(np.asarray(x) <= 1.0, 1.0, mean)


def _area(x: Num) -> Num:
    """Integral of `ceil` from 0 to `x`."""
    whole = np.floor(x)
    return whole * (whole + 1.0) / 2.0 + (x - whole) * (whole + 1.0)
