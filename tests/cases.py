"""A small named cluster and two small models, and cases made of layouts in the grammar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoparallel import catalog
from autoparallel.constants import Constants
from autoparallel.cost.case import Case
from autoparallel.framework import Traits
from autoparallel.hardware import Cluster, Gpu, Link, Machine, machine
from autoparallel.layout import KNOB_FIELDS, PRECISIONS, Knobs, Layout, knobs
from autoparallel.model import Model
from autoparallel.operators import operators_for

TERA, GB = 1e12, 1e9

SMALL_GPU = Gpu(
    name="h100-sxm-80gb",
    generation="hopper",
    memory_bytes=80 * GB,
    memory_bandwidth_bytes_per_s=3.35 * TERA,
    peak_flops_per_s={"bf16": 989 * TERA, "fp16": 989 * TERA, "fp8": 1979 * TERA},
    streaming_multiprocessors=132,
    tdp_w=700.0,
    idle_w=100.0,
)
SMALL_CLUSTER = Cluster(
    name="small",
    gpu=SMALL_GPU,
    gpus_per_node=8,
    nvlink_domain_gpus=8,
    intra_link=Link(bandwidth_bytes_per_s=450 * GB, latency_s=2e-6),
    inter_link=Link(bandwidth_bytes_per_s=50 * GB, latency_s=5e-6),
    usd_per_gpu_hour=2.0,
    grid_kg_co2_per_kwh=0.4,
)
DENSE = Model(
    name="dense",
    num_layers=24,
    hidden_size=4096,
    num_attention_heads=32,
    num_query_groups=8,
    ffn_hidden_size=14336,
    vocab_size=32000,
    kv_channels=128,
)
MOE = replace(
    DENSE,
    name="moe",
    num_moe_experts=16,
    moe_router_topk=2,
    moe_ffn_hidden_size=2048,
    moe_shared_expert_intermediate_size=1024,
    moe_first_dense_layers=2,
)
NUM_GPUS, BATCH, SEQ = 64, 256, 2048

DENSE_LAYOUTS = (
    "tp1 pp1 mbs1 zero1",
    "tp1 pp1 mbs2 zero0",
    "tp1 pp1 mbs1 zero3",
    "tp1 pp1 mbs4 zero3 recompute=full",
    "tp2 pp1 mbs2 zero1 sp",
    "tp4 pp1 cp2 mbs1 zero1",
    "tp8 pp1 mbs4 zero1 sp recompute=core_attn",
    "tp8 pp8 mbs1 zero1 sp",
    "tp8 pp8 vpp3 mbs1 zero1 sp recompute=full/block/1",
    "tp4 pp4 vpp2 mbs2 zero1 recompute=mlp+layernorm",
    "tp2 pp4 cp4 mbs1 zero1 sp recompute=selective",
    "tp1 pp2 mbs1 zero1 prec=fp8",
    "tp8 pp2 mbs1 zero1 sp prec=fp8 grad=bf16",
    "tp1 pp1 cp8 mbs1 zero1",
    "tp2 pp3 mbs1 zero1 stages=8,9,7",
    "tp2 pp4 mbs1 zero1 stages=5,7,7,5",
    "tp16 pp2 mbs1 zero1 sp",
    "tp4 pp4 mbs1 zero1 sched=zb1p",
    "tp2 pp8 vpp3 mbs1 zero1 sched=bfs",
)
"""Layouts of `DENSE` that touch every term of the cost; `tp2 pp3` is the one for 48 GPUs."""
MOE_LAYOUTS = (
    "tp1 pp1 ep1 mbs1 zero1",
    "tp1 pp1 ep8 mbs1 zero1",
    "tp1 pp1 ep16 mbs2 zero1",
    "tp4 pp1 ep4 etp4 mbs1 zero1 sp",
    "tp2 pp4 ep8 mbs1 zero1 sp recompute=full",
    "tp1 pp2 cp2 ep8 mbs1 zero1 recompute=moe",
    "tp1 pp1 ep8 mbs1 zero3",
    "tp1 pp2 ep16 mbs1 zero1 prec=fp8",
)


def layout(text: str) -> Layout:
    """The layout `text`."""
    return Layout.parse(text)


def case(
    layouts: Sequence[str] = DENSE_LAYOUTS,
    *,
    model: Model = DENSE,
    seq: int = SEQ,
    gpus: int | Sequence[int] = NUM_GPUS,
    batch: int | Sequence[int] = BATCH,
    cluster: Cluster = SMALL_CLUSTER,
    constants: Constants | None = None,
    **traits: float,
) -> Case:
    """`layouts` as columns; every layout gets its own GPUs and batch where these are sequences."""
    parsed = [layout(x) for x in layouts]
    n = len(parsed)
    columns = knobs(
        parsed,
        [gpus] * n if isinstance(gpus, int) else gpus,
        [batch] * n if isinstance(batch, int) else batch,
    )
    peaks = [machine(cluster, x.precision).peak_flops_per_s for x in parsed]
    tables = catalog.data_dir() / "profiles" / "operators"
    return Case(
        model=model.shape(seq),
        machine=replace(machine(cluster, "bf16"), peak_flops_per_s=np.array(peaks, dtype=float)),
        knobs=columns,
        traits=Traits(**traits),
        constants=constants or Constants(),
        operators=(operators_for(cluster.gpu.name, cluster.gpu.generation, tables),),
    )


def dense() -> Case:
    """All of `DENSE_LAYOUTS`."""
    return case(DENSE_LAYOUTS, gpus=_gpus(DENSE_LAYOUTS))


def moe() -> Case:
    """All of `MOE_LAYOUTS`."""
    return case(MOE_LAYOUTS, model=MOE)


def _gpus(layouts: Sequence[str]) -> list[int]:
    return [48 if " pp3 " in x else NUM_GPUS for x in layouts]


def with_machine(of: Case, **factors: float) -> Case:
    """The case on a machine whose fields are multiplied by `factors`."""
    changed = {name: getattr(of.machine, name) * factor for name, factor in factors.items()}
    return replace(of, machine=replace(of.machine, **changed))


def with_knobs(of: Case, **changes: float | NDArray[np.float64]) -> Case:
    """The case with knob columns replaced."""
    columns = {f.name: getattr(of.knobs, f.name) for f in KNOB_FIELDS}
    shape = np.shape(of.knobs.tp)
    new = {k: np.broadcast_to(np.asarray(v, dtype=float), shape).copy() for k, v in changes.items()}
    return replace(of, knobs=Knobs(**{**columns, **new}, stage_table=of.knobs.stage_table))


def with_constants(of: Case, **changes: float) -> Case:
    """The case with other calibrated constants."""
    return replace(of, constants=replace(of.constants, **changes))


def taken(of: Case, index: Any) -> Case:
    """The rows of a case at `index` (the columns are its knobs and its linear layers' peak)."""
    return replace(
        of,
        knobs=of.knobs.take(index),
        machine=_mapped(of.machine, lambda v: v[index] if np.ndim(v) else v),
    )


def scalar(of: Case, row: int) -> Case:
    """Row `row` with plain floats in place of columns."""

    def at(v: Any) -> Any:
        return float(v[row]) if np.ndim(v) else v

    columns = {f.name: at(getattr(of.knobs, f.name)) for f in KNOB_FIELDS}
    return replace(
        of,
        knobs=Knobs(**columns, stage_table=of.knobs.stage_table),
        machine=_mapped(of.machine, at),
    )


def _mapped(record: Machine, change: Callable[[Any], Any]) -> Machine:
    return Machine(**{f.name: change(getattr(record, f.name)) for f in fields(record)})


def columns_of(record: Any, size: int) -> dict[str, NDArray[np.float64]]:
    """A record of numbers as columns [size]."""
    return {
        f.name: np.broadcast_to(np.asarray(getattr(record, f.name), dtype=float), (size,))
        for f in fields(record)
    }


def assert_never_less(a: Any, b: Any) -> None:
    """Every element of `a` is at least that of `b`, rounding aside."""
    first, second = np.broadcast_arrays(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    lower = np.flatnonzero(first < second * (1 - 1e-9))
    assert not lower.size, (
        f"rows {lower.tolist()}: {first.flat[lower[0]]} < {second.flat[lower[0]]}"
    )


def precision_code(name: str) -> float:
    """The column code of a precision."""
    return float(PRECISIONS.index(name))
