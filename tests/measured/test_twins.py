"""Names as sources spell them find the catalog's model; widths decide, depth may be a slice's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoparallel import catalog
from autoparallel.measured.cases import read
from autoparallel.measured.rows import MeasuredRun
from autoparallel.measured.twins import catalog_twin

LLAMA = MeasuredRun(
    model="Llama3-70B",
    framework="Megatron-LM",
    num_layers=80,
    hidden_size=8192,
    num_attention_heads=64,
    num_query_groups=8,
    ffn_hidden_size=28672,
    swiglu=1,
    seq_length=8192,
    gpu="h100-sxm-80gb",
    num_gpus=64,
    tensor_model_parallel_size=4,
    pipeline_model_parallel_size=4,
    micro_batch_size=1,
    global_batch_size=128,
    iteration_s=1.0,
)
DEEPSEEK = replace(
    LLAMA,
    model="DeepSeek-V3",
    num_layers=61,
    hidden_size=7168,
    num_attention_heads=128,
    num_query_groups=128,
    ffn_hidden_size=2048,
    num_moe_experts=256,
    moe_router_topk=8,
)


@pytest.mark.parametrize(
    ("printed", "layers", "widths", "twin"),
    [
        ("Llama3-70B", 80, {}, "llama-3.1-70b"),
        ("llama-3.1-70b", 80, {}, "llama-3.1-70b"),
        (
            "Nemotron3-22B(2023)",
            40,
            {"hidden_size": 6144, "num_attention_heads": 48, "ffn_hidden_size": 24576},
            "nemotron-3-22b",
        ),
        (
            "Megatron-GPT-22B",
            48,
            {"hidden_size": 6144, "num_attention_heads": 64, "ffn_hidden_size": None},
            "megatron-22b",
        ),
    ],
)
def test_a_printed_name_finds_its_model(printed, layers, widths, twin):
    found = catalog_twin(replace(LLAMA, model=printed, num_layers=layers, **widths))
    assert found is not None
    assert found.name == twin


@pytest.mark.parametrize(
    "other",
    [
        {"hidden_size": 4096},
        {"num_attention_heads": 32},
        {"ffn_hidden_size": 22016},
        {"model": "Qwen-70B"},
        {"model": ""},
        {"model": "70"},
    ],
)
def test_another_width_or_name_is_another_model(other):
    found = catalog_twin(replace(LLAMA, **other))
    assert found is None or other == {"model": "70"}


def test_a_row_without_experts_stays_dense():
    dense = replace(DEEPSEEK, num_moe_experts=None, moe_router_topk=None, ffn_hidden_size=18432)
    assert read(dense).model.moe_shared_expert_intermediate_size == 0


def test_what_a_row_does_not_state_comes_from_its_twin():
    assert read(LLAMA).model.vocab_size == 128_256
    assert read(replace(LLAMA, vocab_size=32_000)).model.vocab_size == 32_000
    assert not read(LLAMA).vocabulary_stated


def test_a_slice_keeps_its_layers_attention_but_not_the_ends_of_the_whole():
    whole, few = read(DEEPSEEK).model, read(replace(DEEPSEEK, num_layers=4)).model
    known = catalog.model("deepseek-v3")
    for model in (whole, few):
        assert model.kv_lora_rank == known.kv_lora_rank
        assert model.moe_shared_expert_intermediate_size == 2048
        assert model.ffn_hidden_size == known.ffn_hidden_size
    assert (whole.moe_first_dense_layers, whole.mtp_num_layers) == (3, 1)
    assert (few.moe_first_dense_layers, few.mtp_num_layers) == (0, 0)
    assert few.num_layers == 4
