"""Activations of one layer, tensor by tensor: what autograd keeps of one micro-batch on one rank.

After arXiv 2205.05198 section 4 (34 + 5 a s / h bytes a token and layer), extended to gated MLPs,
grouped and latent attention, flash attention, experts and fp8.

Letters: b micro-batch, s sequence, h hidden, t tensor parallel, S ranks that share norm and
residual work (t with sequence parallelism, else 1); T = b s / c is the tokens a rank works on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from autoparallel.cost.case import Case, flag
from autoparallel.cost.compute import HALF_BYTES, sequence_shards, tokens
from autoparallel.cost.memory_states import is_fp8
from autoparallel.cost.partition import chunks, layer_parameters
from autoparallel.cost.unique import per_combination
from autoparallel.units import Num

SCORE_GRADIENTS = 0.8
"""Gradients of softmax and its input over what is kept of them: 4 of 5 bytes a score. Fused kernels
write in place."""
FUSED_SCORE_TEMPORARIES, PLAIN_SCORE_TEMPORARIES = 4.0, 8.0
"""Bytes a score that the forward of unfused attention allocates and frees: product and softmax, in
half precision with a fused softmax; plain torch has the softmax in fp32 and casts it."""


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
    gemm_input = HALF_BYTES - is_fp8(case) * (1 - k.sharded(3))
    moe = m.L_moe / m.L
    kv = np.maximum(m.g / t, 1.0)
    query, out = m.a * m.d_qk / t, m.a * m.d_v / t
    dropout = flag(np.asarray(m.bias) > 0) * traits.dropout
    unfused = np.maximum(1.0 - traits.flash_attention, traits.stores_scores)
    f, f_s = m.f / t * (1 - moe), m.f_s / t * moe
    arriving = T / t * m.K * k.etp * case.constants.expert_imbalance * moe
    f_e = m.f_e / k.etp
    plain = 1.0 - traits.fused_kernels
    norms = 2 + 4 * flag(np.asarray(m.norm) < 2)
    residual = c.residual_copies + plain * norms
    gate = traits.stores_gate * (m.k - 2)
    gathered = traits.keeps_gathered * flag(np.asarray(k.sp) > 0) * (1 - 1 / t)
    packed = traits.packed_qkv * flag(np.asarray(m.g) == m.a) * kv * (m.d_qk + m.d_v)
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
        copies=HALF_BYTES * (plain * (T * (f + f_s) + arriving * f_e) + residual * T * m.h / S)
        + gathered * 2 * HALF_BYTES * T * m.h
        + gate * HALF_BYTES * (T * (f + f_s) + arriving * f_e)
        + packed * HALF_BYTES * T,
    )


@per_combination
def cached_score_bytes(case: Case) -> Num:
    """Blocks that unfused attention leaves in the allocator's cache, of no use for logits."""
    m, k, fused = case.model, case.knobs, case.traits.fused_kernels
    each = FUSED_SCORE_TEMPORARIES * fused + PLAIN_SCORE_TEMPORARIES * (1 - fused)
    return (1 - case.traits.flash_attention) * each * tokens(case) * m.a / k.tp * m.s


def saved_layer_bytes(case: Case) -> Num:
    """Bytes one layer keeps of one micro-batch, recomputation applied."""
    k, x = case.knobs, layer_activations(case)
    per_op = case.traits.per_op_recompute * flag(np.asarray(k.granularity) == 1)
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
    gone = gone + k.module("mla_up_proj") * x.qkv * flag(np.asarray(case.model.r_kv) > 0)
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
    gradients = gradients + SCORE_GRADIENTS * (1 - case.traits.fused_kernels) * x.scores
    n = np.where(np.asarray(k.method) == 0, np.maximum(k.recompute_layers, 1.0), 1.0)
    per_op = case.traits.per_op_recompute * flag(np.asarray(k.granularity) == 1)
    again = np.where(np.asarray(k.granularity) == 2, n * x.total, 0.0)
    again = again + np.where(np.asarray(per_op) > 0, x.total - per_op_bytes(case), 0.0)
    module = np.where(np.asarray(k.granularity) == 1, discarded_bytes(case, x), 0.0)
    weight_gradients = HALF_BYTES * layer_parameters(case).total
    return gradients + weight_gradients + again + module * flag(np.asarray(per_op) == 0)
