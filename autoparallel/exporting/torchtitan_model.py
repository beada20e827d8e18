"""What a model is in torchtitan: a family of its model zoo, and the arguments of that family.

Source: pytorch/torchtitan v0.2.2 torchtitan/models/{llama3,qwen3,deepseek_v3}/model/args.py and
torchtitan/models/moe/moe.py.
"""

from __future__ import annotations

from typing import Any

from autoparallel.errors import bad_value
from autoparallel.model import Model

LLAMA_3_BASE = 500_000.0
"""Rotary base of the Llama 3 family, whose rotary scaling torchtitan's `llama3` always applies."""


def family_arguments(model: Model, version: str) -> tuple[str, dict[str, Any]]:
    """The family and its `ModelArgs`, expert arguments under `moe_args`.

    Raises:
        ConfigError: an architecture that no family has.
    """
    _refuse(model, version)
    if model.kv_lora_rank:
        return "deepseek_v3", _deepseek(model, version)
    if _is_llama_3(model):
        return "llama3", _llama(model)
    return "qwen3", _qwen(model, version)


def _refuse(model: Model, version: str) -> None:
    wanted: dict[str, Any] = {
        "normalization": "RMSNorm",
        "activation": "silu",
        "gated_linear_unit": True,
        "position_embedding_type": "rope",
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "window_size": 0,
        "mtp_num_layers": 0,
    }
    for name, value in wanted.items():
        if getattr(model, name) != value:
            rule = f"is in none of its families; {version} has {name} {value!r}"
            hint = "take another exporter"
            if name == "mtp_num_layers":
                hint = "search with model.mtp_num_layers=0 to train without, or take another"
            raise bad_value(f"{model.name}.{name}", getattr(model, name), rule, hint)


def _is_llama_3(model: Model) -> bool:
    plain = not model.num_moe_experts and not model.qk_layernorm
    head = model.hidden_size == model.kv_channels * model.num_attention_heads
    untied = model.untie_embeddings_and_output_weights
    return plain and head and untied and model.rotary_base == LLAMA_3_BASE


def _common(model: Model) -> dict[str, Any]:
    return {
        "dim": model.hidden_size,
        "n_layers": model.num_layers,
        "n_heads": model.num_attention_heads,
        "vocab_size": model.vocab_size,
        "norm_eps": model.norm_epsilon,
        "rope_theta": model.rotary_base,
        "attn_type": "sdpa",
    }


def _llama(model: Model) -> dict[str, Any]:
    """Its MLP is 8/3 wide times a factor, rounded up to a multiple: the multiple is the width."""
    return _common(model) | {
        "n_kv_heads": model.num_query_groups,
        "multiple_of": model.ffn_hidden_size,
        "ffn_dim_multiplier": model.ffn_hidden_size / (8 * model.hidden_size / 3) / 2,
    }


def _qwen(model: Model, version: str) -> dict[str, Any]:
    found = _common(model) | {
        "n_kv_heads": model.num_query_groups,
        "head_dim": model.kv_channels,
        "hidden_dim": model.ffn_hidden_size,
        "qk_norm": model.qk_layernorm,
        "enable_weight_tying": not model.untie_embeddings_and_output_weights,
    }
    if not model.num_moe_experts:
        return found
    for name in ("moe_first_dense_layers", "moe_shared_expert_intermediate_size"):
        if getattr(model, name):
            rule = f"is only in the latent-attention family of {version}"
            raise bad_value(f"{model.name}.{name}", getattr(model, name), rule)
    return found | {
        "moe_enabled": True,
        "moe_inter_dim": model.moe_ffn_hidden_size,
        "moe_args": {**_routing(model), "num_shared_experts": 0, "score_func": "softmax"},
    }


def _deepseek(model: Model, version: str) -> dict[str, Any]:
    shared, rest = divmod(model.moe_shared_expert_intermediate_size, model.moe_ffn_hidden_size or 1)
    if rest or not model.num_moe_experts or not model.untie_embeddings_and_output_weights:
        rule = f"is not the latent-attention family of {version}: untied embeddings, experts, and a"
        rule += " shared expert of whole experts' width"
        raise bad_value("model", model.name, rule)
    return _common(model) | {
        "inter_dim": model.ffn_hidden_size,
        "moe_inter_dim": model.moe_ffn_hidden_size,
        "n_dense_layers": model.moe_first_dense_layers,
        "q_lora_rank": model.q_lora_rank,
        "kv_lora_rank": model.kv_lora_rank,
        "qk_nope_head_dim": model.qk_head_dim,
        "qk_rope_head_dim": model.qk_pos_emb_head_dim,
        "v_head_dim": model.v_head_dim,
        "moe_args": {
            **_routing(model),
            "num_shared_experts": shared,
            "score_func": "sigmoid" if model.moe_router_bias else "softmax",
        },
    }


def _routing(model: Model) -> dict[str, Any]:
    return {
        "num_experts": model.num_moe_experts,
        "top_k": model.moe_router_topk,
        "route_norm": True,
        "score_before_experts": False,
        "num_expert_groups": model.moe_router_num_groups or None,
        "num_limited_groups": model.moe_router_group_topk or None,
    }
