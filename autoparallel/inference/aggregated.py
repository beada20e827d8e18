"""Aggregated serving: every replica prefills and decodes, the load is shared evenly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from autoparallel.hardware import Cluster
from autoparallel.inference.batching import Latencies, Load, closed_loop, max_throughput, poisson
from autoparallel.inference.engine_memory import fits_probability, kv_capacity_sequences, memory
from autoparallel.inference.instance import Instance
from autoparallel.inference.options import PERCENTILES, Column, Demand, Options, instance_rows
from autoparallel.inference.setting import Setting
from autoparallel.inference.space import Replicas

HOUR_S = 3600.0


def aggregated(
    settings: tuple[Setting, ...], index: int, found: Replicas, demand: Demand
) -> Options:
    """Replicas of `settings[index]` under a demand."""
    here, instance = settings[index], found.instance
    limit = np.asarray(
        instance.max_batch_size
        * instance.attention_data_parallel_size
        * instance.pipeline_model_parallel_size,
        dtype=np.float64,
    )
    count = np.minimum(found.count, demand.concurrency) if demand.concurrency else found.count
    seen, each = _latencies(here, instance, demand, limit, count)
    held = np.ceil(np.minimum(limit, np.maximum(each, 1e-9)))
    room = kv_capacity_sequences(here, instance, demand.input_tokens + demand.output_tokens)
    longest = kv_capacity_sequences(here, instance, float(demand.longest_tokens))
    rate = seen.pop("requests_per_s") * count
    if demand.output_tokens == 1:
        seen["tpot_s"] = 0.0 * seen["tpot_s"]
    typical = float(demand.input_tokens + demand.output_tokens)
    rows = np.full(found.size, index, dtype=np.intp)
    return Options(
        settings=settings,
        setting=rows,
        prefill_setting=rows,
        worker=instance,
        count=count,
        prefill=instance,
        prefill_count=np.zeros(found.size),
        concurrency=each * count,
        requests_per_s=rate,
        **seen,
        tokens_per_s=rate * demand.output_tokens,
        usd_per_s=_column(count * instance.gpus * price_per_s(here.cluster), found.size),
        memory_bytes=_column(memory(here, instance, held, typical).total, found.size),
        fits_probability=_column(fits_probability(here, instance, held, typical), found.size),
        reached=np.asarray((room >= held) & (longest >= instance.attention_data_parallel_size)),
    )


def _latencies(
    setting: Setting, instance: Instance, demand: Demand, limit: Column, count: Column
) -> tuple[dict[str, Any], Column]:
    """What one replica's share of the demand meets, and how many requests that is.

    Under a rate, replicas that cannot keep up with their share are not solved for: they wait
    without end.
    """
    load = Load(
        input_tokens=float(demand.input_tokens),
        output_tokens=float(demand.output_tokens),
        prefix_tokens=float(demand.prefix_tokens),
        accepted_tokens=demand.accepted_tokens,
    )
    if demand.request_rate is None:
        each = demand.concurrency / count if demand.concurrency else limit
        return _seen(closed_loop(setting, instance, replace(load, concurrency=each)), count), each
    share = demand.request_rate / count
    full = np.asarray(max_throughput(setting, instance, load).requests_per_s)
    able = np.flatnonzero(share < full)
    found = poisson(setting, instance_rows(instance, able), load, share[able])
    solved = _seen(found, share[able])
    seen = {
        name: _spread(value, able, count.size, share if name == "requests_per_s" else np.inf)
        for name, value in solved.items()
    }
    return seen, np.where(np.isfinite(seen["e2e_s"][0]), seen["e2e_s"][0] * share, np.inf)


def _spread(value: Column, rows: Any, size: int, other: Any) -> Column:
    """A column or block of some rows over all rows, `other` elsewhere."""
    full: Column = np.broadcast_to(other, (*value.shape[:-1], size)).astype(np.float64)
    full[..., rows] = value
    return full


def _seen(found: Latencies, like: Column) -> dict[str, Any]:
    """Latencies as blocks, with the rate and the utilization."""
    size = like.size
    return blocks(found, size) | {
        "requests_per_s": _column(found.requests_per_s, size),
        "utilization": _column(found.utilization, size),
    }


def blocks(seen: Latencies, size: int) -> dict[str, Any]:
    """The latencies as blocks [4, N]."""
    return {
        name: np.stack(
            [
                _column(getattr(seen, name if p == "mean" else f"{name}_{p}"), size)
                for p in PERCENTILES
            ]
        )
        for name in ("ttft_s", "tpot_s", "e2e_s")
    }


def price_per_s(cluster: Cluster) -> float:
    """Of one GPU; NaN without a price."""
    price = cluster.usd_per_gpu_hour
    return np.nan if price is None else price / HOUR_S


def _column(value: Any, size: int) -> Column:
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (size,))
