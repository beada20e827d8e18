"""The axes of the product: what each offers for a case, and which features it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoparallel.framework import Framework
from autoparallel.hardware import Cluster
from autoparallel.layout import (
    CP_COMM_TYPES,
    GRANULARITIES,
    GRAPH_SCOPES,
    MEGATRON_OVERLAPS,
    METHODS,
    PRECISIONS,
    SCHEDULES,
    Layout,
    modules_mask,
    overlap_mask,
)
from autoparallel.model import Model, Shape
from autoparallel.space.spec import STAGE_WORDS, SpaceSpec

MIN_CONTEXT_TOKENS = 1024
"""Fewest tokens a context rank keeps under `auto` (assumed: with fewer it only adds latency)."""

Row = tuple[float, ...]
Mesh = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What the options of an axis depend on besides earlier axes."""

    spec: SpaceSpec
    model: Model
    shape: Shape
    cluster: Cluster
    framework: Framework
    num_gpus: int
    global_batch_size: int
    precision: str

    @cached_property
    def flash(self) -> bool:
        """Whether attention scores are never stored, so that recomputing them saves nothing."""
        return bool(np.all(np.asarray(self.framework.traits.flash_attention) > 0))

    @cached_property
    def stage_index(self) -> dict[tuple[int, ...], int]:
        """Every stage layout that can occur, numbered; 0 is the even split."""
        table: dict[tuple[int, ...], int] = {(): 0}
        for pp in _pipelines(self):
            for vpp in {1, *_chunk_counts(self, pp)} if pp > 1 else ():
                for word in self.spec.stage_layers:
                    if stages := _stages(word, self.model.num_layers, pp * vpp):
                        table.setdefault(stages, len(table))
        return table


_parsed = cache(Layout.parse)


def _powers_of_two(most: float) -> list[int]:
    return [1 << i for i in range(int(max(most, 1)).bit_length())]


def _divisors(n: int, most: int) -> list[int]:
    return [d for d in range(1, min(n, most) + 1) if n % d == 0]


def _spread(values: tuple[Any, ...], auto: Callable[[], list[Any]]) -> list[Any]:
    """The values with `auto` replaced in place, each once."""
    parts = [auto() if value == "auto" else [value] for value in values]
    return list(dict.fromkeys(value for part in parts for value in part))


def _pipelines(job: Job) -> list[int]:
    return _spread(
        job.spec.pipeline_model_parallel_size,
        lambda: _divisors(job.num_gpus, job.model.num_layers + 2),
    )


def meshes(job: Job) -> Mesh:
    """Every combination of tp, pp, cp with its communication, and ep with etp."""
    spec, experts = job.spec, job.model.num_moe_experts
    domain = min(job.cluster.nvlink_domain_gpus, 16)
    tps = _spread(spec.tensor_model_parallel_size, lambda: _powers_of_two(domain))
    longest = float(np.max(job.shape.s)) / MIN_CONTEXT_TOKENS
    cps = _spread(spec.context_parallel_size, lambda: _powers_of_two(min(longest, 64)))
    contexts = [
        (cp, CP_COMM_TYPES.index(comm))
        for cp in cps
        for comm in (spec.cp_comm_type if cp > 1 else ("p2p",))
    ]
    eps = [1]
    if experts:
        most = min(experts, job.num_gpus)
        eps = _spread(spec.expert_model_parallel_size, lambda: _divisors(experts, most))
    rows = [
        (tp, pp, cp, comm, ep, etp)
        for tp, pp, (cp, comm), ep in product(tps, _pipelines(job), contexts, eps)
        for etp in _expert_tensors(job, tp)
    ]
    names = ("tp", "pp", "cp", "cp_comm", "ep", "etp")
    return dict(zip(names, np.array(rows, dtype=np.float64).T, strict=True))


def _expert_tensors(job: Job, tp: int) -> list[int]:
    if not job.model.num_moe_experts:
        return [1]
    return _spread(job.spec.expert_tensor_parallel_size, lambda: sorted({1, tp}))


@cache
def _stages(word: str, layers: int, stages: int) -> tuple[int, ...]:
    """The stage layout that `word` means for this many virtual stages; () where it means none."""
    if word == "even" or stages < 2:
        return ()
    if word not in STAGE_WORDS:
        given = _parsed(f"stages={word}").stage_layers
        return given if len(given) == stages else ()
    first, last = int(word != "loss"), int(word != "embedding")
    size, rest = divmod(layers + first + last, stages)
    if word == "balanced":
        divides = any((layers + slots) % stages == 0 for slots in (0, 1, 2))
        if divides or size < 2:
            return ()
    elif rest or size < 2 or layers % stages == 0:
        return ()
    longer = range(stages - 1 - rest, stages - 1)
    sizes = [size + (i in longer) for i in range(stages)]
    sizes[0] -= first
    sizes[-1] -= last
    return tuple(sizes)


def _chunk_counts(job: Job, pp: int) -> list[int]:
    """Chunks a rank, 1 left out: those that split the layers in one of the ways the spec offers."""
    layers, words = job.model.num_layers, job.spec.stage_layers
    slots = {"even": (0,), "embedding_and_loss": (2,), "embedding": (1,), "loss": (1,)}

    def auto() -> list[int]:
        ways = {slot for word in words for slot in slots.get(word, ())}
        found = [
            v
            for v in range(2, (layers + 2) // pp + 1)
            if any((layers + way) % (pp * v) == 0 for way in ways)
        ]
        return found or ([2] if "balanced" in words and 2 * pp <= layers else [])

    return [v for v in _spread(job.spec.virtual_pipeline_model_parallel_size, auto) if v > 1]


# Options of the axes after the mesh. Each takes the job and the features it reads, and returns rows
# of knob values together with the features that later axes read.

Options = list[tuple[Row, dict[str, float]]]


def _micro_batches(job: Job, dp: float) -> Options:
    most = min(job.global_batch_size, 64)
    sizes = _spread(job.spec.micro_batch_size, lambda: _powers_of_two(most))
    return [((float(b),), {"m": job.global_batch_size / (b * dp) if dp else 0.0}) for b in sizes]


def _plans(job: Job, pp: float, m: float) -> Options:
    """Schedule, chunks, group size and stage layout."""
    options: Options = []
    for schedule, vpp in _schedules(job, int(pp)):
        for group in _groups(job, int(pp), m) if schedule == "interleaved" else [0]:
            for stages, fullest in _splits(job, int(pp) * vpp):
                row = (float(SCHEDULES.index(schedule)), float(vpp), float(group), float(stages))
                options.append((row, {"vpp": float(vpp > 1), "fullest": fullest}))
    return options


def _schedules(job: Job, pp: int) -> list[tuple[str, int]]:
    if pp == 1:
        return [("1f1b", 1)]
    chunks = _chunk_counts(job, pp)
    single = 1 in job.spec.virtual_pipeline_model_parallel_size or (
        "auto" in job.spec.virtual_pipeline_model_parallel_size
    )
    return [
        (schedule, vpp)
        for schedule in job.spec.schedule
        for vpp in ([1] if single else []) + chunks
        if schedule == "bfs" or (vpp > 1) == (schedule == "interleaved")
    ]


def _groups(job: Job, pp: int, m: float) -> list[int]:
    def auto() -> list[int]:
        doubled = [pp << i for i in range(1, 20) if pp << i < m]
        return [0, *doubled, *([int(m)] if m > pp and m == int(m) else [])]

    found = _spread(job.spec.microbatch_group_size_per_vp_stage, auto)
    return list(dict.fromkeys(0 if group == pp else group for group in found))


def _splits(job: Job, stages: int) -> list[tuple[int, float]]:
    """Stage layouts by number, with the layers of the fullest stage."""
    layers = job.model.num_layers
    found = [(0, layers / stages)] if stages == 1 or "even" in job.spec.stage_layers else []
    for word in job.spec.stage_layers:
        if layout := _stages(word, layers, stages):
            found.append((job.stage_index[layout], float(max(layout))))
    return list(dict.fromkeys(found)) or [(0, layers / stages)]


def _sequences(job: Job, many_tp: float) -> Options:
    return [((float(sp),), {}) for sp in (job.spec.sequence_parallel if many_tp else (False,))]


def _shardings(job: Job, replicas: float, expert_replicas: float) -> Options:
    """ZeRO stage and shard group; one usual stage where there is nothing to share out."""
    own = [int(z) for z in job.framework.legal.get("zero_stage", (1,))]
    stages = _spread(job.spec.zero_stage, lambda: [z for z in own if z] or own)
    if replicas <= 1 and expert_replicas <= 1:
        stages = [1 if 1 in stages else stages[0]]
    options: Options = []
    for zero in stages:
        for shard in _shards(job, replicas) if zero and replicas > 1 else [0]:
            options.append(((float(zero), float(shard)), {"zero": float(zero > 0)}))
    return options


def _shards(job: Job, replicas: float) -> list[int]:
    def auto() -> list[int]:
        domain = job.cluster.nvlink_domain_gpus
        return [0, *(n for n in (domain, 8 * domain) if 1 < n < replicas)]

    return _spread(job.spec.shard_group_size, auto)


def _recomputations(job: Job, fullest: float) -> Options:
    rows = [row for word in job.spec.recompute for row in _recompute_rows(job, word, fullest)]
    return [(row, {}) for row in dict.fromkeys(rows)]


def _recompute_rows(job: Job, word: str, fullest: float) -> list[Row]:
    """Granularity, method, layers, modules; only modules that this model has and that store."""
    full = float(GRANULARITIES.index("full"))
    if word == "full/block/auto":
        counts = dict.fromkeys(round(fullest * part) for part in (0.25, 0.5, 0.75))
        block = float(METHODS.index("block"))
        return [(full, block, float(n), 0.0) for n in counts if 1 <= n < fullest]
    layout = _parsed(f"recompute={word}")
    if layout.recompute_granularity == "selective":
        modules = [name for name in layout.recompute_modules if _stores(job, name)]
        return [(1.0, 0.0, 0.0, modules_mask(modules))] if modules else []
    method = float(METHODS.index(layout.recompute_method))
    granularity = float(GRANULARITIES.index(layout.recompute_granularity))
    return [(granularity, method, float(layout.recompute_num_layers), 0.0)]


def _stores(job: Job, module: str) -> bool:
    """Whether recomputing `module` frees memory in this model."""
    model = job.model
    return {
        "core_attn": not job.flash,
        "mlp": model.moe_layers < model.num_layers,
        "moe": model.num_moe_experts > 0,
        "moe_act": model.num_moe_experts > 0,
        "shared_experts": model.moe_shared_expert_intermediate_size > 0,
        "mla_up_proj": model.kv_lora_rank > 0,
    }.get(module, True)


def _precisions(job: Job) -> Options:
    names = _spread(job.spec.precision, lambda: [job.precision])
    grads = [4.0 if dtype == "fp32" else 2.0 for dtype in job.spec.grad_reduce_dtype]
    rows = product([float(PRECISIONS.index(name)) for name in names], grads)
    return [((precision, grad), {}) for precision, grad in rows]


def _overlaps(
    job: Job, replicas: float, many_tp: float, many_ep: float, vpp: float, zero: float
) -> Options:
    """Overlap switches; one without traffic stays as Megatron-LM has it."""
    traffic = {"grad": replicas > 1, "param": replicas > 1 and zero, "p2p": vpp}
    relevant = {name for name, on in (traffic | {"tp": many_tp, "moe": many_ep}).items() if on}
    usual = set(MEGATRON_OVERLAPS) - (set() if zero else {"param"})
    masks = []
    for word in job.spec.overlap:
        named = usual if word == "auto" else set(_parsed(f"overlap={word}").overlap)
        masks.append(overlap_mask(sorted((named & relevant) | (usual - relevant))))
    return [((mask,), {}) for mask in dict.fromkeys(masks)]


def _hosts(job: Job) -> Options:
    """Optimizer offload and CUDA graphs; only graphs of layers that the model has."""
    model = job.model
    dense, moe = model.moe_layers < model.num_layers, model.num_moe_experts > 0
    scopes = [
        float(GRAPH_SCOPES.index(scope))
        for scope in job.spec.cuda_graph_scope
        if {"mlp": dense, "moe": moe}.get(scope, True)
    ] or [0.0]
    fractions = [float(part) for part in job.spec.optimizer_offload_fraction]
    return [((part, scope), {}) for part, scope in product(fractions, scopes)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """One step of the product: the knobs it sets and the features its options depend on."""

    sets: tuple[str, ...]
    reads: tuple[str, ...]
    options: Callable[..., Options]


AXES = (
    _Axis(sets=("mbs",), reads=("dp",), options=_micro_batches),
    _Axis(sets=("schedule", "vpp", "group", "stages"), reads=("pp", "m"), options=_plans),
    _Axis(sets=("sp",), reads=("many_tp",), options=_sequences),
    _Axis(sets=("zero", "shard"), reads=("replicas", "expert_replicas"), options=_shardings),
    _Axis(
        sets=("granularity", "method", "recompute_layers", "modules"),
        reads=("fullest",),
        options=_recomputations,
    ),
    _Axis(sets=("precision", "grad_bytes"), reads=(), options=_precisions),
    _Axis(
        sets=("overlap",),
        reads=("replicas", "many_tp", "many_ep", "vpp", "zero"),
        options=_overlaps,
    ),
    _Axis(sets=("offload", "graph"), reads=(), options=_hosts),
)

_DECIDED: dict[str, int] = {
    "tensor_model_parallel_size": 0,
    "pipeline_model_parallel_size": 0,
    "context_parallel_size": 0,
    "cp_comm_type": 0,
    "expert_model_parallel_size": 0,
    "expert_tensor_parallel_size": 0,
    "data_parallel_size": 0,
    "micro_batch_size": 1,
    "schedule": 2,
    "virtual_pipeline_model_parallel_size": 2,
    "microbatch_group_size_per_vp_stage": 2,
    "stage_layers": 2,
    "sequence_parallel": 3,
    "zero_stage": 4,
    "shard_group_size": 4,
    "recompute_granularity": 5,
    "recompute_method": 5,
    "recompute_num_layers": 5,
    "recompute_modules": 5,
    "precision": 6,
    "grad_reduce_dtype": 6,
    "overlap": 7,
    "optimizer_offload_fraction": 8,
    "cuda_graph_scope": 8,
}


def decided(rule_fields: tuple[str, ...]) -> int:
    """The step (0 the mesh, then `AXES`) after which a rule on these fields is decidable."""
    return max((_DECIDED.get(name, 0) for name in rule_fields), default=0)
