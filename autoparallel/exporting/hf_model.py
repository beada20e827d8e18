"""A model as a Hugging Face `config.json`: the way back of `autoparallel.hf_config`.

Reading what is written gives the same model, which a test holds. Source of the names:
huggingface/transformers v4.57 `src/transformers/models/*/configuration_*.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autoparallel.errors import bad_value
from autoparallel.model import Model

_Fields = dict[str, Any]


def hf_config(model: Model, seq_length: int) -> dict[str, Any]:
    """The `config.json` of `model`, with room for sequences of `seq_length` tokens.

    Raises:
        ConfigError: an architecture that no family of transformers has.
    """
    for fits, family, architecture, fields in _FAMILIES:
        if fits(model):
            return {
                "architectures": [architecture],
                "model_type": family,
                **fields(model, max(seq_length, model.max_position_embeddings)),
                "vocab_size": model.vocab_size,
                "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
                "bos_token_id": None,
                "eos_token_id": None,
                "torch_dtype": "bfloat16",
                "use_cache": False,
            }
    known = ", ".join(architecture for _, _, architecture, _ in _FAMILIES)
    rule = "is not an architecture of these in Hugging Face transformers: " + known
    raise bad_value("model", model.name, rule, "this model cannot be exported to it")


def _is_gated_decoder(m: Model) -> bool:
    """What the Llama-like families share."""
    rope = m.position_embedding_type == "rope" and m.normalization == "RMSNorm"
    return rope and m.gated_linear_unit and m.activation == "silu"


def _has_sinks(m: Model) -> bool:
    return m.extra_parameters == m.num_layers * m.num_attention_heads


def _is_plain(m: Model) -> bool:
    """A gated decoder without biases, windows, latent attention or prediction layers."""
    extras = m.add_bias_linear or m.window_size or m.kv_lora_rank or m.mtp_num_layers
    return _is_gated_decoder(m) and not extras


def _is_llama(m: Model) -> bool:
    gated = _is_gated_decoder(m) and not (m.window_size or m.kv_lora_rank or m.mtp_num_layers)
    odd = m.qk_layernorm or m.num_moe_experts or m.extra_parameters
    return gated and not odd and not (m.add_qkv_bias and not m.add_bias_linear)


def _is_mixtral(m: Model) -> bool:
    shared = m.moe_shared_expert_intermediate_size or m.moe_first_dense_layers
    same = m.moe_ffn_hidden_size == m.ffn_hidden_size
    return bool(_is_plain(m) and m.num_moe_experts and same) and not (
        m.qk_layernorm or shared or m.add_qkv_bias
    )


def _is_qwen3_moe(m: Model) -> bool:
    shared = m.moe_shared_expert_intermediate_size or m.moe_first_dense_layers
    return bool(_is_plain(m) and m.num_moe_experts and m.qk_layernorm) and not shared


def _is_qwen3(m: Model) -> bool:
    return _is_plain(m) and m.qk_layernorm and not m.num_moe_experts


def _is_qwen2(m: Model) -> bool:
    return _is_plain(m) and m.add_qkv_bias and not (m.num_moe_experts or m.qk_layernorm)


def _is_deepseek(m: Model) -> bool:
    return _is_latent(m) and m.moe_router_bias


def _is_deepseek_v2(m: Model) -> bool:
    return _is_latent(m) and not m.moe_router_bias and not m.mtp_num_layers


def _is_latent(m: Model) -> bool:
    experts = bool(m.num_moe_experts)
    whole = experts and m.moe_shared_expert_intermediate_size % m.moe_ffn_hidden_size == 0
    return _is_gated_decoder(m) and whole and bool(m.kv_lora_rank)


def _is_gpt_oss(m: Model) -> bool:
    return bool(_is_gated_decoder(m) and m.num_moe_experts and m.add_bias_linear and _has_sinks(m))


def _is_gpt2(m: Model) -> bool:
    plain = m.normalization == "LayerNorm" and not m.gated_linear_unit and m.activation == "gelu"
    learned = m.position_embedding_type == "learned_absolute" and m.add_bias_linear
    return plain and learned and m.num_query_groups == m.num_attention_heads


def _is_nemotron(m: Model) -> bool:
    plain = m.normalization == "LayerNorm" and not m.gated_linear_unit
    return plain and m.activation == "squared_relu" and m.position_embedding_type == "rope"


def _decoder(m: Model, positions: int) -> _Fields:
    return {
        "num_hidden_layers": m.num_layers,
        "hidden_size": m.hidden_size,
        "num_attention_heads": m.num_attention_heads,
        "num_key_value_heads": m.num_query_groups,
        "head_dim": m.kv_channels,
        "intermediate_size": m.ffn_hidden_size,
        "hidden_act": "silu",
        "rms_norm_eps": m.norm_epsilon,
        "rope_theta": m.rotary_base,
        "max_position_embeddings": positions,
    }


def _llama(m: Model, positions: int) -> _Fields:
    bias = m.add_bias_linear
    return _decoder(m, positions) | {"attention_bias": bias, "mlp_bias": bias}


def _mixtral(m: Model, positions: int) -> _Fields:
    experts = {"num_local_experts": m.num_moe_experts, "num_experts_per_tok": m.moe_router_topk}
    return _decoder(m, positions) | experts | {"sliding_window": None}


def _qwen3_moe(m: Model, positions: int) -> _Fields:
    return _decoder(m, positions) | {
        "attention_bias": False,
        "num_experts": m.num_moe_experts,
        "num_experts_per_tok": m.moe_router_topk,
        "moe_intermediate_size": m.moe_ffn_hidden_size,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _deepseek(m: Model, positions: int) -> _Fields:
    """DeepSeek-V3; one group where experts are chosen from any."""
    fields = _decoder(m, positions)
    del fields["head_dim"]  # there it is the rotary part, worked out from the rank's dimensions
    return fields | {
        "attention_bias": False,
        "q_lora_rank": m.q_lora_rank or None,
        "kv_lora_rank": m.kv_lora_rank,
        "qk_nope_head_dim": m.qk_head_dim,
        "qk_rope_head_dim": m.qk_pos_emb_head_dim,
        "v_head_dim": m.v_head_dim,
        "n_routed_experts": m.num_moe_experts,
        "num_experts_per_tok": m.moe_router_topk,
        "moe_intermediate_size": m.moe_ffn_hidden_size,
        "n_shared_experts": m.moe_shared_expert_intermediate_size // m.moe_ffn_hidden_size,
        "first_k_dense_replace": m.moe_first_dense_layers,
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": m.mtp_num_layers,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "n_group": m.moe_router_num_groups or 1,
        "topk_group": m.moe_router_group_topk or 1,
        "norm_topk_prob": True,
    }


def _deepseek_v2(m: Model, positions: int) -> _Fields:
    """DeepSeek-V2 chooses by groups, V2-Lite does not."""
    fields = _deepseek(m, positions) | {
        "topk_method": "group_limited_greedy" if m.moe_router_num_groups else "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
    }
    del fields["num_nextn_predict_layers"]
    return fields


def _gpt_oss(m: Model, positions: int) -> _Fields:
    windowed = round(m.window_layers_fraction * 2) == 1
    kinds = ["sliding_attention", "full_attention"] if windowed else ["full_attention"]
    return _decoder(m, positions) | {
        "attention_bias": True,
        "num_local_experts": m.num_moe_experts,
        "num_experts_per_tok": m.moe_router_topk,
        "sliding_window": m.window_size or None,
        "layer_types": [kinds[i % len(kinds)] for i in range(m.num_layers)],
    }


def _gpt2(m: Model, positions: int) -> _Fields:
    return {
        "n_layer": m.num_layers,
        "n_embd": m.hidden_size,
        "n_head": m.num_attention_heads,
        "n_inner": m.ffn_hidden_size,
        "n_positions": positions,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": m.norm_epsilon,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _nemotron(m: Model, positions: int) -> _Fields:
    fields = _llama(m, positions) | {"hidden_act": "relu2", "norm_eps": m.norm_epsilon}
    del fields["rms_norm_eps"]
    return fields


_FAMILIES: tuple[tuple[Callable[[Model], bool], str, str, Callable[[Model, int], _Fields]], ...] = (
    (_is_llama, "llama", "LlamaForCausalLM", _llama),
    (_is_qwen2, "qwen2", "Qwen2ForCausalLM", _decoder),
    (_is_qwen3, "qwen3", "Qwen3ForCausalLM", _decoder),
    (_is_mixtral, "mixtral", "MixtralForCausalLM", _mixtral),
    (_is_qwen3_moe, "qwen3_moe", "Qwen3MoeForCausalLM", _qwen3_moe),
    (_is_deepseek, "deepseek_v3", "DeepseekV3ForCausalLM", _deepseek),
    (_is_deepseek_v2, "deepseek_v2", "DeepseekV2ForCausalLM", _deepseek_v2),
    (_is_gpt_oss, "gpt_oss", "GptOssForCausalLM", _gpt_oss),
    (_is_gpt2, "gpt2", "GPT2LMHeadModel", _gpt2),
    (_is_nemotron, "nemotron", "NemotronForCausalLM", _nemotron),
)
"""Which models a family holds, its type, its class, its fields; the first that fits is taken."""
