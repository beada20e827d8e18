"""Weights, gradients and optimizer states of a rank."""

from __future__ import annotations

import numpy as np

from autoparallel.cost.case import Case, flag
from autoparallel.cost.compute import HALF_BYTES
from autoparallel.cost.partition import RankParameters
from autoparallel.layout import PRECISIONS
from autoparallel.units import Num

GATHERED_IN_FP8 = [PRECISIONS.index(name) for name in ("fp8", "fp8-tensorwise")]


def shards(case: Case) -> tuple[Num, Num]:
    """Ranks that share the optimizer of (dense, expert) parameters: dp x cp, expert replicas."""
    k = case.knobs
    dense = k.dp * k.cp
    expert = np.maximum(k.num_gpus / (k.pp * k.ep * k.etp), 1.0)
    limit = np.where(np.asarray(k.shard) > 0, k.shard, dense)
    return np.minimum(dense, limit), np.minimum(expert, limit)


def is_fp8(case: Case) -> Num:
    """1 where linear layers run in fp8 or narrower."""
    return flag(np.asarray(case.knobs.precision) >= PRECISIONS.index("fp8"))


def static_bytes(case: Case, params: RankParameters) -> tuple[Num, Num, Num]:
    """Weights, gradients and optimizer states of a rank.

    Without sharding 2 + g + 12 bytes a parameter (18 with fp32 gradients), with the distributed
    optimizer 2 + g + 12/d (6 + 12/d): Megatron-LM `theoretical_memory_usage.py`. ZeRO-2 shards
    gradients too, ZeRO-3 everything (arXiv 1910.02054). Transformer Engine keeps an fp8 weight and
    its transpose, in place of the half-precision weight where parameters are gathered in fp8.
    """
    k, traits, c = case.knobs, case.traits, case.memory
    zero, (dense, expert) = np.asarray(k.zero), shards(case)
    owned = params.dense / dense + params.expert / expert
    full = params.total
    gathered = np.isin(k.precision, GATHERED_IN_FP8) & (zero >= 1)
    fp8_copies = np.where(gathered, traits.fp8_weight_bytes, 2.0) * is_fp8(case) * flag(zero < 3)
    weights = HALF_BYTES * np.where(zero >= 3, owned, full) + fp8_copies * full
    copies = traits.bucket_copy_bytes * flag(np.maximum(dense, expert) > 1)
    step = traits.step_gradient_bytes + c.extra_gradient_bytes
    gradient = k.grad_bytes + step + copies
    gradients = gradient * np.where(zero >= 2, owned, full)
    in_bf16 = flag(np.asarray(k.precision) == PRECISIONS.index("bf16"))
    master = traits.master_bytes - HALF_BYTES * traits.remainders * in_bf16
    states = (master + traits.moment_bytes) * (1 - k.offload)
    return weights, gradients, states * np.where(zero >= 1, owned, full)
