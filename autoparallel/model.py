"""What is trained or served: a transformer's dimensions, its exact size and its FLOPs.

`Model` is the catalog record in Megatron's field names. `Shape` is the same thing in the papers'
letters, as numbers or as columns, which is what the formulas of `cost/` take: one model against a
million layouts has scalar letters, a file of measured runs has a column of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from autoparallel.units import Num


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The job a model is usually trained with; every field can be overridden by the request."""

    global_batch_size: int
    seq_length: int
    tokens: float
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A decoder-only transformer in Megatron's field names.

    Attributes:
        ffn_hidden_size: Inner width of the dense MLP (one of the two halves when gated).
        moe_ffn_hidden_size: Inner width of one expert; 0 means no experts.
        moe_router_num_groups, moe_router_group_topk: Equal groups of experts, in order, and of how
            many of them a token's experts may be (DeepSeek-V3: 4 of 8); 0 means of any.
        moe_first_dense_layers: Leading layers that keep a dense MLP (DeepSeek-V3: 3).
        window_size: Sliding-window attention span in tokens on `window_layers_fraction` of the
            layers; 0 means full attention everywhere.
        extra_parameters: Parameters outside the formula: learned positions, embedding norms, sinks.
        q_lora_rank, kv_lora_rank, qk_head_dim, qk_pos_emb_head_dim, v_head_dim: MLA; `kv_lora_rank`
            0 means plain (grouped-query) attention.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    ffn_hidden_size: int
    vocab_size: int
    kv_channels: int
    gated_linear_unit: bool = True
    activation: str = "silu"
    normalization: str = "RMSNorm"
    norm_epsilon: float = 1e-5
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    qk_layernorm: bool = False
    untie_embeddings_and_output_weights: bool = True
    position_embedding_type: str = "rope"
    rotary_base: float = 10_000.0
    max_position_embeddings: int = 0
    window_size: int = 0
    window_layers_fraction: float = 0.0
    num_moe_experts: int = 0
    moe_router_topk: int = 0
    moe_ffn_hidden_size: int = 0
    moe_shared_expert_intermediate_size: int = 0
    moe_first_dense_layers: int = 0
    moe_router_bias: bool = False
    moe_router_num_groups: int = 0
    moe_router_group_topk: int = 0
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_head_dim: int = 0
    qk_pos_emb_head_dim: int = 0
    v_head_dim: int = 0
    mtp_num_layers: int = 0
    extra_parameters: int = 0
    published_parameters: float = 0.0
    training: Training | None = None
    source: str = ""

    @property
    def moe_layers(self) -> int:
        """Layers whose MLP is a mixture of experts."""
        return self.num_layers - self.moe_first_dense_layers if self.num_moe_experts else 0

    def shape(self, seq_length: int) -> Shape:
        """The model in the papers' letters, for sequences of `seq_length` tokens."""
        mla = self.kv_lora_rank > 0
        qk_dim = self.qk_head_dim + self.qk_pos_emb_head_dim if mla else self.kv_channels
        return Shape(
            s=float(seq_length),
            L=float(self.num_layers),
            h=float(self.hidden_size),
            a=float(self.num_attention_heads),
            g=float(self.num_attention_heads if mla else self.num_query_groups),
            d_qk=float(qk_dim),
            d_v=float(self.v_head_dim if mla else self.kv_channels),
            f=float(self.ffn_hidden_size),
            k=3.0 if self.gated_linear_unit else 2.0,
            V=float(self.vocab_size),
            E=float(self.num_moe_experts),
            K=float(self.moe_router_topk),
            G=float(self.moe_router_num_groups),
            G_k=float(self.moe_router_group_topk),
            f_e=float(self.moe_ffn_hidden_size),
            f_s=float(self.moe_shared_expert_intermediate_size),
            L_moe=float(self.moe_layers),
            tied=float(not self.untie_embeddings_and_output_weights),
            norm=1.0 if self.normalization == "RMSNorm" else 2.0,
            bias=float(self.add_bias_linear),
            qkv_bias=float(self.add_qkv_bias or self.add_bias_linear),
            qk_norm=float(self.qk_layernorm),
            router_bias=float(self.moe_router_bias),
            r_q=float(self.q_lora_rank),
            r_kv=float(self.kv_lora_rank),
            d_rope=float(self.qk_pos_emb_head_dim if mla else 0),
            mtp=float(self.mtp_num_layers),
            window=float(self.window_size),
            window_fraction=float(self.window_layers_fraction),
            extra=float(self.extra_parameters),
        )


PUBLISHED_IN = {"deepseek-v3": "fp8-blockwise", "gpt-oss": "mxfp4", "kimi-k2": "fp8-blockwise"}
"""Precision of checkpoints that were published quantised, by the start of their name."""


def published_precision(model: Model) -> str:
    """Precision of a checkpoint that was published quantised; empty for any other."""
    return next((p for name, p in PUBLISHED_IN.items() if model.name.startswith(name)), "")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """A model and its sequence length in the papers' letters; every field is a scalar or [N].

    s sequence, L layers, h hidden, a heads, g KV heads, d_qk and d_v head widths, f dense FFN
    width, k MLP matrices (3 gated, 2 plain), V vocabulary, E experts, K experts a token (in G_k of
    G groups; 0 any), f_e expert width, f_s shared-expert width, L_moe MoE layers, r_q / r_kv /
    d_rope MLA ranks, mtp extra prediction layers.
    """

    s: Num
    L: Num
    h: Num
    a: Num
    g: Num
    d_qk: Num
    d_v: Num
    f: Num
    k: Num
    V: Num
    E: Num = 0.0
    K: Num = 0.0
    G: Num = 0.0
    G_k: Num = 0.0
    f_e: Num = 0.0
    f_s: Num = 0.0
    L_moe: Num = 0.0
    tied: Num = 0.0
    norm: Num = 1.0
    bias: Num = 0.0
    qkv_bias: Num = 0.0
    qk_norm: Num = 0.0
    router_bias: Num = 0.0
    r_q: Num = 0.0
    r_kv: Num = 0.0
    d_rope: Num = 0.0
    mtp: Num = 0.0
    window: Num = 0.0
    window_fraction: Num = 0.0
    extra: Num = field(default=0.0)


def attention_parameters(m: Shape) -> Num:
    """Weights and biases of one attention block, without its layer norm."""
    q_width, out_width = m.a * m.d_qk, m.a * m.d_v
    plain = m.h * (q_width + m.g * (m.d_qk + m.d_v)) + m.qkv_bias * (
        q_width + m.g * (m.d_qk + m.d_v)
    )
    low_rank_q = m.h * m.r_q + m.r_q + m.r_q * q_width
    q = np.where(np.asarray(m.r_q) > 0, low_rank_q, m.h * q_width)
    latent_kv = m.h * (m.r_kv + m.d_rope) + m.r_kv + m.r_kv * m.a * (m.d_qk - m.d_rope + m.d_v)
    projections = np.where(np.asarray(m.r_kv) > 0, q + latent_kv, plain)
    return projections + out_width * m.h + m.bias * m.h + m.qk_norm * 2 * m.d_qk


def mlp_parameters(m: Shape) -> Num:
    """Weights and biases of one dense MLP."""
    return m.k * m.h * m.f + m.bias * ((m.k - 1) * m.f + m.h)


def expert_parameters(m: Shape) -> Num:
    """Weights and biases of all E experts of one layer."""
    return m.E * (m.k * m.h * m.f_e + m.bias * ((m.k - 1) * m.f_e + m.h))


def router_and_shared_parameters(m: Shape) -> Num:
    """Router and shared expert of one MoE layer."""
    return m.h * m.E + m.router_bias * m.E + m.k * m.h * m.f_s


def norm_parameters(m: Shape) -> Num:
    """The two layer norms of one layer."""
    return 2 * m.norm * m.h


def embedding_parameters(m: Shape) -> Num:
    """Input embedding table, plus the output matrix when it is not tied."""
    return m.V * m.h * (2 - m.tied)


def parameters(m: Shape) -> Num:
    """Exact number of parameters; prediction layers are left out, as published counts do."""
    per_layer = attention_parameters(m) + norm_parameters(m)
    dense = (m.L - m.L_moe) * mlp_parameters(m)
    moe = m.L_moe * (expert_parameters(m) + router_and_shared_parameters(m))
    return m.L * per_layer + dense + moe + embedding_parameters(m) + m.norm * m.h + m.extra


def active_parameters(m: Shape) -> Num:
    """Parameters one token passes through: all but the experts that are not chosen."""
    share = m.K / np.maximum(m.E, 1.0)
    return parameters(m) - m.L_moe * expert_parameters(m) * (1 - share)


def flops_per_token(m: Shape) -> Num:
    """Model FLOPs of forward and backward for one token, by Megatron-LM's own accounting.

    Attention counts the causal half. Recomputation is not counted. This is what MFU means here.
    Source: NVIDIA/Megatron-LM megatron/training/training.py `num_floating_point_operations`.
    """
    mtp_is_moe = np.asarray(m.L_moe) > 0
    layers_dense = m.L - m.L_moe + m.mtp * (1 - mtp_is_moe)
    layers_moe = m.L_moe + m.mtp * mtp_is_moe
    layers_all = m.L + m.mtp
    mlp = m.k * (m.f * layers_dense + (m.f_e * m.K + m.f_s) * layers_moe)
    q_width, v_width = m.a * m.d_qk, m.a * m.d_v
    plain = m.h * (q_width + m.g * (m.d_qk + m.d_v)) + v_width * m.h
    low_rank_q = m.r_q * (m.h + q_width)
    q = np.where(np.asarray(m.r_q) > 0, low_rank_q, m.h * q_width)
    latent = m.r_kv * (m.h + m.a * (m.d_qk - m.d_rope + m.d_v)) + m.h * m.d_rope
    attention = np.where(np.asarray(m.r_kv) > 0, q + latent + v_width * m.h, plain)
    linear = 6 * (m.h * mlp + layers_all * attention)
    logits = 6 * m.h * m.V * (1 + m.mtp)
    mtp = 6 * m.mtp * (3 * m.h + 2 * m.h * m.h)
    scores = 3 * layers_all * (q_width + v_width) * m.s
    return linear + logits + mtp + scores
