"""The input of a rule: layouts of one model, and what the machine and the framework allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autoparallel.framework import Framework
from autoparallel.hardware import Cluster
from autoparallel.layout import (
    CP_COMM_TYPES,
    GRANULARITIES,
    GRAPH_SCOPES,
    KNOB_FIELDS,
    METHODS,
    PRECISIONS,
    SCHEDULES,
    Knobs,
)
from autoparallel.model import Shape

Bool: TypeAlias = Any
"""A bool, or a bool column [N]."""

ALL_GATHER, A2A, HIERARCHICAL = (CP_COMM_TYPES.index(x) for x in ("all_gather", "a2a", "a2a+p2p"))
SELECTIVE, FULL = (GRANULARITIES.index(name) for name in ("selective", "full"))
UNIFORM, BLOCK = (METHODS.index(name) for name in ("uniform", "block"))
ONE_F_ONE_B, INTERLEAVED, BREADTH_FIRST = (
    SCHEDULES.index(name) for name in ("1f1b", "interleaved", "bfs")
)
NO_GRAPH, GRAPH_MLP, GRAPH_MOE, GRAPH_LAYER = (
    GRAPH_SCOPES.index(name) for name in ("none", "mlp", "moe", "full")
)
FP16, FP8, MXFP8 = (PRECISIONS.index(name) for name in ("fp16", "fp8", "mxfp8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the machine and the framework allow.

    Attributes:
        precisions: Peaks that the GPU has (`Gpu.peak_flops_per_s` keys).
        nvlink_domain_gpus, gpus_per_node: Fast-link sizes; crossing them is slow, not illegal.
        framework: Framework id; rules of one family apply where their word is part of it.
        legal: `Framework.legal`: for each restricted layout field, the values it may take.
    """

    precisions: tuple[str, ...] = ("bf16",)
    nvlink_domain_gpus: int = 8
    gpus_per_node: int = 8
    framework: str = "megatron-core"
    legal: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


def limits(cluster: Cluster, framework: Framework) -> Limits:
    """The limits of `cluster` under `framework`."""
    return Limits(
        precisions=tuple(cluster.gpu.peak_flops_per_s),
        nvlink_domain_gpus=cluster.nvlink_domain_gpus,
        gpus_per_node=cluster.gpus_per_node,
        framework=framework.name,
        legal=framework.legal,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class RuleCase:
    """Layouts (columns) of one model under one set of limits."""

    model: Shape
    knobs: Knobs
    limits: Limits

    @property
    def m(self) -> Any:
        """The model's letters; a number may be a float or a column, as everywhere here."""
        return self.model

    @property
    def k(self) -> Any:
        """The knobs."""
        return self.knobs

    @property
    def replicas(self) -> Any:
        """GPUs that hold the same dense weights: dp x cp; the optimizer is sharded over them."""
        return self.k.dp * self.k.cp

    @property
    def expert_replicas(self) -> Any:
        """GPUs that hold the same experts: dp x cp x tp / (etp x ep)."""
        return self.replicas * self.k.tp / (self.k.etp * self.k.ep)

    @property
    def instances(self) -> Any:
        """Copies of the optimizer state; shard 0 means one."""
        return np.where(self.k.shard > 0, self.replicas / np.maximum(self.k.shard, 1), 1.0)

    @property
    def group_size(self) -> Any:
        """Micro-batches in a row on one virtual stage; 0 stands for pp."""
        return np.where(self.k.group > 0, self.k.group, self.k.pp)

    @property
    def group_rest(self) -> Any:
        """Micro-batches that the full groups leave over."""
        m, n = self.k.micro_batches, self.group_size
        return m - np.floor(m / n) * n

    @property
    def kv_heads(self) -> Any:
        """Key-value heads on a tensor-parallel rank; repeated when tp exceeds them."""
        return np.maximum(self.m.g / self.k.tp, 1.0)

    @property
    def rank_heads(self) -> Any:
        """Attention heads on a tensor-parallel rank."""
        return self.m.a / self.k.tp

    @property
    def rank_tokens(self) -> Any:
        """Tokens of one sequence on a context-parallel rank."""
        return self.m.s / self.k.cp

    @property
    def stage_count(self) -> Any:
        """Virtual stages that the stage layout lists."""
        return self._stage(0)

    @property
    def stage_sum(self) -> Any:
        """Layers that the stage layout adds up to."""
        return self._stage(1)

    @property
    def least_inside(self) -> Any:
        """Layers of the emptiest stage that is neither the first nor the last."""
        return self._stage(3)

    @property
    def fullest(self) -> Any:
        """Layers on the fullest virtual stage."""
        return np.where(self.k.stages > 0, self._stage(2), self.m.L / (self.k.pp * self.k.vpp))

    @property
    def common_layers(self) -> Any:
        """Largest number that divides the layers of every virtual stage."""
        return np.where(self.k.stages > 0, self._stage(4), self.m.L / (self.k.pp * self.k.vpp))

    def _stage(self, what: int) -> Any:
        return _stage_table(self.knobs.stage_table)[what][np.asarray(self.k.stages, dtype=np.intp)]


@lru_cache(maxsize=8)
def _stage_table(table: tuple[tuple[int, ...], ...]) -> NDArray[np.float64]:
    """Per stage layout: count, sum, most, least inside, common divisor; one column each."""
    rows = [
        (len(s), sum(s), max(s), min(s[1:-1], default=1), np.gcd.reduce(s))
        if s
        else (0, 0, 0, 1, 1)
        for s in table
    ]
    return np.array(rows, dtype=np.float64).T


def one_row(case: RuleCase, row: int) -> RuleCase:
    """One row as scalars (NumPy's, so that `~` negates)."""

    def pick(value: Any) -> Any:
        return np.float64(value[row] if isinstance(value, np.ndarray) and value.ndim else value)

    picked = {f.name: pick(getattr(case.knobs, f.name)) for f in KNOB_FIELDS}
    letters = {name: pick(getattr(case.model, name)) for name in Shape.__dataclass_fields__}
    knobs = Knobs(**picked, stage_table=case.knobs.stage_table)
    return replace(case, model=Shape(**letters), knobs=knobs)


def splits(total: Any, parts: Any) -> Bool:
    """Whether `parts` divides `total`; exact for whole numbers below 2**53."""
    quotient = np.asarray(total / parts)
    return quotient == np.floor(quotient)
