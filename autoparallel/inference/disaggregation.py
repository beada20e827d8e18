"""Disaggregated serving: prefill workers, decode workers, and the KV cache sent between them.

A prompt waits for a free prefill worker (several servers with a fixed service time), is prefilled
in chunks, and its KV cache moves to a decode worker over the fabric; that is the time to the first
token. Decode workers run steps without prompts. Source of the scheme: DistServe (2401.09670).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autoparallel.constants import FITS
from autoparallel.inference.aggregated import price_per_s
from autoparallel.inference.engine_memory import fits_probability, kv_capacity_sequences, memory
from autoparallel.inference.instance import Instance
from autoparallel.inference.kv_cache import kv_bytes
from autoparallel.inference.options import (
    PERCENTILES,
    Column,
    Demand,
    Limits,
    Options,
    instance_rows,
)
from autoparallel.inference.setting import Setting
from autoparallel.inference.space import Replicas
from autoparallel.inference.steps import Batch, mixed_step

PREFILL_BATCH = 4
"""Prompts a prefill worker has room for: those it works on and those being sent away."""
SHARES = (0.5, 0.7, 0.85, 0.95)
"""How busy prefill workers may be; the busier, the longer prompts wait."""
MOST_COUNTS = 24
"""Numbers of prefill workers that are tried between one and all GPUs."""
SWAMPED = 1.0 + 1e-9
"""Utilization above which the wait for a worker has no end."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pool:
    """One kind of worker as columns: what one replica does, and what it needs."""

    instance: Instance
    requests_per_s: Column
    service_s: Column
    kv_bytes: Column
    memory_bytes: Column
    fits_probability: Column
    reached: Any

    def take(self, rows: Any) -> _Pool:
        """The same at some rows."""
        names = ("requests_per_s", "service_s", "kv_bytes", "memory_bytes", "fits_probability")
        return _Pool(
            instance=instance_rows(self.instance, rows),
            reached=self.reached[rows],
            **{name: getattr(self, name)[rows] for name in names},
        )


def disaggregated(
    settings: tuple[Setting, ...],
    index: int,
    prefill_index: int,
    found: tuple[Replicas, Replicas],
    demand: Demand,
    limits: Limits,
    gpus: tuple[int, int],
) -> Options | None:
    """Every worthwhile pairing of decode and prefill workers; None when there is none.

    Args:
        settings: What the indices are of.
        index: Of the decode workers.
        prefill_index: Of the prefill workers: the same, or their own cluster's.
        found: Legal decode and prefill replicas.
        demand: What arrives.
        limits: Workers that break them alone are left out early.
        gpus: GPUs for decode and for prefill; 0 for prefill when both share the first.
    """
    if demand.output_tokens < 2 or not found[0].size or not found[1].size:
        return None
    decode = _decode_pool(settings[index], found[0].instance, demand)
    prefill = _prefill_pool(settings[prefill_index], found[1].instance, demand)
    decode = decode.take(_worthwhile(decode, limits.tpot_s, demand.decode_steps))
    prefill = prefill.take(_worthwhile(prefill, limits.ttft_s, 1.0))
    shares = SHARES if demand.request_rate is None else SHARES[-1:]
    pairs = _pairs(prefill, decode, gpus, shares)
    if not pairs[0].size:
        return None
    return _options(settings, (index, prefill_index), decode, prefill, pairs, demand)


def _prefill_pool(setting: Setting, instance: Instance, demand: Demand) -> _Pool:
    """Workers that take one prompt an attention copy at a time; stages work on several."""
    new, copies = float(demand.new_tokens), instance.attention_data_parallel_size
    chunk = np.minimum(instance.max_num_tokens, new)
    chunks, stages = np.ceil(new / chunk), instance.pipeline_model_parallel_size
    batch = Batch(
        prompt_tokens=new / chunks * copies,
        prompt_context=demand.prefix_tokens + new / 2,
        prompts=copies,
    )
    step = mixed_step(setting, instance, batch).total
    service = step * (1.0 + (chunks - 1.0) / stages)
    rate = copies * stages / (chunks * step)
    held = PREFILL_BATCH * copies
    return _pool(setting, instance, demand, rate, service, held, float(demand.input_tokens))


def _decode_pool(setting: Setting, instance: Instance, demand: Demand) -> _Pool:
    """Workers that decode a full batch; `service_s` is the time of all steps of a request."""
    copies, lanes = instance.attention_data_parallel_size, instance.pipeline_model_parallel_size
    lane = instance.max_batch_size * copies
    service = decode_tpot_s(setting, instance, demand) * max(demand.output_tokens - 1.0, 1.0)
    tokens = float(demand.input_tokens + demand.output_tokens)
    return _pool(setting, instance, demand, lane * lanes / service, service, lane * lanes, tokens)


def decode_tpot_s(setting: Setting, instance: Instance, demand: Demand) -> Any:
    """Time per token of a full batch that only decodes."""
    context = demand.input_tokens + demand.output_tokens / 2
    lane = instance.max_batch_size * instance.attention_data_parallel_size
    step = mixed_step(setting, instance, Batch(decoding=lane, context_tokens=context)).total
    return step / demand.accepted_tokens


def _pool(
    setting: Setting,
    instance: Instance,
    demand: Demand,
    rate: Any,
    service: Any,
    held: Any,
    tokens: float,
) -> _Pool:
    size = np.asarray(instance.max_num_tokens).size
    longest = kv_capacity_sequences(setting, instance, float(demand.longest_tokens))
    room = kv_capacity_sequences(setting, instance, tokens)
    sent = kv_bytes(setting, instance, float(demand.input_tokens))
    columns = {
        "requests_per_s": rate,
        "service_s": service,
        "kv_bytes": sent,
        "memory_bytes": memory(setting, instance, held, tokens).total,
        "fits_probability": fits_probability(setting, instance, held, tokens),
    }
    return _Pool(
        instance=instance,
        reached=np.asarray((room >= held) & (longest >= instance.attention_data_parallel_size)),
        **{
            name: np.broadcast_to(np.asarray(value, dtype=np.float64), (size,))
            for name, value in columns.items()
        },
    )


def _worthwhile(pool: _Pool, limit_s: float | None, per: float) -> Any:
    """Rows that fit and keep the limit; of equal GPUs and batch the highest rate, the best first.

    Args:
        pool: Workers.
        limit_s: Of `service_s` over `per`.
        per: Tokens that share the service time.
    """
    good = pool.reached & (pool.fits_probability >= FITS)
    if limit_s is not None:
        good &= pool.service_s / per <= limit_s
    rows = np.flatnonzero(good)
    batch = pool.instance.max_batch_size * pool.instance.attention_data_parallel_size
    keys = np.stack([np.asarray(pool.instance.gpus), np.asarray(batch + 0.0 * good)])[:, rows]
    order = np.argsort(-pool.requests_per_s[rows], kind="stable")
    _, first = np.unique(keys[:, order], axis=1, return_index=True)
    return rows[order[first]]


def _pairs(
    prefill: _Pool, decode: _Pool, gpus: tuple[int, int], shares: tuple[float, ...]
) -> tuple[Any, ...]:
    """Rows of both pools, how many replicas of each, and how busy prefill may be."""
    p, d = (np.arange(np.asarray(x.requests_per_s).size) for x in (prefill, decode))
    if not p.size or not d.size:
        return (np.zeros(0, dtype=np.intp),) * 5
    own = gpus[1]
    smallest = float(np.min(prefill.instance.gpus))
    most = int((own or gpus[0]) // smallest)
    counts = np.unique(np.geomspace(1, max(most, 1), MOST_COUNTS).round())
    p, d, n, share = (x.ravel() for x in np.meshgrid(p, d, counts, np.array(shares), indexing="ij"))
    size_p = np.asarray(prefill.instance.gpus)[p]
    size_d = np.asarray(decode.instance.gpus)[d]
    left = gpus[0] - (0 if own else n * size_p)
    m = np.floor(left / size_d)
    good = (m >= 1) & (n * size_p <= (own or gpus[0]))
    return p[good], d[good], n[good], m[good], share[good]


def _options(
    settings: tuple[Setting, ...],
    index: tuple[int, int],
    decode: _Pool,
    prefill: _Pool,
    pairs: tuple[Any, ...],
    demand: Demand,
) -> Options:
    p_row, d_row, p_count, d_count, _ = pairs
    p, d = prefill.take(p_row), decode.take(d_row)
    here, there = settings[index[0]], settings[index[1]]
    sent = transfer_s(here, there, p, d)
    steps = max(demand.output_tokens - 1.0, 1.0)
    rate = _rate(p, d, pairs, demand, sent + p.service_s + d.service_s)
    busy = np.minimum(rate / (p_count * p.requests_per_s), 0.999)
    load = np.asarray(rate) / np.minimum(
        0.999 * p_count * p.requests_per_s, d_count * d.requests_per_s
    )
    rate = rate / np.maximum(load, 1.0)
    ttft = np.where(load > SWAMPED, np.inf, _ttft(here, p, p_count, busy, sent))
    tpot = np.broadcast_to(d.service_s / steps, ttft.shape)
    e2e = ttft + tpot * steps
    price = d_count * d.instance.gpus * price_per_s(here.cluster) + (
        p_count * p.instance.gpus * price_per_s(there.cluster)
    )
    return Options(
        settings=settings,
        setting=np.full(rate.size, index[0], dtype=np.intp),
        prefill_setting=np.full(rate.size, index[1], dtype=np.intp),
        worker=d.instance,
        count=d_count,
        prefill=p.instance,
        prefill_count=p_count,
        concurrency=rate * e2e[0],
        requests_per_s=rate,
        utilization=load,
        ttft_s=ttft,
        tpot_s=np.array(tpot),
        e2e_s=e2e,
        tokens_per_s=rate * demand.output_tokens,
        usd_per_s=np.broadcast_to(price, rate.shape),
        memory_bytes=np.maximum(p.memory_bytes, d.memory_bytes),
        fits_probability=np.minimum(p.fits_probability, d.fits_probability),
        reached=np.asarray(p.reached & d.reached),
    )


def _rate(p: _Pool, d: _Pool, pairs: tuple[Any, ...], demand: Demand, whole_s: Column) -> Column:
    """Requests a second: as asked, or as many as both pools take."""
    _, _, p_count, d_count, share = pairs
    if demand.request_rate is not None:
        return np.full(share.shape, demand.request_rate)
    most = np.minimum(share * p_count * p.requests_per_s, d_count * d.requests_per_s)
    asked = demand.concurrency / whole_s if demand.concurrency else np.inf
    found: Column = np.minimum(most, asked)
    return found


def transfer_s(here: Setting, there: Setting, p: _Pool, d: _Pool) -> Column:
    """Time to send a request's KV cache: every GPU of the smaller side sends or gets its part.

    Inside one NVLink domain the fast links carry it, else each GPU's share of the fabric.
    """
    a, b = here.machine, there.machine
    together = np.asarray(p.instance.gpus + d.instance.gpus) <= a.domain_gpus
    near = together & (here.cluster.name == there.cluster.name)
    fast = np.minimum(a.intra_bytes_per_s, b.intra_bytes_per_s)
    slow = np.minimum(a.inter_bytes_per_s, b.inter_bytes_per_s)
    latency = np.where(near, a.intra_latency_s, np.maximum(a.inter_latency_s, b.inter_latency_s))
    sent: Column = latency + np.maximum(p.kv_bytes, d.kv_bytes) / np.where(near, fast, slow)
    return sent


def _ttft(setting: Setting, p: _Pool, count: Column, busy: Column, sent: Column) -> Column:
    """Mean and percentiles of the time to the first token.

    The wait is that of a queue with `count` servers and a fixed service time: Sakasegawa's
    approximation halved, its tail exponential.
    """
    servers = np.maximum(count, 1.0)
    wait = busy ** np.sqrt(2 * (servers + 1)) / (servers * (1 - busy)) * p.service_s / 2
    fixed = p.service_s + sent + setting.constants.request_s
    tail = wait / np.maximum(busy, 1e-9)
    rows = [fixed + wait]
    for name in PERCENTILES[1:]:
        beyond = 1 - float(name[1:]) / 100
        rows.append(fixed + tail * np.maximum(np.log(np.maximum(busy, 1e-12) / beyond), 0.0))
    return np.stack(rows)
