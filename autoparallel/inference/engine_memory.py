"""Memory of one GPU of a replica: parts that stand before the first request, and the KV cache."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import erf

import numpy as np

from autoparallel.inference.instance import Instance
from autoparallel.inference.kv_cache import kv_bytes, paged_tokens
from autoparallel.inference.setting import WEIGHT_BYTES, Setting
from autoparallel.model import (
    attention_parameters,
    mlp_parameters,
    norm_parameters,
    router_and_shared_parameters,
)
from autoparallel.units import Num, indicator

HALF = 2.0
"""Bytes of a bf16 number: what is not quantised."""
MEMORY_SIGMA = 0.06
"""Assumed standard deviation of the log of the memory an engine needs before its KV cache."""
COMMUNICATOR_BYTES = 2.0e9
"""Communicators and workspaces of collectives on a GPU of several (assumed): with the context they
make the 3.5 to 4.5 GiB that such engines hold beside weights, activations and graphs."""
ACTIVATION_COPIES = 6.0
"""Assumed hidden-size tensors, and halves of the MLP's, alive at once in a step."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingMemory:
    """Bytes on the fullest GPU; they add up to `total`. Every field is a scalar or [N]."""

    weights_bytes: Num
    kv_bytes: Num
    activations_bytes: Num
    logits_bytes: Num
    graphs_bytes: Num
    context_bytes: Num

    @property
    def total(self) -> Num:
        """Sum of the parts."""
        whole: Num = sum(getattr(self, f.name) for f in fields(self))
        return whole

    @property
    def before_cache(self) -> Num:
        """All but the KV cache."""
        return self.total - self.kv_bytes


def memory(setting: Setting, instance: Instance, batch: Num, context_tokens: Num) -> ServingMemory:
    """Memory with `batch` sequences of the replica holding `context_tokens` each.

    Args:
        setting: What is served.
        instance: The replica, scalar or [N].
        batch: Sequences in the whole replica.
        context_tokens: Tokens a sequence holds at most: prompt and answer.
    """
    per_copy = np.ceil(batch / instance.attention_data_parallel_size)
    tokens = paged_tokens(setting, context_tokens)
    return ServingMemory(
        weights_bytes=weights_bytes(setting, instance),
        kv_bytes=per_copy * kv_bytes(setting, instance, tokens),
        activations_bytes=activations_bytes(setting, instance),
        logits_bytes=logits_bytes(setting, instance),
        graphs_bytes=setting.backend.graph_bytes + 0.0 * per_copy,
        context_bytes=setting.backend.context_bytes
        + COMMUNICATOR_BYTES * indicator(np.asarray(instance.gpus) > 1)
        + 0.0 * per_copy,
    )


def weights_bytes(setting: Setting, instance: Instance) -> Num:
    """Weights on one GPU; embeddings, output matrix, router and norms stay in bf16."""
    m = setting.shape
    tp, pp = instance.tensor_model_parallel_size, instance.pipeline_model_parallel_size
    experts = m.E * m.k * m.h * m.f_e / instance.stage_gpus
    wide = WEIGHT_BYTES[setting.precision]
    shared_and_router = router_and_shared_parameters(m)
    layers = (
        m.L * attention_parameters(m) / tp * WEIGHT_BYTES[setting.attention_precision]
        + (m.L - m.L_moe) * mlp_parameters(m) / tp * wide
        + m.L_moe * (experts * wide + shared_and_router / tp * HALF)
        + m.L * norm_parameters(m) * HALF
    ) / pp
    return layers + (2 - m.tied) * m.V * m.h / tp * HALF


def activations_bytes(setting: Setting, instance: Instance) -> Num:
    """Workspace of the largest step: `max_num_tokens` tokens through one layer."""
    m = setting.shape
    tp = instance.tensor_model_parallel_size
    widest = m.k * np.maximum(m.f, m.K * m.f_e + m.f_s) / tp
    return HALF * instance.max_num_tokens * (ACTIVATION_COPIES * m.h + widest)


def logits_bytes(setting: Setting, instance: Instance) -> Num:
    """Sampling: fp32 logits of every sequence, gathered over the tensor-parallel group."""
    return 4.0 * instance.max_batch_size * setting.shape.V


def cache_room_bytes(setting: Setting, instance: Instance) -> Num:
    """Bytes the engine gives to the KV cache on one GPU; negative when the model does not fit."""
    own = memory(setting, instance, 0.0, 1.0).before_cache
    total = setting.machine.memory_bytes
    if setting.backend.fraction_of_free:
        return (total - own) * instance.memory_fraction
    return total * instance.memory_fraction - own


def kv_capacity_tokens(setting: Setting, instance: Instance, context_tokens: Num) -> Num:
    """Tokens the replica can hold in sequences of `context_tokens`; 0 when none fits."""
    return kv_capacity_sequences(setting, instance, context_tokens) * context_tokens


def kv_capacity_sequences(setting: Setting, instance: Instance, context_tokens: Num) -> Num:
    """Sequences of `context_tokens` that the replica can hold at once."""
    tokens = paged_tokens(setting, context_tokens)
    one = kv_bytes(setting, instance, tokens)
    per_copy = np.floor(np.maximum(cache_room_bytes(setting, instance), 0.0) / one)
    return per_copy * instance.attention_data_parallel_size


def fits_probability(setting: Setting, instance: Instance, batch: Num, context_tokens: Num) -> Num:
    """Probability that `batch` sequences of `context_tokens` fit beside the weights."""
    need = memory(setting, instance, batch, context_tokens)
    room = cache_room_bytes(setting, instance) - need.kv_bytes
    deviation = MEMORY_SIGMA * need.before_cache
    return _normal_cdf(room / deviation)


def _normal_cdf(z: Num) -> Num:
    share: Num = 0.5 * (1.0 + np.vectorize(erf, otypes=[np.float64])(z / np.sqrt(2.0)))
    return share
