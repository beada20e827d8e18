"""Hugging Face configs: the same model as our own entries, and junk refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoparallel import catalog
from autoparallel.errors import CatalogError
from autoparallel.hf_config import from_hf_config
from autoparallel.model import Model, parameters

Config = dict[str, Any]


def _llama(layers: int, hidden: int, heads: int, groups: int, ffn: int, **more: Any) -> Config:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0",
        "bos_token_id": 1,
        "use_cache": True,
    } | more


def _llama2(*dims: int, **more: Any) -> Config:
    rest = {"vocab_size": 32_000, "max_position_embeddings": 4096, "pretraining_tp": 1}
    return _llama(*dims) | rest | {"rope_scaling": None} | more


def _llama31(*dims: int) -> Config:
    scaling = {"factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}
    rest = {"vocab_size": 128_256, "max_position_embeddings": 131_072, "rope_theta": 500_000.0}
    return _llama(*dims) | rest | {"mlp_bias": False, "rope_scaling": scaling}


def _mixtral(*dims: int, positions: int) -> Config:
    return _llama(*dims) | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": 32_000,
        "max_position_embeddings": positions,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
    }


def _qwen3(*dims: int, **more: Any) -> Config:
    return (
        _llama(*dims)
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "head_dim": 128,
            "vocab_size": 151_936,
            "max_position_embeddings": 40_960,
            "max_window_layers": 36,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000,
            "sliding_window": None,
            "use_sliding_window": False,
        }
        | more
    )


def _qwen3_moe(*dims: int, expert: int) -> Config:
    return _qwen3(*dims) | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": expert,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "router_aux_loss_coef": 0.001,
    }


def _gpt_oss(layers: int, experts: int) -> Config:
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "experts_per_token": 4,
        "num_experts_per_tok": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "max_position_embeddings": 131_072,
        "num_attention_heads": 64,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "num_local_experts": experts,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150_000,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "vocab_size": 201_088,
    }


def _nemotron(layers: int, hidden: int, heads: int, width: int) -> Config:
    return {
        "architectures": ["NemotronForCausalLM"],
        "model_type": "nemotron",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": width,
        "hidden_act": "relu2",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "vocab_size": 256_000,
    }


DEEPSEEK_V3: Config = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18_432,
    "kv_lora_rank": 512,
    "ep_size": 1,
    "max_position_embeddings": 163_840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000,
    "routed_scaling_factor": 2.5,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129_280,
}
BLOOM: Config = {
    "architectures": ["BloomForCausalLM"],
    "model_type": "bloom",
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "hidden_size": 14_336,
    "layer_norm_epsilon": 1e-5,
    "n_head": 112,
    "n_layer": 70,
    "offset_alibi": 100,
    "pretraining_tp": 4,
    "seq_length": 2048,
    "vocab_size": 250_880,
}
GPT2: Config = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "summary_type": "cls_index",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50_257,
}
NEOX: Config = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "hidden_act": "gelu_fast",
    "hidden_size": 6144,
    "intermediate_size": 24_576,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "num_attention_heads": 64,
    "num_hidden_layers": 44,
    "rotary_emb_base": 10_000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "vocab_size": 50_432,
}
QWEN25_7B = _llama(28, 3584, 28, 4, 18_944) | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "max_window_layers": 28,
    "sliding_window": 131_072,
    "use_sliding_window": False,
    "vocab_size": 152_064,
}
MISTRAL_7B = _llama(32, 4096, 32, 8, 14_336) | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 4096,
    "vocab_size": 32_000,
}
CODE_LLAMA = {"rope_theta": 1e6, "max_position_embeddings": 16_384}

CATALOG = {
    "llama-2-7b": _llama2(32, 4096, 32, 32, 11_008),
    "llama-2-13b": _llama2(40, 5120, 40, 40, 13_824),
    "llama-2-34b": _llama2(48, 8192, 64, 8, 22_016, **CODE_LLAMA),
    "llama-2-70b": _llama2(80, 8192, 64, 8, 28_672),
    "llama-3.1-8b": _llama31(32, 4096, 32, 8, 14_336),
    "llama-3.1-70b": _llama31(80, 8192, 64, 8, 28_672),
    "llama-3.1-405b": _llama31(126, 16_384, 128, 8, 53_248),
    "mixtral-8x7b": _mixtral(32, 4096, 32, 8, 14_336, positions=32_768),
    "mixtral-8x22b": _mixtral(56, 6144, 48, 8, 16_384, positions=65_536),
    "qwen3-8b": _qwen3(36, 4096, 32, 8, 12_288),
    "qwen3-32b": _qwen3(64, 5120, 64, 8, 25_600),
    "qwen3-30b-a3b": _qwen3_moe(48, 2048, 32, 4, 6144, expert=768),
    "qwen3-235b-a22b": _qwen3_moe(94, 4096, 64, 4, 12_288, expert=1536),
    "deepseek-v3": DEEPSEEK_V3,
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
    "nemotron-4-15b": _nemotron(32, 6144, 48, 128),
    "nemotron-4-340b": _nemotron(96, 18_432, 96, 192),
    "bloom-176b": BLOOM,
}
PUBLISHED = [
    (GPT2, 124_439_808),
    (GPT2 | {"n_embd": 1600, "n_head": 25, "n_layer": 48}, 1_557_611_200),
    (NEOX, 20_554_567_680),
    (QWEN25_7B, 7_615_616_512),
    (MISTRAL_7B, 7_241_732_096),
]
EVERY: list[Config] = [*CATALOG.values(), *(config for config, _ in PUBLISHED)]


def _bare(model: Model) -> Model:
    return replace(model, name="", training=None, source="", published_parameters=0.0)


@pytest.mark.parametrize("name", CATALOG)
def test_a_config_is_the_catalog_entry(name: str) -> None:
    ours, theirs = catalog.model(name), from_hf_config(CATALOG[name], name)
    assert parameters(theirs.shape(1)) == parameters(ours.shape(1))
    assert _bare(theirs) == _bare(ours)


@pytest.mark.parametrize(
    ("change", "groups", "chosen"),
    [
        ({}, 8, 4),
        ({"n_group": 1, "topk_group": 1}, 0, 0),
        ({"n_group": None, "topk_group": None}, 0, 0),
        ({"topk_method": "greedy"}, 0, 0),
    ],
)
def test_experts_of_a_few_groups(change: Config, groups: int, chosen: int) -> None:
    model = from_hf_config(DEEPSEEK_V3 | change)
    assert (model.moe_router_num_groups, model.moe_router_group_topk) == (groups, chosen)


@pytest.mark.parametrize(("config", "published"), PUBLISHED)
def test_a_config_has_the_published_size(config: Config, published: int) -> None:
    assert int(parameters(from_hf_config(config).shape(1))) == published


@pytest.mark.parametrize("config", EVERY)
def test_the_architecture_is_known_by_its_type_too(config: Config) -> None:
    anonymous = {key: value for key, value in config.items() if key != "architectures"}
    assert from_hf_config(anonymous) == from_hf_config(config)


def test_a_name_comes_from_the_file_or_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GPT2), encoding="utf-8")
    (folder / "small.json").write_text(json.dumps(GPT2), encoding="utf-8-sig")
    assert catalog.model(folder / "config.json").name == "My-Model"
    assert catalog.model(folder).name == "My-Model"
    assert catalog.model(str(folder / "small.json")).name == "small"
    assert catalog.model(folder).training is None


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "",
        "{",
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        '{"a": -Infinity}',
        "[" * 100_000,
        "\x00",
        '{"n": ' + "9" * 5000 + "}",
        '{"vocab_size": 1e999}',
        "nul",
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CatalogError):
        catalog.model(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["LamaForCausalLM"]}, "known: .*LlamaForCausalLM"),
        ({"architectures": None, "model_type": None}, "architectures: missing"),
        ({"hidden_size": None}, "hidden_size: missing"),
        ({"hidden_size": "4096"}, "hidden_size: '4096' is not an integer"),
        ({"hidden_size": True}, "is not an integer"),
        ({"hidden_size": -5}, "is not in 0 to"),
        ({"hidden_size": 10**400}, "huge integer"),
        ({"hidden_size": 100}, "is not a multiple of 32"),
        ({"num_hidden_layers": 0}, "is not in 1 to"),
        ({"num_key_value_heads": 5}, "does not divide"),
        ({"num_experts": 8}, "num_experts: 8 is not a known field"),
        ({"kv_lora_rank": 512}, "kv_lora_rank: 512 is not a known field"),
        ({"hidden_act": "selu"}, "did you mean 'silu'"),
        ({"tie_word_embeddings": "no"}, "is not true or false"),
        ({"rope_theta": float("nan")}, "finite"),
        ({"attention_bias": True}, "differs from mlp_bias"),
        ({"_target_": "os.system"}, "data, not code"),
    ],
)
def test_a_bad_field_is_named(change: Config, says: str) -> None:
    with pytest.raises(CatalogError, match=says):
        from_hf_config(CATALOG["llama-3.1-8b"] | change)


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        (CATALOG["qwen3-30b-a3b"], {"decoder_sparse_step": 2}, "decoder_sparse_step: 2"),
        (CATALOG["qwen3-30b-a3b"], {"mlp_only_layers": [0]}, "mlp_only_layers"),
        (CATALOG["qwen3-30b-a3b"], {"num_experts_per_tok": 129}, "moe_router_topk"),
        (QWEN25_7B, {"use_sliding_window": True}, "use_sliding_window: True is not modelled"),
        (DEEPSEEK_V3, {"moe_layer_freq": 2}, "moe_layer_freq: 2"),
        (DEEPSEEK_V3, {"kv_lora_rank": None}, "kv_lora_rank: missing"),
        (CATALOG["gpt-oss-20b"], {"attention_bias": False}, "attention_bias: False"),
    ],
)
def test_what_is_not_modelled_is_named(config: Config, change: Config, says: str) -> None:
    with pytest.raises(CatalogError, match=says):
        from_hf_config(config | change)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)
_KEYS = sorted({key for config in EVERY for key in config})


def _model_or_catalog_error(config: Any) -> None:
    try:
        model = from_hf_config(config)
    except CatalogError:
        return
    assert parameters(model.shape(1)) > 0


@given(_JSON)
def test_any_json_gives_a_model_or_a_catalog_error(config: Any) -> None:
    _model_or_catalog_error(config)


@given(st.sampled_from(EVERY), st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=4))
def test_any_damage_gives_a_model_or_a_catalog_error(config: Config, damage: Config) -> None:
    _model_or_catalog_error(config | damage)


@given(st.sampled_from(EVERY), st.sampled_from(_KEYS))
def test_any_field_may_be_missing(config: Config, key: str) -> None:
    _model_or_catalog_error({k: v for k, v in config.items() if k != key})
