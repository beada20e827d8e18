"""What a model is in Megatron-LM's argument names, at core_v0.16.1."""

from __future__ import annotations

import math
from typing import Any

from autoparallel.errors import bad_value
from autoparallel.exporting.megatron_flags import VERSION
from autoparallel.model import Model

_POSITIONS = ("rope", "learned_absolute", "none")
_QUICK_GEGLU = ("quick_gelu", "quick_geglu")


def model_fields(model: Model, seq_length: int) -> dict[str, Any]:
    """Dimensions and architecture of `model`, for sequences of `seq_length` tokens.

    Raises:
        ConfigError: an architecture that core_v0.16.1 has no flags for.
    """
    return {
        **_network(model, seq_length),
        **_attention(model),
        **_mlp(model),
        **_experts(model),
    }


def _network(model: Model, seq_length: int) -> dict[str, Any]:
    position = model.position_embedding_type
    if position not in _POSITIONS:
        rule = f"is not in Megatron-LM {VERSION}, which has {', '.join(_POSITIONS)}"
        raise bad_value("position_embedding_type", position, rule, "this model cannot be exported")
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "seq_length": seq_length,
        "max_position_embeddings": max(seq_length, model.max_position_embeddings),
        "position_embedding_type": position,
        "rotary_base": math.floor(model.rotary_base) if position == "rope" else None,
        "normalization": model.normalization,
        "layernorm_epsilon": model.norm_epsilon,
        "add_bias_linear": model.add_bias_linear,
        "untie_embeddings_and_output_weights": model.untie_embeddings_and_output_weights,
        "mtp_num_layers": model.mtp_num_layers or None,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def _attention(model: Model) -> dict[str, Any]:
    """Grouped-query or latent attention; MLA uses plain RoPE, whose fused kernel wants YaRN."""
    if model.kv_lora_rank:
        return {
            "multi_latent_attention": True,
            "q_lora_rank": model.q_lora_rank or None,
            "kv_lora_rank": model.kv_lora_rank,
            "qk_head_dim": model.qk_head_dim,
            "qk_pos_emb_head_dim": model.qk_pos_emb_head_dim,
            "v_head_dim": model.v_head_dim,
            "kv_channels": model.v_head_dim,
            "qk_layernorm": True,
            "rope_type": "rope",
            "apply_rope_fusion": False,
        }
    grouped = model.num_query_groups != model.num_attention_heads
    return {
        "kv_channels": model.kv_channels,
        "group_query_attention": grouped,
        "num_query_groups": model.num_query_groups if grouped else None,
        "add_qkv_bias": model.add_qkv_bias and not model.add_bias_linear,
        "qk_layernorm": model.qk_layernorm,
        "softmax_type": "learnable" if _has_sinks(model) else None,
        **_window(model),
    }


def _has_sinks(model: Model) -> bool:
    """One extra parameter a head and layer is an attention sink, and nothing else is."""
    return model.extra_parameters == model.num_layers * model.num_attention_heads


def _window(model: Model) -> dict[str, Any]:
    """Sliding window: a span of w tokens is the token itself and w - 1 to its left."""
    full_share = 1 - model.window_layers_fraction
    if not model.window_size or full_share >= 1:
        return {}
    every = round(1 / full_share) if full_share > 0 else 0
    if every and not math.isclose(1 / full_share, every, rel_tol=0.05):
        rule = "is not (n - 1) / n, one full-attention layer after n - 1 windowed ones"
        raise bad_value("window_layers_fraction", model.window_layers_fraction, rule)
    return {
        "window_size": f"{model.window_size - 1},0",
        "window_attn_skip_freq": every or None,
    }


def _mlp(model: Model) -> dict[str, Any]:
    """The activation. GPT-OSS, the family with sinks, clamps its gated unit and shifts one half.

    Source: openai/gpt-oss gpt_oss/torch/model.py `swiglu`; NVIDIA-NeMo/Megatron-Bridge@067f987
    models/gpt_oss/gpt_oss_bridge.py.
    """
    activation, gated, bias = model.activation, model.gated_linear_unit, model.add_bias_linear
    if gated and (activation in _QUICK_GEGLU or (activation == "silu" and _has_sinks(model))):
        limits = {"glu_linear_offset": 1.0, "activation_func_clamp_value": 7.0}
        return {"quick_geglu": True, **limits, "bias_gelu_fusion": bias}
    known: dict[tuple[str, bool], dict[str, Any]] = {
        ("silu", True): {"swiglu": True},
        ("gelu", False): {"bias_gelu_fusion": bias},
        ("squared_relu", False): {"squared_relu": True, "bias_gelu_fusion": False},
    }
    if (activation, gated) in known:
        return known[activation, gated]
    have = "gelu, squared_relu, gated silu and gated quick_gelu"
    rule = f"is not in Megatron-LM {VERSION}, which has {have}"
    shown = f"gated {activation}" if gated else activation
    raise bad_value("activation", shown, rule, "this model cannot be exported")


def _experts(model: Model) -> dict[str, Any]:
    """Dropless experts with the all-to-all dispatcher.

    A router bias without linear biases is DeepSeek-V3's balancing bias, on sigmoid scores.
    """
    if not model.num_moe_experts:
        return {}
    dense, moe = model.moe_first_dense_layers, model.moe_layers
    balancing_bias = model.moe_router_bias and not model.add_bias_linear
    return {
        "num_moe_experts": model.num_moe_experts,
        "moe_router_topk": model.moe_router_topk,
        "moe_ffn_hidden_size": model.moe_ffn_hidden_size,
        "moe_shared_expert_intermediate_size": model.moe_shared_expert_intermediate_size or None,
        "moe_layer_freq": f"([0]*{dense}+[1]*{moe})" if dense else None,
        "moe_grouped_gemm": True,
        "moe_permute_fusion": True,
        "moe_token_dispatcher_type": "alltoall",
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "seq_aux_loss" if balancing_bias else "aux_loss",
        "moe_aux_loss_coeff": 1e-4 if balancing_bias else 1e-2,
        "moe_router_pre_softmax": model.moe_router_topk == 1 and not balancing_bias,
        "moe_router_score_function": "sigmoid" if balancing_bias else None,
        "moe_router_enable_expert_bias": balancing_bias,
        "moe_router_num_groups": model.moe_router_num_groups or None,
        "moe_router_group_topk": model.moe_router_group_topk or None,
    }
