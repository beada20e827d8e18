"""Memory of one rank at its peak, by cause, and the probability that it fits.

Activations are counted tensor by tensor: what autograd keeps for the backward pass, in bytes a
token and layer, after arXiv 2205.05198 section 4 (34 + 5 a s / h) extended to gated MLPs, grouped
and latent attention, flash attention, experts and fp8. What accounting cannot derive sits in
`MemoryConstants`.

Letters: b micro-batch, s sequence, h hidden, t tensor parallel, S ranks that share norm and
residual work (t with sequence parallelism, else 1); T = b s / c is the tokens a rank works on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from autoparallel.constants import MemoryConstants
from autoparallel.cost.case import Case
from autoparallel.cost.compute import HALF_BYTES, padded_vocabulary, sequence_shards, tokens
from autoparallel.cost.partition import (
    RankParameters,
    chunks,
    embedding_parameters,
    layer_parameters,
    rank_layers,
    rank_parameters,
    single_stage,
)
from autoparallel.cost.schedule import in_flight
from autoparallel.cost.unique import per_combination
from autoparallel.layout import GRAPH_SCOPES, PRECISIONS
from autoparallel.units import Num

STAGES = ("first", "middle", "last")
MOE_STAGING_COPIES = 2.0
"""Send and receive buffers of one expert all-to-all."""
P2P_COPIES = 4.0
"""Send and receive buffers of a pipeline stage, in each direction."""
COMMUNICATOR_BYTES = 0.36e9
"""NCCL buffers of one communicator, about 342 MiB for 2 GPUs (392 MiB for 4 to 8).

Source: ai-dynamo/aiconfigurator `h100_sxm.yaml`.
"""
GATHERED_IN_FP8 = [PRECISIONS.index(name) for name in ("fp8", "fp8-tensorwise")]
LOGISTIC_SLOPE = 1.702
"""Slope at which the logistic curve is the normal distribution within 0.01."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Memory:
    """Bytes of one rank at its peak, by cause; scalars or [N]."""

    weights_bytes: Num
    gradients_bytes: Num
    optimizer_bytes: Num
    activations_bytes: Num
    logits_bytes: Num
    buffers_bytes: Num
    context_bytes: Num
    fragmentation_bytes: Num

    @property
    def allocated_bytes(self) -> Num:
        """What tensors hold: torch's `max_memory_allocated`."""
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.logits_bytes
            + self.buffers_bytes
        )

    @property
    def reserved_bytes(self) -> Num:
        """What the caching allocator holds: torch's `max_memory_reserved`."""
        return self.allocated_bytes + self.fragmentation_bytes

    @property
    def total_bytes(self) -> Num:
        """What the device has in use: the sum of all parts."""
        return self.reserved_bytes + self.context_bytes


def _flag(condition: Any) -> Num:
    """1 where `condition` holds, else 0."""
    return np.where(condition, 1.0, 0.0)


def memory(case: Case) -> Memory:
    """Peak of the fullest rank: of the first, an ordinary or the last stage, whichever is worst."""
    shared = _shared(case)
    first, middle, last = (_of_stage(case, position, shared) for position in STAGES)
    worst = _fuller(first, last, np.asarray(case.knobs.pp) > 1)
    return _fuller(worst, middle, np.asarray(case.knobs.pp) > 2)


def _fuller(a: Memory, b: Memory, exists: Any) -> Memory:
    """Row by row the fuller of two stages, of which `b` may not exist."""
    choose_b = np.logical_and(exists, np.asarray(b.total_bytes) > a.total_bytes)
    return Memory(
        **{
            f.name: np.where(choose_b, getattr(b, f.name), getattr(a, f.name))[()]
            for f in fields(Memory)
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stage:
    """A pipeline stage: layers, vocabulary matrices, position, and 1 where it ends in the loss."""

    layers: Num
    embeddings: Num
    position: Num
    head: Num


def _stage(case: Case, position: str) -> _Stage:
    k, m, split, alone = case.knobs, case.model, chunks(case), single_stage(case)
    others = (k.vpp - 1) * split.middle
    last_layers = others + split.last + m.mtp
    if position == "first":
        return _Stage(
            layers=np.where(alone > 0, k.vpp * split.middle + m.mtp, others + split.first),
            embeddings=1 + alone * (1 - m.tied),
            position=0.0 * k.pp,
            head=alone,
        )
    if position == "last":
        return _Stage(
            layers=last_layers, embeddings=1 + alone * (1 - m.tied), position=k.pp - 1, head=1.0
        )
    return _Stage(
        layers=k.vpp * split.middle,
        embeddings=0.0,
        position=np.minimum(1.0, k.pp - 1),
        head=0.0,
    )


def memory_of_stage(case: Case, position: str) -> Memory:
    """Peak of one rank of the stage `position`, one of `STAGES`; `first` holds global rank 0."""
    return _of_stage(case, position, _shared(case))


def memory_of_rank(case: Case, rank: int) -> Memory:
    """Peak of pipeline rank `rank` of one layout: 0 holds the embedding, pp - 1 ends in the loss.

    Ranks between them differ in how many micro-batches they keep alive.
    """
    last = int(np.max(case.knobs.pp)) - 1
    position = "first" if rank == 0 else "last" if rank == last else "middle"
    return _of_stage(case, position, _shared(case), float(rank))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Shared:
    """What every stage of a pipeline has in common: bytes of one layer, and of the head."""

    saved: Num
    backward: Num
    logits: Num


@per_combination
def _shared(case: Case) -> _Shared:
    return _Shared(
        saved=saved_layer_bytes(case),
        backward=layer_backward_bytes(case),
        logits=logits_bytes(case),
    )


def _of_stage(case: Case, position: str, shared: _Shared, rank: Num | None = None) -> Memory:
    k, c, stage = case.knobs, case.memory, _stage(case, position)
    place = stage.position if rank is None else rank
    params = rank_parameters(case, stage.layers, stage.embeddings)
    weights, gradients, optimizer = static_bytes(case, params)
    alive = in_flight(k.pp, k.vpp, k.micro_batches, k.group, k.schedule, place)
    saved = shared.saved * stage.layers / k.vpp * alive
    if position == "first":
        saved = (
            saved + c.embedding_copies * HALF_BYTES * tokens(case) * case.model.h * alive / k.vpp
        )
    logits = shared.logits * stage.head
    backward = np.maximum(shared.backward - logits, 0.0)
    buffers = buffers_bytes(case, _flag(np.asarray(stage.embeddings) > 0)) + backward
    moving = saved + logits + buffers
    return Memory(
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=saved,
        logits_bytes=logits,
        buffers_bytes=buffers,
        context_bytes=c.context_bytes + COMMUNICATOR_BYTES * communicators(case),
        fragmentation_bytes=c.fragmentation * moving,
    )


# --- weights, gradients, optimizer --------------------------------------------------------------


def shards(case: Case) -> tuple[Num, Num]:
    """Ranks that share the optimizer of (dense, expert) parameters: dp x cp, expert replicas."""
    k = case.knobs
    dense = k.dp * k.cp
    expert = np.maximum(k.num_gpus / (k.pp * k.ep * k.etp), 1.0)
    limit = np.where(np.asarray(k.shard) > 0, k.shard, dense)
    return np.minimum(dense, limit), np.minimum(expert, limit)


def is_fp8(case: Case) -> Num:
    """1 where linear layers run in fp8 or narrower."""
    return _flag(np.asarray(case.knobs.precision) >= PRECISIONS.index("fp8"))


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
    fp8_copies = np.where(gathered, traits.fp8_weight_bytes, 2.0) * is_fp8(case) * _flag(zero < 3)
    weights = HALF_BYTES * np.where(zero >= 3, owned, full) + fp8_copies * full
    gradient = k.grad_bytes + c.extra_gradient_bytes
    gradients = gradient * np.where(zero >= 2, owned, full)
    states = (traits.master_bytes + traits.moment_bytes) * (1 - k.offload)
    return weights, gradients, states * np.where(zero >= 1, owned, full)


# --- activations --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerActivations:
    """Bytes that autograd keeps of one layer for one micro-batch on one rank, by tensor."""

    residual: Num
    """Inputs of the two norms."""
    norm_outputs: Num
    """Inputs of the QKV and first MLP projections."""
    qkv: Num
    latent: Num
    """Down-projected queries and keys of MLA."""
    attention_output: Num
    scores: Num
    """Softmax, its dropout and the mask, unfused attention only."""
    masks: Num
    """Dropout masks."""
    mlp_inner: Num
    """Output of the first MLP projection (2 f when gated)."""
    mlp_activated: Num
    """Input of the second MLP projection."""
    shared_inner: Num
    expert_inner: Num
    expert_activated: Num
    expert_tokens: Num
    """Dispatched tokens as expert inputs, and router scores. Outputs are not kept: Megatron-Core
    0.16.1 weighs tokens before the second expert matrix."""
    copies: Num
    """What unfused kernels keep besides, and inputs kept gathered."""

    @property
    def total(self) -> Num:
        """All tensors."""
        tensors: list[Num] = [getattr(self, f.name) for f in fields(self)]
        return sum(tensors, start=0.0)


@per_combination
def layer_activations(case: Case) -> LayerActivations:
    """The tensors of one average layer, nothing recomputed.

    With t = 1, multi-head attention, a plain MLP of 4 h, dropout and unfused attention the sum is
    s b h (34 + 5 a s / h): arXiv 2205.05198, equation 1.
    """
    m, k, traits, c = case.model, case.knobs, case.traits, case.memory
    T, t, S = tokens(case), k.tp, sequence_shards(case)
    gemm_input = HALF_BYTES - is_fp8(case) * _flag(np.asarray(k.zero) < 3)
    moe = m.L_moe / m.L
    kv = np.maximum(m.g / t, 1.0)
    query, out = m.a * m.d_qk / t, m.a * m.d_v / t
    dropout = _flag(np.asarray(m.bias) > 0) * traits.dropout
    unfused = np.maximum(1.0 - traits.flash_attention, traits.stores_scores)
    f, f_s = m.f / t * (1 - moe), m.f_s / t * moe
    arriving = T / t * m.K * k.etp * case.constants.expert_imbalance * moe
    f_e = m.f_e / k.etp
    plain = c.activation_copies + (1.0 - traits.fused_kernels)
    gathered = c.gathered_inputs * (1 - 1 / t) * _flag(np.asarray(k.sp) > 0)
    return LayerActivations(
        residual=2 * HALF_BYTES * T * m.h / S,
        norm_outputs=2 * gemm_input * T * m.h / S,
        qkv=HALF_BYTES * T * (query + kv * (m.d_qk + m.d_v)),
        latent=2 * HALF_BYTES * T * (m.r_q + m.r_kv + m.d_rope) / S,
        attention_output=(HALF_BYTES + is_fp8(case)) * T * out,
        scores=unfused * T * m.a / t * m.s * (2 * HALF_BYTES + 1),
        masks=dropout * 2 * T * m.h / S,
        mlp_inner=HALF_BYTES * T * (m.k - 1) * f,
        mlp_activated=gemm_input * T * f,
        shared_inner=T * f_s * (HALF_BYTES * (m.k - 1) + gemm_input),
        expert_inner=HALF_BYTES * arriving * (m.k - 1) * f_e,
        expert_activated=gemm_input * arriving * f_e,
        expert_tokens=arriving * m.h * gemm_input + 8 * T / t * m.E * moe,
        copies=plain * HALF_BYTES * (T * (f + f_s + 2 * m.h / S) + arriving * f_e)
        + gathered * 2 * HALF_BYTES * T * m.h,
    )


def saved_layer_bytes(case: Case) -> Num:
    """Bytes one layer keeps of one micro-batch, recomputation applied."""
    k, x = case.knobs, layer_activations(case)
    per_op = case.traits.per_op_recompute * _flag(np.asarray(k.granularity) == 1)
    kept = np.where(np.asarray(per_op) > 0, per_op_bytes(case), x.total - discarded_bytes(case, x))
    inputs = checkpoint_bytes(case)
    layers = np.maximum(chunks(case).middle, 1.0)
    n = np.clip(k.recompute_layers, 1.0, layers)
    uniform = inputs / n
    share = np.minimum(k.recompute_layers / layers, 1.0)
    block = share * inputs + (1 - share) * x.total
    full = np.where(np.asarray(k.method) == 0, uniform, block)
    return np.where(np.asarray(k.granularity) == 2, full, kept)


def checkpoint_bytes(case: Case) -> Num:
    """The input of a layer that is recomputed whole: 2 s b h (arXiv 2205.05198, section 5)."""
    return HALF_BYTES * tokens(case) * case.model.h / sequence_shards(case)


def discarded_bytes(case: Case, x: LayerActivations) -> Num:
    """What selective recomputation does not keep (Megatron-Core `recompute_modules`)."""
    k = case.knobs
    gone = k.module("core_attn") * x.scores + k.module("layernorm") * x.norm_outputs
    gone = gone + k.module("mla_up_proj") * x.qkv * _flag(np.asarray(case.model.r_kv) > 0)
    gone = gone + k.module("mlp") * (x.mlp_inner + x.mlp_activated)
    whole, act = k.module("moe"), k.module("moe_act")
    shared = np.maximum(k.module("shared_experts"), whole) * x.shared_inner
    routed = (
        whole * (x.expert_inner + x.expert_tokens) + np.maximum(whole, act) * x.expert_activated
    )
    return gone + shared + routed


def per_op_bytes(case: Case) -> Num:
    """PyTorch's per-operator policy: layer input, attention output and every second GEMM output.

    Source: pytorch/torchtitan v0.2.2 `activation_checkpoint.py`, selective "op".
    """
    x = layer_activations(case)
    outputs = x.qkv + x.mlp_inner + x.shared_inner + x.expert_inner + x.residual
    return x.residual / 2 + x.attention_output + 0.5 * outputs


def layer_backward_bytes(case: Case) -> Num:
    """What one layer's backward holds at its widest.

    Gradients of its tensors, its weight gradients in half precision before they are accumulated,
    and the layer itself when it is recomputed.
    """
    k, x = case.knobs, layer_activations(case)
    inner = x.mlp_inner + x.shared_inner + x.expert_inner
    gradients = inner + x.mlp_activated + x.expert_activated + x.residual
    n = np.where(np.asarray(k.method) == 0, np.maximum(k.recompute_layers, 1.0), 1.0)
    per_op = case.traits.per_op_recompute * _flag(np.asarray(k.granularity) == 1)
    again = np.where(np.asarray(k.granularity) == 2, n * x.total, 0.0)
    again = again + np.where(np.asarray(per_op) > 0, x.total - per_op_bytes(case), 0.0)
    module = np.where(np.asarray(k.granularity) == 1, discarded_bytes(case, x), 0.0)
    weight_gradients = HALF_BYTES * layer_parameters(case).total
    return gradients + weight_gradients + again + module * _flag(np.asarray(per_op) == 0)


def logits_bytes(case: Case) -> Num:
    """Logits of one micro-batch at the loss: half precision, fp32 copies, and the head's input.

    Multi-token prediction has one more of them a layer.
    """
    m, k, traits = case.model, case.knobs, case.traits
    T, split = tokens(case), np.where(np.asarray(traits.logits_sharded) > 0, k.tp, 1.0)
    each = HALF_BYTES + 4.0 * traits.fp32_logits_copies * case.memory.logits_copies
    head_input = 2 * HALF_BYTES * T * m.h / sequence_shards(case)
    return (1 + m.mtp) * (T * padded_vocabulary(case) / split * each + head_input)


# --- buffers ------------------------------------------------------------------------------------


def buffers_bytes(case: Case, holds_vocabulary: Num) -> Num:
    """Staging of messages, workspaces, and what ZeRO gathers."""
    return staging_bytes(case) + unsharded_bytes(case, holds_vocabulary)


@per_combination
def staging_bytes(case: Case) -> Num:
    """Sequence-parallel inputs, pipeline and expert messages, CUDA graphs, workspaces."""
    m, k, c = case.model, case.knobs, case.memory
    T, S = tokens(case), sequence_shards(case)
    message = HALF_BYTES * T * m.h / S
    p2p = P2P_COPIES * message * _flag(np.asarray(k.pp) > 1)
    gathered = HALF_BYTES * T * m.h * np.where(np.asarray(k.sp) > 0, 1 - 1 / k.tp, 0.0)
    dispatched = T / k.tp * m.K * m.h * HALF_BYTES * case.constants.expert_imbalance
    experts = (
        MOE_STAGING_COPIES
        * dispatched
        * _flag(np.asarray(m.L_moe) > 0)
        * _flag(np.asarray(k.ep) > 1)
    )
    graphs = 2 * message * rank_layers(case)
    graphs = graphs * _flag(np.asarray(k.graph) > GRAPH_SCOPES.index("none"))
    return c.workspace_bytes + p2p + gathered + experts + graphs


def unsharded_bytes(case: Case, holds_vocabulary: Num) -> Num:
    """ZeRO-3: units gathered in half precision, and one unit's whole gradient to be scattered."""
    k, layer = case.knobs, layer_parameters(case)
    vocabulary = embedding_parameters(case) * holds_vocabulary
    unit = np.maximum(layer.total, vocabulary)
    gathered = HALF_BYTES * (case.traits.unsharded_units * layer.total + vocabulary)
    gradient = (HALF_BYTES + k.grad_bytes) * unit
    zero = np.asarray(k.zero)
    return np.where(zero >= 3, gathered, 0.0) + np.where(zero >= 2, gradient, 0.0)


@per_combination
def communicators(case: Case) -> Num:
    """NCCL communicators a rank opens: one per kind of group that has more than one member."""
    k = case.knobs
    sizes = (k.tp, k.pp, k.cp, k.dp, k.ep)
    return sum((_flag(np.asarray(size) > 1) for size in sizes), start=0.0)


# --- does it fit --------------------------------------------------------------------------------


def fits_probability(memory: Memory, capacity_bytes: Num, constants: MemoryConstants) -> Num:
    """Probability that a rank of `capacity_bytes` does not run out.

    The allocator's part is log-normal around its prediction with deviation `error_sigma`; the
    context is taken as known. One half where prediction and capacity meet. The normal distribution
    is approximated by a logistic curve.
    """
    room = np.maximum(np.asarray(capacity_bytes) - memory.context_bytes, 1.0)
    z = np.log(room / memory.reserved_bytes) / constants.error_sigma
    return 1 / (1 + np.exp(np.clip(-LOGISTIC_SLOPE * z, -60.0, 60.0)))
