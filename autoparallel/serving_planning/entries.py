"""Evaluated deployments as the records of a plan."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np

from autoparallel.inference import Load, closed_loop
from autoparallel.inference.instance import Instance
from autoparallel.inference.options import Options, instance_rows
from autoparallel.inference.search import Found, binding
from autoparallel.inference.steps import Batch, StepTime, mixed_step
from autoparallel.serving_plan import ServingEntry, Worker
from autoparallel.units import MS

MILLION = 1e6


def entry_of(found: Found, row: int, rank: int | None, seen: Options | None = None) -> ServingEntry:
    """Row `row` of the evaluated deployments as a record, with the latencies of `seen`."""
    one = found.options.take(np.array([row])) if seen is None else seen
    here = one.settings[int(one.setting[0])]
    gpus, per_s = float(one.gpus[0]), float(one.tokens_per_s[0])
    price = float(one.usd_per_s[0])
    tpot = float(one.tpot_s[0][0])
    split = bool(one.prefill_count[0])
    return ServingEntry(
        rank=rank,
        backend=here.backend.name,
        mode="disaggregated" if split else "aggregated",
        workers=_workers(one, split),
        precision=here.precision,
        kv_dtype="fp8" if _at(one.worker.kv_element_bytes) == 1.0 else "bf16",
        concurrency=_finite(float(one.concurrency[0])) or 0.0,
        load=float(one.requests_per_s[0]),
        **_latencies("ttft_ms", one.ttft_s),
        **_latencies("tpot_ms", one.tpot_s, found.question.demand.output_tokens > 1),
        tokens_per_s_per_gpu=per_s / gpus,
        tokens_per_s_per_user=1.0 / tpot if 0 < tpot < math.inf else None,
        memory_bytes=float(one.memory_bytes[0]),
        fits_probability=float(one.fits_probability[0]),
        usd_per_million_tokens=_finite(price / max(per_s, 1e-12) * MILLION),
        binding_constraint=binding(found, row),
        parts=_parts(found, one),
    )


def _latencies(name: str, block: Any, there: bool = True) -> dict[str, float | None]:
    known = there and bool(np.isfinite(block[0, 0]))
    mean, *rest = (float(value) / MS if known else None for value in block[:, 0])
    return {name: mean} | {
        f"{name}_{p}": v for p, v in zip(("p50", "p90", "p99"), rest, strict=True)
    }


def _finite(value: float) -> float | None:
    """The value, or None where there is no such number."""
    return value if math.isfinite(value) else None


def _at(value: Any) -> float:
    """The one value of a column of one row."""
    return float(np.ravel(np.asarray(value))[0])


def _workers(one: Options, split: bool) -> tuple[Worker, ...]:
    """The kinds of replicas of a deployment of one row."""
    main = _worker("decode" if split else "aggregated", one.worker, _at(one.count))
    if not split:
        return (main,)
    return (_worker("prefill", one.prefill, _at(one.prefill_count)), main)


def _worker(role: str, instance: Instance, count: float) -> Worker:
    stages = _at(instance.pipeline_model_parallel_size)
    return Worker(
        role=role,
        replicas=round(count),
        gpus=round(_at(instance.gpus)),
        tensor_model_parallel_size=round(_at(instance.tensor_model_parallel_size)),
        pipeline_model_parallel_size=round(stages),
        expert_model_parallel_size=round(_at(instance.expert_model_parallel_size)),
        attention_data_parallel_size=round(_at(instance.attention_data_parallel_size)),
        max_batch_size=round(_at(instance.max_batch_size) * stages),
        max_num_tokens=round(_at(instance.max_num_tokens)),
    )


def _parts(found: Found, one: Options) -> dict[str, float]:
    """Seconds of a decode step and of a prompt step by cause, as `decode_` and `prompt_`."""
    demand = found.question.demand
    here, there = (one.settings[int(i[0])] for i in (one.setting, one.prefill_setting))
    worker, prefill = (instance_rows(x, np.array([0])) for x in (one.worker, one.prefill))
    if not one.prefill_count[0]:
        load = Load(
            input_tokens=float(demand.input_tokens),
            output_tokens=float(demand.output_tokens),
            prefix_tokens=float(demand.prefix_tokens),
            accepted_tokens=demand.accepted_tokens,
            concurrency=max((_finite(_at(one.concurrency)) or 1.0) / _at(one.count), 1e-9),
        )
        seen = closed_loop(here, worker, load)
        return _named("decode", seen.decode) | _named("prompt", seen.prompt)
    context = demand.input_tokens + demand.output_tokens / 2
    lane = worker.max_batch_size * worker.attention_data_parallel_size
    copies = prefill.attention_data_parallel_size
    chunk = np.minimum(prefill.max_num_tokens, float(demand.new_tokens)) * copies
    prompt = Batch(
        prompt_tokens=chunk,
        prompt_context=demand.prefix_tokens + demand.new_tokens / 2,
        prompts=copies,
    )
    decode = Batch(decoding=lane, context_tokens=context)
    return _named("decode", mixed_step(here, worker, decode)) | _named(
        "prompt", mixed_step(there, prefill, prompt)
    )


def _named(prefix: str, step: StepTime) -> dict[str, float]:
    return {f"{prefix}_{f.name}": _at(getattr(step, f.name)) for f in fields(step)}
