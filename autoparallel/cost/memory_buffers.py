"""Memory besides weights and saved activations: logits, messages, gathered units, workspaces."""

from __future__ import annotations

import numpy as np

from autoparallel.cost.case import Case, flag
from autoparallel.cost.compute import HALF_BYTES, padded_vocabulary, sequence_shards, tokens
from autoparallel.cost.partition import embedding_parameters, layer_parameters, rank_layers
from autoparallel.cost.unique import per_combination
from autoparallel.layout import GRAPH_SCOPES
from autoparallel.units import Num

MOE_STAGING_COPIES = 2.0
"""Send and receive buffers of one expert all-to-all."""
GATHERED_LOGITS = 2.0
"""Half-precision copies of logits that are joined over tensor-parallel ranks: parts and whole."""
P2P_COPIES = 4.0
"""Send and receive buffers of a pipeline stage, in each direction."""


def logits_bytes(case: Case) -> Num:
    """Logits of one micro-batch at the loss: half precision, fp32 copies, and the head's input.

    Multi-token prediction has one more of them a layer.
    """
    m, k, traits = case.model, case.knobs, case.traits
    T, sharded = tokens(case), np.asarray(traits.logits_sharded) > 0
    split = np.where(sharded, k.tp, 1.0)
    joined = GATHERED_LOGITS * flag(np.asarray(k.tp) > 1) * np.where(sharded, 0.0, 1.0)
    half = HALF_BYTES * (traits.half_logits_copies + joined)
    earlier = traits.earlier_logits_copies * flag(np.asarray(k.micro_batches) > 1)
    each = half + 4.0 * (traits.fp32_logits_copies + earlier) * case.memory.logits_copies
    head_input = 2 * HALF_BYTES * T * m.h / sequence_shards(case)
    return (1 + m.mtp) * (T * padded_vocabulary(case) / split * each + head_input)


@per_combination
def staging_bytes(case: Case) -> Num:
    """Sequence-parallel inputs, pipeline and expert messages, CUDA graphs, workspaces."""
    m, k, c = case.model, case.knobs, case.memory
    T, S = tokens(case), sequence_shards(case)
    message = HALF_BYTES * T * m.h / S
    p2p = P2P_COPIES * message * flag(np.asarray(k.pp) > 1)
    gathered = HALF_BYTES * T * m.h * np.where(np.asarray(k.sp) > 0, 1 - 1 / k.tp, 0.0)
    gathered = case.traits.gather_buffers * gathered
    dispatched = T / k.tp * m.K * m.h * HALF_BYTES * case.constants.expert_imbalance
    experts = (
        MOE_STAGING_COPIES * dispatched * flag(np.asarray(m.L_moe) > 0) * flag(np.asarray(k.ep) > 1)
    )
    graphs = 2 * message * rank_layers(case)
    graphs = graphs * flag(np.asarray(k.graph) > GRAPH_SCOPES.index("none"))
    return c.workspace_bytes + p2p + gathered + experts + graphs


def unsharded_bytes(case: Case, holds_vocabulary: Num) -> Num:
    """ZeRO: buckets, gathered units in half precision, one unit's whole gradient to scatter."""
    k, layer = case.knobs, layer_parameters(case)
    vocabulary = embedding_parameters(case) * holds_vocabulary
    unit = np.maximum(layer.total, vocabulary)
    gathered = HALF_BYTES * (case.traits.unsharded_units * layer.total + vocabulary)
    gradient = (HALF_BYTES + k.grad_bytes) * unit
    zero, buckets = np.asarray(k.zero), case.traits.shard_buffer_bytes * k.sharded(1)
    return buckets + np.where(zero >= 3, gathered, 0.0) + np.where(zero >= 2, gradient, 0.0)
