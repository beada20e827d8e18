"""What one rank holds: layers of its stages and the parameters on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoparallel.cost.case import Case
from autoparallel.cost.compute import padded_vocabulary
from autoparallel.cost.unique import per_combination
from autoparallel.model import (
    attention_parameters,
    expert_parameters,
    mlp_parameters,
    norm_parameters,
    router_and_shared_parameters,
)
from autoparallel.units import Num


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunks:
    """Decoder layers of one virtual-stage chunk: the first, an ordinary (fullest) one, the last."""

    first: Num
    middle: Num
    last: Num


@per_combination
def chunks(case: Case) -> Chunks:
    """Layers per chunk.

    An explicit stage layout is used as given. Else layers are split evenly; where they do not
    divide, embedding and loss take one slot each when that divides, and otherwise the remainder
    makes the fullest chunk longer.
    """
    k, L = case.knobs, case.model.L
    n = k.pp * k.vpp
    even = L / n
    slots = np.floor((L + 2) / n) == (L + 2) / n
    divides = np.floor(even) == even
    middle = np.where(divides, even, np.where(slots, (L + 2) / n, np.ceil(even)))
    edge = np.where(divides, even, np.where(slots, (L + 2) / n - 1, np.floor(even)))
    if len(k.stage_table) == 1:
        return Chunks(first=edge, middle=middle, last=edge)
    ends = [(s[0], max(s), s[-1]) if s else (0, 0, 0) for s in k.stage_table]
    table = np.array(ends, dtype=np.float64)
    given = table[np.asarray(k.stages, dtype=np.intp)]
    uneven = np.asarray(k.stages) > 0
    return Chunks(
        first=np.where(uneven, given[..., 0], edge),
        middle=np.where(uneven, given[..., 1], middle),
        last=np.where(uneven, given[..., 2], edge),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankParameters:
    """Parameters on one rank before any sharding over replicas."""

    dense: Num
    expert: Num

    @property
    def total(self) -> Num:
        """All of them."""
        return self.dense + self.expert


def layer_parameters(case: Case) -> RankParameters:
    """Parameters of one average layer on one rank, tensor and expert sharding applied."""
    m, k = case.model, case.knobs
    moe = m.L_moe / m.L
    dense_mlp = mlp_parameters(m) * (1 - moe)
    sharded = attention_parameters(m) + dense_mlp + m.k * m.h * m.f_s * moe
    replicated = norm_parameters(m) + (router_and_shared_parameters(m) - m.k * m.h * m.f_s) * moe
    return RankParameters(
        dense=sharded / k.tp + replicated,
        expert=expert_parameters(m) * moe / (k.ep * k.etp),
    )


def embedding_parameters(case: Case) -> Num:
    """One vocabulary matrix on one rank."""
    return padded_vocabulary(case) * case.model.h / case.knobs.tp


def rank_parameters(case: Case, layers: Num, embeddings: Num) -> RankParameters:
    """Parameters of a rank with `layers` layers and `embeddings` vocabulary matrices."""
    layer = layer_parameters(case)
    return RankParameters(
        dense=layer.dense * layers + embeddings * embedding_parameters(case),
        expert=layer.expert * layers,
    )


def rank_layers(case: Case) -> Num:
    """Layers on the fullest rank."""
    return chunks(case).middle * case.knobs.vpp


def single_stage(case: Case) -> Num:
    """1 where there is no pipeline: one rank holds embedding and head."""
    return np.where(np.asarray(case.knobs.pp) > 1, 0.0, 1.0)
