"""The serving search: all deployments of a demand, those that keep the limits, the best of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autoparallel.inference.aggregated import aggregated
from autoparallel.inference.disaggregation import PREFILL_BATCH, decode_tpot_s, disaggregated
from autoparallel.inference.engine_memory import kv_capacity_sequences
from autoparallel.inference.options import Column, Demand, Limits, Options, joined
from autoparallel.inference.setting import Setting
from autoparallel.inference.space import Replicas, ServingSpace, replicas

OBJECTIVES = ("throughput", "latency", "cost")
ALIKE = 0.03
"""Assumed share within which two deployments of one kind cannot be told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One serving search with nothing left open.

    Attributes:
        settings: A setting per backend and precision, on the cluster that decodes.
        prefill_settings: The same on another cluster for prefill; empty without one.
        gpus, prefill_gpus: GPUs of the two; prefill shares the first when `prefill_gpus` is 0.
        modes: `aggregated`, `disaggregated` or both.
    """

    settings: tuple[Setting, ...]
    prefill_settings: tuple[Setting, ...] = ()
    space: ServingSpace
    demand: Demand
    limits: Limits
    objective: str
    kv_dtypes: tuple[str, ...]
    gpus: int
    prefill_gpus: int = 0
    modes: tuple[str, ...] = ("aggregated", "disaggregated")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What a search kept.

    Attributes:
        options: Every deployment that was evaluated.
        good: Rows that fit and keep every limit, best first.
        pruned: Rule -> candidates it left out before evaluation.
        evaluated: Candidates for which memory and latencies were computed.
    """

    question: Question
    options: Options
    good: NDArray[np.intp]
    considered: int
    evaluated: int
    pruned: dict[str, int]


def searched(question: Question) -> Found:
    """All deployments of a question, the good ones in order."""
    blocks: list[Options] = []
    pruned: Counter[str] = Counter()
    considered = 0
    every = question.settings + question.prefill_settings
    for index in range(len(question.settings)):
        found = _replicas(question, every[index], question.gpus, _aggregated_space(question))
        considered += found.considered
        pruned.update(found.pruned)
        if "aggregated" in question.modes and found.size:
            blocks.append(aggregated(every, index, found, question.demand))
        if "disaggregated" in question.modes:
            pairs = _pairs(question, every, index)
            if pairs is not None:
                considered += pairs.size
                blocks.append(pairs)
    options = joined(blocks) if blocks else _nothing(question, every)
    rows = np.flatnonzero(options.meets(question.limits))
    return Found(
        question=question,
        options=options,
        good=rows[order(options.take(rows), question)],
        considered=considered,
        evaluated=considered - pruned.total(),
        pruned=dict(pruned),
    )


def _aggregated_space(question: Question) -> ServingSpace:
    """Under a rate a batch limit only has to be large enough: every third one is looked at."""
    space = question.space
    if question.demand.request_rate is None:
        return space
    batches = space.max_batch_size
    return replace(space, max_batch_size=tuple(sorted({*batches[::3], batches[-1]})))


def _replicas(question: Question, here: Setting, gpus: int, space: ServingSpace) -> Replicas:
    demand = question.demand
    return replicas(
        space,
        here.model,
        here.cluster,
        here.backend,
        here.precision,
        gpus=gpus,
        kv_dtypes=question.kv_dtypes,
        input_tokens=demand.new_tokens,
        load=float(demand.concurrency),
    )


def _pairs(question: Question, every: tuple[Setting, ...], index: int) -> Options | None:
    """Deployments with workers of their own for prefill, one KV dtype at a time."""
    own = bool(question.prefill_settings)
    partner = index + len(question.settings) if own else index
    prefill_space = replace(question.space, max_batch_size=(PREFILL_BATCH,))
    one_budget = replace(question.space, max_num_tokens=question.space.max_num_tokens[:1])
    found = []
    for dtype in question.kv_dtypes:
        alone = replace(
            question, kv_dtypes=(dtype,), demand=replace(question.demand, concurrency=0)
        )
        decode = _replicas(alone, every[index], question.gpus, one_budget)
        gpus = question.prefill_gpus if own else question.gpus
        prefill = _replicas(alone, every[partner], gpus, prefill_space)
        counts = (question.gpus, question.prefill_gpus)
        pairs = disaggregated(
            every, index, partner, (decode, prefill), question.demand, question.limits, counts
        )
        if pairs is not None:
            found.append(pairs)
    return joined(found) if found else None


def _nothing(question: Question, every: tuple[Setting, ...]) -> Options:
    """Options without rows."""
    widest = replace(question.space, max_batch_size=(1,), max_num_tokens=(8192,))
    any_gpus = _replicas(question, every[0], 1_000_000, widest)
    return aggregated(every, 0, any_gpus, question.demand).take(np.zeros(0, dtype=np.intp))


def order(options: Options, question: Question) -> NDArray[np.intp]:
    """Rows from best to worst: by the objective, then by time to the last token."""
    e2e = options.e2e_s[question.limits.row]
    first = goal(options, question)
    return np.lexsort((e2e, np.round(np.log(np.maximum(first, 1e-30)) / 1e-6)))


def goal(options: Options, question: Question) -> Column:
    """What the objective makes small, positive.

    Throughput: seconds per output token of all GPUs given. Latency: time to the last token. Cost:
    dollars per token. Under a rate all deployments that keep up have one throughput, so that
    latency decides.
    """
    fixed = question.demand.request_rate is not None
    if question.objective == "latency" or (fixed and question.objective == "throughput"):
        return np.asarray(options.e2e_s[question.limits.row])
    tokens = np.maximum(options.tokens_per_s, 1e-30)
    if question.objective == "cost":
        return np.asarray(options.usd_per_s / tokens)
    return np.asarray(1.0 / tokens)


def layout_keys(options: Options) -> NDArray[np.float64]:
    """What two deployments share that differ in nothing but their limits and numbers."""
    w, p = options.worker, options.prefill
    columns = [options.setting, options.prefill_count > 0, w.kv_element_bytes]
    for instance in (w, p):
        columns += [
            instance.tensor_model_parallel_size,
            instance.pipeline_model_parallel_size,
            instance.attention_data_parallel_size,
            instance.expert_model_parallel_size,
        ]
    return np.stack([np.broadcast_to(np.asarray(c, dtype=float), (options.size,)) for c in columns])


def short_list(found: Found, top: int) -> NDArray[np.intp]:
    """The best deployment of every layout, at most `top` of them, best first."""
    rows = found.good
    if not rows.size:
        return rows
    keys = layout_keys(found.options.take(rows))
    _, first = np.unique(keys, axis=1, return_index=True)
    return rows[np.sort(first)[:top]]


def front(found: Found) -> NDArray[np.intp]:
    """Good rows that no other beats in tokens/s/GPU and tokens/s/user both, fastest user first."""
    options = found.options.take(found.good)
    per_gpu = options.tokens_per_s / np.maximum(options.gpus, 1.0)
    per_user = 1.0 / np.maximum(options.tpot_s[0], 1e-9)
    by = np.lexsort((-per_gpu, -per_user))
    best = np.maximum.accumulate(np.concatenate(([-np.inf], per_gpu[by][:-1])))
    return found.good[by[per_gpu[by] > best * (1 + 1e-9)]]


def binding(found: Found, row: int) -> str:
    """What stops a deployment from taking more: a limit, the KV cache, the load or the space."""
    options, question = found.options, found.question
    if question.demand.request_rate is not None or question.demand.concurrency:
        return "load"
    if options.prefill_count[row]:
        return _split_binding(found, options.take(np.array([row])))
    keys = layout_keys(options)
    same = np.flatnonzero((keys == keys[:, row : row + 1]).all(axis=0))
    block = options.take(same)
    bigger = np.flatnonzero(block.tokens_per_s > options.tokens_per_s[row] * (1 + 1e-6))
    if not bigger.size:
        return "max_batch_size" if _at_largest(question, options, row) else "compute"
    following = bigger[np.argmin(block.tokens_per_s[bigger])]
    nearest = block.take(np.array([following]))
    if not nearest.fits[0]:
        return "kv_cache"
    broken = [name for name, rows in nearest.broken(question.limits).items() if rows[0]]
    return broken[0].replace("_s", "_ms") if broken else "compute"


def _split_binding(found: Found, one: Options) -> str:
    """The same for a disaggregated deployment of one row: what a larger decode batch would meet."""
    question, here = found.question, one.settings[int(one.setting[0])]
    demand, worker = question.demand, one.worker
    stages = worker.pipeline_model_parallel_size
    batch = float(np.asarray(worker.max_batch_size * stages)[0])
    larger = [size for size in question.space.max_batch_size if size > batch]
    if not larger:
        return "max_batch_size"
    grown = replace(worker, max_batch_size=larger[0] / stages)
    room = kv_capacity_sequences(here, grown, float(demand.input_tokens + demand.output_tokens))
    if np.asarray(room < larger[0] * worker.attention_data_parallel_size)[0]:
        return "kv_cache"
    limit = question.limits.tpot_s
    if limit is not None and np.asarray(decode_tpot_s(here, grown, demand))[0] > limit:
        return "tpot_ms"
    return "compute" if question.limits.ttft_s is None else "ttft_ms"


def _at_largest(question: Question, options: Options, row: int) -> bool:
    own = options.take(np.array([row])).worker
    batch = np.asarray(own.max_batch_size * own.pipeline_model_parallel_size)[0]
    return float(batch) >= max(question.space.max_batch_size)


def miss(found: Found) -> int | None:
    """The fitting row nearest to keeping every limit; None when nothing fits."""
    options, limits = found.options, found.question.limits
    rows = np.flatnonzero(options.fits)
    if not rows.size:
        return None
    over = np.maximum(options.utilization[rows], 1e-9)
    for name, value in limits.named().items():
        over = np.maximum(over, getattr(options, name)[limits.row][rows] / value)
    return int(rows[np.argmin(np.where(np.isfinite(over), over, 1e30))])


def ties(goals: Sequence[float]) -> list[bool]:
    """Which values cannot be told from the first."""
    return [value <= goals[0] * (1 + ALIKE) for value in goals]


def explained(pruned: Mapping[str, int]) -> dict[str, int]:
    """Rules in order of how many candidates they left out."""
    return dict(sorted(pruned.items(), key=lambda item: -item[1]))
