"""Hugging Face `config.json` to `Model`.

One function an architecture family, each from Hugging Face's field names to Megatron's. A field
that is missing, of the wrong type, or that would change the architecture in a way this package does
not model, is a `CatalogError` that names it. Source of the names: huggingface/transformers
`src/transformers/models/*/configuration_*.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoparallel.catalog_schema import model_record
from autoparallel.errors import CatalogError, nearest
from autoparallel.model import Model
from autoparallel.strict_yaml import Rule, catalog_error, refuse_code

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "relu2": "squared_relu",
    "quick_gelu": "quick_gelu",
}
_COUNT = Rule(kind=int, least=0, most=1e9)
_SIZED = re.compile(
    r"expert|lora|_rank$|(?:^|_)(?:num|n)_|_(?:size|dim|layers|heads|freq|step)s?$|^d_"
)
_HARMLESS = (
    "chunk_size_feed_forward",
    "encoder_no_repeat_ngram_size",
    "ep_size",
    "max_window_layers",
    "n_ctx",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "qk_head_dim",
)
"""Fields that look like a size but change the parameters of no family here."""


@dataclass(slots=True)
class _Config:
    """A config being read: typed access, and which fields were looked at."""

    values: Mapping[str, object]
    seen: set[str] = field(default_factory=set)

    def get(self, *keys: str) -> object:
        """The first of `keys` that is there and not null."""
        self.seen.update(keys)
        return next((self.values[k] for k in keys if self.values.get(k) is not None), None)

    def integer(self, *keys: str, default: int | None = None) -> int:
        """A whole number; without a default it must be there."""
        value = self.get(*keys)
        if value is None and default is None:
            raise CatalogError(f"{keys[0]}: missing from the Hugging Face config; add it")
        return int(_COUNT.read(keys[0], default if value is None else value))

    def number(self, *keys: str, default: float) -> float:
        """A real number."""
        value = self.get(*keys)
        return float(Rule(most=1e12).read(keys[0], default if value is None else value))

    def flag(self, key: str, default: bool) -> bool:
        """A true or false."""
        value = self.get(key)
        return bool(Rule(kind=bool).read(key, default if value is None else value))

    def activation(self, *keys: str, default: str) -> str:
        """The activation function by our name."""
        value = self.get(*keys)
        text = Rule(kind=str, choices=_ACTIVATIONS).read(
            keys[0], default if value is None else value
        )
        return _ACTIVATIONS[text]

    def must_be(self, key: str, *allowed: object) -> None:
        """Refuse a value of `key` whose meaning is not modelled; absent is fine."""
        value = self.get(key)
        if value is not None and value not in allowed:
            shown = " or ".join(map(repr, allowed))
            raise catalog_error(key, value, f"is not modelled; only {shown} is")


_Fields = dict[str, Any]


def from_hf_config(config: Mapping[str, object], name: str = "config") -> Model:
    """The model that a Hugging Face `config.json` describes.

    Args:
        config: The parsed JSON object.
        name: What to call the model.

    Raises:
        CatalogError: an architecture or field that is missing, malformed or not modelled.
    """
    if not isinstance(config, Mapping):
        raise catalog_error("config", config, "is not a JSON object")
    refuse_code(dict(config), name)
    reader = _Config(config)
    architecture = _architecture(reader)
    fields = _READERS[architecture](reader)
    _refuse_unread(reader, architecture)
    return model_record(name, fields)


def _architecture(c: _Config) -> str:
    listed = c.get("architectures")
    first = listed[0] if isinstance(listed, list) and listed else None
    known = _BY_TYPE.get(str(c.get("model_type")))
    word = first if isinstance(first, str) else known
    if word is None:
        raise CatalogError(
            "architectures: missing from the Hugging Face config; add "
            f'"architectures": ["LlamaForCausalLM"], {nearest("", _READERS)}'
        )
    if word not in _READERS:
        # A similar name is a different model: say what is known, not what is nearest.
        hint = f"{nearest('', _READERS)}; or describe it in a YAML file of Megatron's field names"
        raise catalog_error("architectures", word, "is not a modelled architecture", hint)
    return word


def _refuse_unread(c: _Config, architecture: str) -> None:
    """A sized field that was not read would silently be a different model."""
    for key, value in c.values.items():
        idle = value is None or value is False or value in (0, [], {}, "")
        if key in c.seen or key in _HARMLESS or idle or key.startswith("_"):
            continue
        if _SIZED.search(key) and isinstance(value, int | float) and not isinstance(value, bool):
            hint = "remove it if it does not change the parameters"
            raise catalog_error(key, value, f"is not a known field of {architecture}", hint)


def _rope(c: _Config) -> float:
    """Rotary base, at the top level or inside `rope_parameters`."""
    inner = c.get("rope_parameters")
    nested = inner.get("rope_theta") if isinstance(inner, dict) else None
    default = Rule(least=1.0, most=1e12).read("rope_theta", 10_000.0 if nested is None else nested)
    return c.number("rope_theta", default=default)


def _decoder(c: _Config) -> _Fields:
    """What all Llama-like families share: RMSNorm, gated MLP, rotary positions, grouped queries."""
    heads, hidden = c.integer("num_attention_heads"), c.integer("hidden_size")
    fields: _Fields = {
        "num_layers": c.integer("num_hidden_layers"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_query_groups": c.integer("num_key_value_heads", default=heads),
        "ffn_hidden_size": c.integer("intermediate_size"),
        "vocab_size": c.integer("vocab_size"),
        "activation": c.activation("hidden_act", default="silu"),
        "norm_epsilon": c.number("rms_norm_eps", default=1e-6),
        "untie_embeddings_and_output_weights": not c.flag("tie_word_embeddings", False),
        "rotary_base": _rope(c),
        "max_position_embeddings": c.integer("max_position_embeddings", default=0),
    }
    if head_dim := c.integer("head_dim", default=0):
        fields["kv_channels"] = head_dim
    return fields


def _llama(c: _Config) -> _Fields:
    fields = _decoder(c)
    bias, mlp_bias = c.flag("attention_bias", False), c.flag("mlp_bias", False)
    if bias != mlp_bias:
        rule = "differs from mlp_bias; one without the other is not modelled here"
        raise catalog_error("attention_bias", bias, rule)
    return fields | {"add_bias_linear": bias}


def _windowed(c: _Config) -> _Fields:
    """Sliding windows on all layers, as Mistral has them."""
    window = c.integer("sliding_window", default=0)
    return {"window_size": window, "window_layers_fraction": 1.0} if window else {}


def _mistral(c: _Config) -> _Fields:
    fields = _decoder(c)
    return fields | _windowed(c)


def _mixtral(c: _Config) -> _Fields:
    fields = _decoder(c)
    return fields | _windowed(c) | _experts(c, "num_local_experts", "intermediate_size")


def _experts(c: _Config, count: str, width: str) -> _Fields:
    return {
        "num_moe_experts": c.integer(count),
        "moe_router_topk": c.integer("num_experts_per_tok", "experts_per_token"),
        "moe_ffn_hidden_size": c.integer(width),
    }


def _qwen2(c: _Config) -> _Fields:
    c.must_be("use_sliding_window", False)
    c.get("sliding_window", "max_window_layers", "layer_types")
    return _decoder(c) | {"add_qkv_bias": True}


def _qwen3(c: _Config) -> _Fields:
    c.must_be("use_sliding_window", False)
    c.must_be("attention_bias", False)
    c.get("sliding_window", "max_window_layers", "layer_types")
    fields = _decoder(c)
    fields.setdefault("kv_channels", 128)
    return fields | {"qk_layernorm": True}


def _qwen3_moe(c: _Config) -> _Fields:
    c.must_be("decoder_sparse_step", 1)
    c.must_be("mlp_only_layers", [])
    return _qwen3(c) | _experts(c, "num_experts", "moe_intermediate_size")


def _deepseek_v3(c: _Config) -> _Fields:
    c.must_be("moe_layer_freq", 1)
    c.must_be("attention_bias", False)
    fields = _decoder(c)
    expert = c.integer("moe_intermediate_size")
    latent = {
        "q_lora_rank": c.integer("q_lora_rank", default=0),
        "kv_lora_rank": c.integer("kv_lora_rank"),
        "qk_head_dim": c.integer("qk_nope_head_dim"),
        "qk_pos_emb_head_dim": c.integer("qk_rope_head_dim"),
        "v_head_dim": c.integer("v_head_dim"),
        "kv_channels": c.integer("v_head_dim"),
    }
    return (
        fields
        | latent
        | _experts(c, "n_routed_experts", "moe_intermediate_size")
        | {
            "moe_shared_expert_intermediate_size": expert
            * c.integer("n_shared_experts", default=0),
            "moe_first_dense_layers": c.integer("first_k_dense_replace", default=0),
            "moe_router_bias": True,
            **_expert_groups(c),
            "mtp_num_layers": c.integer("num_nextn_predict_layers", default=0),
        }
    )


def _expert_groups(c: _Config) -> _Fields:
    """Of how many groups of experts a token chooses; one group, or `greedy`, is no limit."""
    groups, chosen = c.integer("n_group", default=1), c.integer("topk_group", default=1)
    if groups <= 1 or c.get("topk_method") == "greedy":
        return {}
    return {"moe_router_num_groups": groups, "moe_router_group_topk": chosen}


def _deepseek_v2(c: _Config) -> _Fields:
    return _deepseek_v3(c) | {"moe_router_bias": False, "mtp_num_layers": 0}


def _gpt_oss(c: _Config) -> _Fields:
    c.must_be("attention_bias", True)
    fields = _decoder(c) | _experts(c, "num_local_experts", "intermediate_size")
    window = c.integer("sliding_window", default=0)
    kinds = c.get("layer_types")
    sliding = kinds.count("sliding_attention") if isinstance(kinds, list) and kinds else 0
    sinks = fields["num_layers"] * fields["num_attention_heads"]
    fraction = sliding / len(kinds) if isinstance(kinds, list) and kinds else 0.5
    return fields | {
        "kv_channels": fields.get("kv_channels", 64),
        "add_bias_linear": True,
        "moe_router_bias": True,
        "extra_parameters": sinks,
        "window_size": window,
        "window_layers_fraction": fraction if window else 0.0,
    }


_PLAIN: _Fields = {
    "normalization": "LayerNorm",
    "gated_linear_unit": False,
    "add_bias_linear": True,
}
"""What the GPT-2 descendants share: LayerNorm, biases, an MLP that is not gated."""


def _gpt2(c: _Config) -> _Fields:
    hidden = c.integer("n_embd", "hidden_size")
    positions = c.integer("n_positions", "max_position_embeddings", default=1024)
    return _PLAIN | {
        "num_layers": c.integer("n_layer", "num_hidden_layers"),
        "hidden_size": hidden,
        "num_attention_heads": c.integer("n_head", "num_attention_heads"),
        "ffn_hidden_size": c.integer("n_inner", default=4 * hidden),
        "vocab_size": c.integer("vocab_size"),
        "activation": c.activation("activation_function", default="gelu_new"),
        "norm_epsilon": c.number("layer_norm_epsilon", default=1e-5),
        "untie_embeddings_and_output_weights": not c.flag("tie_word_embeddings", True),
        "position_embedding_type": "learned_absolute",
        "max_position_embeddings": positions,
        "extra_parameters": positions * hidden,
    }


def _bloom(c: _Config) -> _Fields:
    hidden = c.integer("hidden_size", "n_embed")
    return _PLAIN | {
        "num_layers": c.integer("n_layer", "num_hidden_layers"),
        "hidden_size": hidden,
        "num_attention_heads": c.integer("n_head", "num_attention_heads"),
        "vocab_size": c.integer("vocab_size"),
        "activation": "gelu",
        "norm_epsilon": c.number("layer_norm_epsilon", default=1e-5),
        "untie_embeddings_and_output_weights": not c.flag("tie_word_embeddings", True),
        "position_embedding_type": "alibi",
        "max_position_embeddings": c.integer("seq_length", default=0),
        "extra_parameters": 2 * hidden,
    }


def _gpt_neox(c: _Config) -> _Fields:
    c.must_be("attention_bias", True)
    hidden = c.integer("hidden_size")
    return _PLAIN | {
        "num_layers": c.integer("num_hidden_layers"),
        "hidden_size": hidden,
        "num_attention_heads": c.integer("num_attention_heads"),
        "ffn_hidden_size": c.integer("intermediate_size"),
        "vocab_size": c.integer("vocab_size"),
        "activation": c.activation("hidden_act", default="gelu"),
        "norm_epsilon": c.number("layer_norm_eps", default=1e-5),
        "untie_embeddings_and_output_weights": not c.flag("tie_word_embeddings", False),
        "rotary_base": c.number("rotary_emb_base", default=10_000.0),
        "max_position_embeddings": c.integer("max_position_embeddings", default=0),
    }


def _nemotron(c: _Config) -> _Fields:
    fields = _llama(c)
    return fields | {
        "normalization": "LayerNorm",
        "norm_epsilon": c.number("norm_eps", default=1e-5),
        "gated_linear_unit": False,
        "activation": c.activation("hidden_act", default="relu2"),
    }


_READERS: dict[str, Callable[[_Config], _Fields]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "MixtralForCausalLM": _mixtral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "DeepseekV2ForCausalLM": _deepseek_v2,
    "DeepseekV3ForCausalLM": _deepseek_v3,
    "GptOssForCausalLM": _gpt_oss,
    "GPT2LMHeadModel": _gpt2,
    "BloomForCausalLM": _bloom,
    "GPTNeoXForCausalLM": _gpt_neox,
    "NemotronForCausalLM": _nemotron,
}
_BY_TYPE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "bloom": "BloomForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "nemotron": "NemotronForCausalLM",
}
