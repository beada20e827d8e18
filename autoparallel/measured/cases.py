"""Measured rows as cases: what each row says, and its framework's default where it is silent.

Rows are stacked into one case with a column for every number, so a file of thousands of runs of
hundreds of models is a single evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoparallel import catalog
from autoparallel.constants import Constants
from autoparallel.cost.case import Case
from autoparallel.cost.unique import gathered
from autoparallel.errors import CatalogError
from autoparallel.framework import Framework, Traits, framework_of
from autoparallel.hardware import Cluster, Machine, machine
from autoparallel.layout import (
    MEGATRON_OVERLAPS,
    OVERLAPS,
    PRECISIONS,
    SCHEDULES,
    Layout,
    knobs,
)
from autoparallel.measured import words
from autoparallel.measured.rows import MeasuredRun
from autoparallel.measured.twins import catalog_twin, with_details
from autoparallel.model import Model
from autoparallel.operators import operators_for

Record = TypeVar("Record")

DEFAULT_VOCABULARY = 50_257
UNCOMPILED = 0.65
"""Fused share of the kernels of a job that says it was not compiled: attention and the optimizer
are, the rest costs 1.7 times the traffic (torchtitan's pairs of runs that differ in nothing else
take 16 % longer)."""
HEALTHY_INTRA_ALLREDUCE_GBPS = 440.0
"""All-reduce bus bandwidth that a healthy 8-GPU H100 node exceeds. nanotron's jobs read either 445
to 461 or 412 to 431 GB/s, nothing between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a row was understood."""

    run: MeasuredRun
    framework: Framework
    model: Model
    layout: Layout
    cluster: Cluster
    approximated: bool
    vocabulary_stated: bool

    @property
    def software(self) -> str:
        """The calibrated family of the framework release that ran."""
        return software(self.run, self.framework)

    @property
    def family(self) -> str:
        """Which calibrated constants it is scored with: framework family and GPU generation."""
        return f"{self.nodes or self.software}-{self.cluster.gpu.generation}"

    @property
    def nodes(self) -> str:
        """The family of its framework on nodes like these; empty where nodes are healthy."""
        return self.framework.slow_nodes if links_share(self.run, self.cluster) < 1 else ""


def links_share(run: MeasuredRun, cluster: Cluster) -> float:
    """Speed of a node's own links as measured in the job, over a healthy node's; 1 if unknown."""
    intra = run.measured_allreduce_busbw_intra_gbps
    if not intra or cluster.gpu.generation != "hopper":
        return 1.0
    return min(1.0, intra / HEALTHY_INTRA_ALLREDUCE_GBPS)


def software(run: MeasuredRun, framework: Framework) -> str:
    """The calibrated family of the framework release behind a row."""
    early = "before-pp-fix" if "after_pp_fix=False" in run.notes else ""
    return framework.family(run.software_release or early)


def stack(records: Sequence[Record]) -> Record:
    """One record whose numeric fields are the columns of `records`."""
    first = records[0]
    columns = {
        f.name: np.array([getattr(r, f.name) for r in records], dtype=np.float64)
        for f in fields(first)  # type: ignore[arg-type]
    }
    return type(first)(**columns)


def read(run: MeasuredRun, config_dir: Path | None = None) -> Reading:
    """Understand one row.

    Args:
        run: The row.
        config_dir: A folder of models, GPUs, clusters and frameworks in front of the shipped ones.

    Raises:
        CatalogError: the GPU is not in the catalog.
    """
    framework, known = framework_of(run.framework, config_dir)
    model = row_model(run, config_dir)
    return Reading(
        run=run,
        framework=framework,
        model=model,
        layout=row_layout(run, framework, model),
        cluster=row_cluster(run, config_dir),
        approximated=not known,
        vocabulary_stated=run.vocab_size is not None,
    )


def case(readings: Sequence[Reading], constants: Constants) -> Case:
    """All rows as one case."""
    runs = [r.run for r in readings]
    gpus = list(dict.fromkeys((r.cluster.gpu.name, r.cluster.gpu.generation) for r in readings))
    names = [name for name, _ in gpus]
    folder = catalog.data_dir() / "profiles" / "operators"
    return Case(
        model=stack([r.model.shape(r.run.seq_length) for r in readings]),
        machine=stack([_row_machine(r) for r in readings]),
        knobs=knobs(
            [r.layout for r in readings],
            [x.num_gpus for x in runs],
            [x.global_batch_size for x in runs],
        ),
        traits=stack([row_traits(r.run, r.framework, r.nodes) for r in readings]),
        constants=constants,
        operators=tuple(operators_for(name, generation, folder) for name, generation in gpus),
        gpu_index=np.array([names.index(r.cluster.gpu.name) for r in readings], dtype=np.float64),
    )


def select(all_rows: Case, index: NDArray[Any]) -> Case:
    """The rows of a case at `index` (constants are kept)."""
    return Case(
        model=gathered(all_rows.model, index),
        machine=gathered(all_rows.machine, index),
        knobs=all_rows.knobs.take(index),
        traits=gathered(all_rows.traits, index),
        constants=all_rows.constants,
        memory=all_rows.memory,
        operators=all_rows.operators,
        gpu_index=np.asarray(all_rows.gpu_index)[index],
        nearby=all_rows.nearby,
    )


# --- the model -----------------------------------------------------------------------------------


def row_model(run: MeasuredRun, config_dir: Path | None = None) -> Model:
    """The row's dimensions; what it cannot say comes from the catalog model of that name."""
    moe = (run.num_moe_experts or 0) > 1
    heads = run.num_attention_heads
    ffn = run.ffn_hidden_size or 4 * run.hidden_size
    known = catalog_twin(run, config_dir)
    stated = Model(
        name=run.model or "unnamed",
        num_layers=run.num_layers,
        hidden_size=run.hidden_size,
        num_attention_heads=heads,
        num_query_groups=run.num_query_groups or heads,
        ffn_hidden_size=ffn,
        vocab_size=run.vocab_size or (known.vocab_size if known else DEFAULT_VOCABULARY),
        kv_channels=_kv_channels(run),
        gated_linear_unit=bool(run.swiglu),
        normalization="RMSNorm" if run.swiglu else "LayerNorm",
        add_bias_linear=not run.swiglu,
        untie_embeddings_and_output_weights=not _tied(run),
        num_moe_experts=(run.num_moe_experts or 0) if moe else 0,
        moe_router_topk=(run.moe_router_topk or 1) if moe else 0,
        moe_ffn_hidden_size=ffn if moe else 0,
    )
    return with_details(stated, known) if known else stated


def _kv_channels(run: MeasuredRun) -> int:
    noted = re.search(r"kv_channels (\d{1,4})", run.notes)
    return int(noted[1]) if noted else run.hidden_size // run.num_attention_heads


def _tied(run: MeasuredRun) -> bool:
    return bool(run.tied_embeddings) if run.tied_embeddings is not None else not run.swiglu


# --- the layout ----------------------------------------------------------------------------------


def row_layout(run: MeasuredRun, framework: Framework, model: Model) -> Layout:
    """The row's layout, framework defaults where it is silent."""
    named = words.chunks_of_functional_test(
        run.model, run.notes, run.num_layers // max(run.pipeline_model_parallel_size, 1)
    )
    vpp = max(run.virtual_pipeline_model_parallel_size or 1, named)
    tp = run.tensor_model_parallel_size
    sp = framework.defaults.get("sequence_parallel", False)
    if run.sequence_parallel is not None:
        sp = bool(run.sequence_parallel)
    granularity, method, layers, modules = _recompute(run)
    zero = run.zero_stage if run.zero_stage is not None else framework.defaults["zero_stage"]
    etp = re.search(r"ETP (\d+)", run.notes)
    return Layout(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=run.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=vpp,
        context_parallel_size=run.context_parallel_size or 1,
        expert_model_parallel_size=run.expert_model_parallel_size or 1,
        expert_tensor_parallel_size=int(etp[1]) if etp else 1,
        micro_batch_size=run.micro_batch_size,
        sequence_parallel=bool(sp) and tp > 1,
        zero_stage=zero,
        shard_group_size=run.zero_group_size or 0,
        recompute_granularity=granularity,
        recompute_method=method,
        recompute_num_layers=layers,
        recompute_modules=modules,
        schedule=_schedule(run, vpp),
        stage_layers=stage_layers(model, run.pipeline_model_parallel_size, framework.stage_split),
        precision=_precision(run.precision),
        grad_reduce_dtype=_grad_dtype(run, framework),
        overlap=_overlaps(run, framework),
        framework=framework.name,
    )


def _overlaps(run: MeasuredRun, framework: Framework) -> tuple[str, ...]:
    """Megatron's own, and what the row says of tensor parallelism where that is a choice."""
    choice = run.async_tensor_parallel and "tp" not in framework.own_overlaps
    return tuple(o for o in OVERLAPS if o in MEGATRON_OVERLAPS or (o == "tp" and choice))


def stage_layers(model: Model, stages: int, split: str) -> tuple[int, ...]:
    """Layers of every stage where the framework splits `by_cost`; empty for its even split.

    Blocks weigh their parameters (embedding none, head the vocabulary matrix); a stage closes with
    the block that reaches its share. Source: huggingface/nanotron src/nanotron/models/base.py,
    where one that ends exactly there does not; measured peaks of such stages are those of one layer
    fewer.
    """
    if split != "by_cost" or stages == 1:
        return ()
    attention = 4 * model.num_attention_heads * model.kv_channels * model.hidden_size
    block = attention + 3 * model.ffn_hidden_size * model.hidden_size
    total = block * model.num_layers + model.vocab_size * model.hidden_size
    layers, stage = [0] * stages, 0
    for done in range(1, model.num_layers + 1):
        layers[stage] += 1
        stage += done * block >= total * (stage + 1) / stages and stage + 1 < stages
    return tuple(layers)


def _schedule(run: MeasuredRun, vpp: int) -> str:
    if not run.schedule:
        return "interleaved" if vpp > 1 else "1f1b"
    return words.meant(run.schedule, SCHEDULES, words.SCHEDULES)


def _recompute(run: MeasuredRun) -> tuple[str, str, int, tuple[str, ...]]:
    ways = ("none", "selective", "full", "per-op")
    way = words.meant(run.recompute or "none", ways, words.RECOMPUTATIONS)
    per_stage = run.num_layers // max(run.pipeline_model_parallel_size, 1)
    if run.recompute_num_layers is not None and way in ("full", "per-op"):
        method = "uniform" if "uniform" in run.model else "block"
        return "full", method, min(run.recompute_num_layers, per_stage), ()
    if way == "full":
        return "full", "uniform", 1, ()
    if way == "none":
        return "none", "uniform", 0, ()
    core = way in ("selective", "per-op")
    modules = ("core_attn",) if core else words.recompute_modules(run.recompute)
    return "selective", "uniform", 0, modules


def _precision(printed: str) -> str:
    return words.meant(printed, PRECISIONS, words.PRECISIONS)


def _grad_dtype(run: MeasuredRun, framework: Framework) -> str:
    if run.grad_reduce_dtype in ("fp32", "bf16"):
        return run.grad_reduce_dtype
    if _precision(run.precision) == "fp16":
        return "bf16"
    return str(framework.defaults.get("grad_reduce_dtype", "fp32"))


# --- the machine ---------------------------------------------------------------------------------


@cache
def _clusters_by_gpu(config_dir: Path | None) -> dict[str, str]:
    """The shipped cluster a bare GPU id stands for: the first vendor system built of it."""
    found: dict[str, str] = {}
    for name in catalog.names("cluster", config_dir):
        gpu = catalog.cluster(name, config_dir).gpu.name
        if gpu not in found or name.startswith("dgx") or name == gpu:
            found[gpu] = name
    return found


def _is_gpu(name: str, config_dir: Path | None) -> bool:
    try:
        return bool(catalog.gpu(name, config_dir))
    except CatalogError:
        return False


@cache
def cluster_of_gpu(gpu: str, config_dir: Path | None) -> Cluster:
    """The shipped cluster that a bare GPU id stands for.

    Raises:
        CatalogError: no such GPU, or none of its generation in a cluster.
    """
    if name := _clusters_by_gpu(config_dir).get(gpu):
        return catalog.cluster(name, config_dir)
    names = catalog.names("gpu", config_dir)
    record = catalog.gpu(
        words.gpu_meant(gpu, lambda name: _is_gpu(name, config_dir), names), config_dir
    )
    if name := _clusters_by_gpu(config_dir).get(record.name):
        return catalog.cluster(name, config_dir)
    for other in _clusters_by_gpu(config_dir).values():
        host = catalog.cluster(other, config_dir)
        if host.gpu.generation == record.generation:
            return replace(host, name=f"{host.name} with {gpu}", gpu=record)
    raise CatalogError(f"gpu: {gpu!r} belongs to no cluster of the catalog")


def row_cluster(run: MeasuredRun, config_dir: Path | None = None) -> Cluster:
    """The cluster of the row's GPU with the fabric the row states."""
    cluster = cluster_of_gpu(run.gpu, config_dir)
    node = cluster.gpus_per_node
    if match := re.search(r"(?:(\d+) x )?(\d+) Gb/s per node", run.interconnect):
        per_node = int(match[1] or 1) * int(match[2]) * 1e9 / 8
        link = replace(cluster.inter_link, bandwidth_bytes_per_s=per_node / node)
        cluster = replace(cluster, inter_link=link)
    return cluster


def _row_machine(reading: Reading) -> Machine:
    run = reading.run
    base = machine(reading.cluster, reading.layout.precision)
    inter = run.measured_allreduce_busbw_inter_gbps
    share = links_share(run, reading.cluster)
    base = replace(base, intra_bytes_per_s=base.intra_bytes_per_s * share)
    if inter and run.num_gpus > reading.cluster.nvlink_domain_gpus:
        per_gpu = inter * 1e9 / reading.cluster.gpus_per_node
        base = replace(base, inter_bytes_per_s=per_gpu, inter_is_measured=1.0)
    return base


def row_traits(run: MeasuredRun, framework: Framework, nodes: str = "") -> Traits:
    """The framework's traits, on `nodes` of a family, with what the row says of its kernels."""
    traits = framework.traits_of(software(run, framework), nodes)
    changes: dict[str, float] = {
        "flash_attention": 0.0 if words.bare(run.attention) in words.UNFUSED else 1.0,
    }
    scores = words.keeps_scores(run.model, run.notes, run.kernels)
    if scores and (run.context_parallel_size or 1) == 1:
        changes["stores_scores"] = 1.0
    if framework.constants == "fsdp" and run.compiled and words.compiles_loss(run.source):
        changes |= {"fp32_logits_copies": 0.0, "half_logits_copies": 2.0}
    if words.meant(run.recompute, ("per-op",), words.RECOMPUTATIONS) == "per-op":
        changes["per_op_recompute"] = 1.0
    if run.compiled == 0 and framework.constants == "fsdp":
        changes["fused_kernels"] = UNCOMPILED
    if run.kernels in ("torch", "flash_attention2", "flash_attentionv1.0.8", "local"):
        changes["fused_kernels"] = 0.0
    return replace(traits, **changes)
