"""Layouts as columns: a float64 array a knob, words as numbers, sets as bit masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoparallel.layout.record import Layout
from autoparallel.layout.words import (
    CP_COMM_TYPES,
    GRANULARITIES,
    GRAPH_SCOPES,
    METHODS,
    OVERLAPS,
    PRECISIONS,
    RECOMPUTE_MODULES,
    SCHEDULES,
)
from autoparallel.units import Num


@dataclass(frozen=True, kw_only=True, eq=False)
class Knobs:
    """Layouts as columns: one float64 scalar or [N] array a knob, for `rules` and `cost`.

    Categories are codes into the tuples of `words` (`schedule` into `SCHEDULES`, ...); sets are bit
    masks in the order of `RECOMPUTE_MODULES` and `OVERLAPS`. `stages` is an index into
    `stage_table`, whose entry 0 is the even split.
    """

    num_gpus: Num
    global_batch_size: Num
    tp: Num
    pp: Num
    vpp: Num
    group: Num
    cp: Num
    cp_comm: Num
    ep: Num
    etp: Num
    mbs: Num
    sp: Num
    zero: Num
    shard: Num
    granularity: Num
    method: Num
    recompute_layers: Num
    modules: Num
    schedule: Num
    stages: Num
    precision: Num
    grad_bytes: Num
    offload: Num
    graph: Num
    overlap: Num
    stage_table: tuple[tuple[int, ...], ...] = ((),)

    @cached_property
    def dp(self) -> Num:
        """Data-parallel size (exact division is a rule, not an assumption)."""
        return self.num_gpus / (self.tp * self.pp * self.cp)

    @cached_property
    def micro_batches(self) -> Num:
        """Micro-batches a pipeline runs in one step."""
        return self.global_batch_size / (self.mbs * self.dp)

    def module(self, name: str) -> Num:
        """1 where `name` is recomputed selectively."""
        return recomputed(self.modules, self.granularity, name)

    def overlaps(self, name: str) -> Num:
        """1 where the overlap switch `name` is on."""
        return self.feature(f"overlap.{name}")

    def sharded(self, stage: int) -> Num:
        """1 where ZeRO `stage` or a higher one is on."""
        return self.feature(f"zero.{stage}")

    def feature(self, name: str) -> Num:
        """The entry `name` of `FEATURES`."""
        of = FEATURES[name]
        return of.value(getattr(self, of.knob))

    @property
    def size(self) -> int:
        """Number of candidates."""
        return max(np.size(getattr(self, f.name)) for f in KNOB_FIELDS)

    def take(self, index: NDArray[Any] | slice) -> Knobs:
        """The rows at `index`; scalars stay scalars."""
        picked = {f.name: _take(getattr(self, f.name), index) for f in KNOB_FIELDS}
        return Knobs(**picked, stage_table=self.stage_table)

    def layout(self, row: int, framework: str = "megatron-core") -> Layout:
        """Row `row` as a scalar layout."""
        v = {f.name: _item(getattr(self, f.name), row) for f in KNOB_FIELDS}
        mask, overlap = int(v["modules"]), int(v["overlap"])
        granularity = GRANULARITIES[int(v["granularity"])]
        full = granularity == "full"
        return Layout(
            tensor_model_parallel_size=int(v["tp"]),
            pipeline_model_parallel_size=int(v["pp"]),
            virtual_pipeline_model_parallel_size=int(v["vpp"]),
            microbatch_group_size_per_vp_stage=int(v["group"]),
            context_parallel_size=int(v["cp"]),
            cp_comm_type=CP_COMM_TYPES[int(v["cp_comm"])],
            expert_model_parallel_size=int(v["ep"]),
            expert_tensor_parallel_size=int(v["etp"]),
            micro_batch_size=int(v["mbs"]),
            sequence_parallel=bool(v["sp"]),
            zero_stage=int(v["zero"]),
            shard_group_size=int(v["shard"]),
            recompute_granularity=granularity,
            recompute_method=METHODS[int(v["method"])] if full else "uniform",
            recompute_num_layers=int(v["recompute_layers"]) if full else 0,
            recompute_modules=tuple(
                name
                for i, name in enumerate(RECOMPUTE_MODULES)
                if mask >> i & 1 and granularity == "selective"
            ),
            schedule=SCHEDULES[int(v["schedule"])],
            stage_layers=self.stage_table[int(v["stages"])],
            precision=PRECISIONS[int(v["precision"])],
            grad_reduce_dtype="fp32" if v["grad_bytes"] == 4 else "bf16",
            optimizer_offload_fraction=float(v["offload"]),
            cuda_graph_scope=GRAPH_SCOPES[int(v["graph"])],
            overlap=tuple(name for i, name in enumerate(OVERLAPS) if overlap >> i & 1),
            framework=framework,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """What a formula asks of a knob when its exact value does not matter to it."""

    knob: str
    value: Callable[[Num], Num]


KNOB_FIELDS = tuple(f for f in fields(Knobs) if f.name != "stage_table")


def _bit(mask: Num, position: int) -> Num:
    shifted = np.floor(mask / 2.0**position)
    return shifted - 2.0 * np.floor(shifted / 2.0)


def recomputed(modules: Num, granularity: Num, name: str) -> Num:
    """1 where the mask `modules` has `name` and recomputation is selective."""
    return _bit(modules, RECOMPUTE_MODULES.index(name)) * (granularity == 1)


def overlap_on(mask: Num, name: str) -> Num:
    """1 where the mask of overlap switches has `name`."""
    return _bit(mask, OVERLAPS.index(name))


def _reaches(value: Num, stage: int) -> Num:
    return np.asarray(np.asarray(value) >= stage, dtype=np.float64)[()]


FEATURES: dict[str, Feature] = {
    **{
        f"overlap.{name}": Feature(knob="overlap", value=partial(overlap_on, name=name))
        for name in OVERLAPS
    },
    **{
        f"zero.{stage}": Feature(knob="zero", value=partial(_reaches, stage=stage))
        for stage in (1, 2, 3)
    },
}
"""Features by name. Rows that differ in a knob but not in its features share a formula's result."""


def _take(value: Num, index: NDArray[Any] | slice) -> Num:
    return value[index] if isinstance(value, np.ndarray) and value.ndim else value


def _item(value: Num, row: int) -> float:
    return float(value[row]) if isinstance(value, np.ndarray) and value.ndim else float(value)


def modules_mask(modules: Sequence[str]) -> float:
    """Bit mask of a set of recompute modules."""
    return float(sum(1 << RECOMPUTE_MODULES.index(name) for name in modules))


def overlap_mask(names: Sequence[str]) -> float:
    """Bit mask of a set of overlap switches."""
    return float(sum(1 << OVERLAPS.index(name) for name in names))


def knobs(
    layouts: Sequence[Layout], num_gpus: Sequence[int], global_batch_size: Sequence[int]
) -> Knobs:
    """The columns of `layouts`, row by row with their number of GPUs and global batch size."""
    table = ((), *dict.fromkeys(x.stage_layers for x in layouts if x.stage_layers))
    stage_index = {stages: i for i, stages in enumerate(table)}

    def column(value: Callable[[Layout], float]) -> NDArray[np.float64]:
        return np.array([value(x) for x in layouts], dtype=np.float64)

    return Knobs(
        num_gpus=np.array(num_gpus, dtype=np.float64),
        global_batch_size=np.array(global_batch_size, dtype=np.float64),
        tp=column(lambda x: x.tensor_model_parallel_size),
        pp=column(lambda x: x.pipeline_model_parallel_size),
        vpp=column(lambda x: x.virtual_pipeline_model_parallel_size),
        group=column(lambda x: x.microbatch_group_size_per_vp_stage),
        cp=column(lambda x: x.context_parallel_size),
        cp_comm=column(lambda x: CP_COMM_TYPES.index(x.cp_comm_type)),
        ep=column(lambda x: x.expert_model_parallel_size),
        etp=column(lambda x: x.expert_tensor_parallel_size),
        mbs=column(lambda x: x.micro_batch_size),
        sp=column(lambda x: x.sequence_parallel),
        zero=column(lambda x: x.zero_stage),
        shard=column(lambda x: x.shard_group_size),
        granularity=column(lambda x: GRANULARITIES.index(x.recompute_granularity)),
        method=column(lambda x: METHODS.index(x.recompute_method)),
        recompute_layers=column(lambda x: x.recompute_num_layers),
        modules=column(lambda x: modules_mask(x.recompute_modules)),
        schedule=column(lambda x: SCHEDULES.index(x.schedule)),
        stages=column(lambda x: stage_index.get(x.stage_layers, 0)),
        precision=column(lambda x: PRECISIONS.index(x.precision)),
        grad_bytes=column(lambda x: 4.0 if x.grad_reduce_dtype == "fp32" else 2.0),
        offload=column(lambda x: x.optimizer_offload_fraction),
        graph=column(lambda x: GRAPH_SCOPES.index(x.cuda_graph_scope)),
        overlap=column(lambda x: overlap_mask(x.overlap)),
        stage_table=table,
    )
