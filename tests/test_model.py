"""Exact sizes and FLOPs of published models, and the laws of the formulas."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from autoparallel import catalog
from autoparallel.model import (
    Shape,
    active_parameters,
    attention_parameters,
    embedding_parameters,
    expert_parameters,
    flops_per_token,
    mlp_parameters,
    norm_parameters,
    parameters,
    router_and_shared_parameters,
)

EXACT = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-2-34b": 33_743_970_304,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "deepseek-v3": 671_026_419_200,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "bloom-176b": 176_247_271_424,
}
"""Parameters of the published checkpoints (Hugging Face)."""

PAPER_BILLIONS = {
    "megatron-1.7b": 1.7,
    "megatron-3.6b": 3.6,
    "megatron-7.5b": 7.5,
    "megatron-18b": 18.4,
    "megatron-39b": 39.1,
    "megatron-76b": 76.1,
    "megatron-145b": 145.6,
    "megatron-310b": 310.1,
    "megatron-530b": 529.6,
    "megatron-1t": 1008.0,
}
"""Table 1 of arXiv 2104.04473."""


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_those_of_the_published_checkpoint(name: str) -> None:
    model = catalog.model(name)
    assert int(parameters(model.shape(4096))) == EXACT[name] == model.published_parameters


@pytest.mark.parametrize("name", PAPER_BILLIONS)
def test_parameters_round_to_the_paper_table(name: str) -> None:
    billions = float(parameters(catalog.model(name).shape(2048))) / 1e9
    assert billions == pytest.approx(PAPER_BILLIONS[name], abs=0.0501)


PUBLISHED = [n for n in catalog.names("model") if catalog.model(n).published_parameters]
"""Models whose size is published to better than its name says."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_model_is_near_its_published_size(name: str) -> None:
    model = catalog.model(name)
    size = float(parameters(model.shape(2048)))
    assert size == pytest.approx(model.published_parameters, rel=0.03)


@pytest.mark.parametrize(
    ("name", "billions", "rel"),
    [
        ("deepseek-v3", 37.0, 0.02),
        ("mixtral-8x7b", 12.9, 0.01),
        ("mixtral-8x22b", 39.0, 0.01),
        ("qwen3-30b-a3b", 3.3, 0.02),
        ("qwen3-235b-a22b", 22.0, 0.02),
    ],
)
def test_active_parameters_of_mixtures(name: str, billions: float, rel: float) -> None:
    active = float(active_parameters(catalog.model(name).shape(4096)))
    assert active / 1e9 == pytest.approx(billions, rel=rel)


def test_active_parameters_of_a_dense_model_are_all_of_them() -> None:
    shape = catalog.model("gpt-175b").shape(2048)
    assert active_parameters(shape) == parameters(shape)


def test_flops_reproduce_the_published_rate_of_qwen3_30b() -> None:
    # NVIDIA-NeMo/Megatron-Bridge@067f987 docs/performance-summary-archive.md, 26.04.01, H100, fp8:
    # 8,960 tokens/s/GPU, 206 TFLOP/s/GPU.
    flops = float(flops_per_token(catalog.model("qwen3-30b-a3b").shape(4096)))
    assert flops * 8960 / 1e12 == pytest.approx(206, rel=0.01)


@pytest.mark.parametrize("name", ["gpt-175b", "megatron-22b", "megatron-1t", "gpt3-20b"])
def test_flops_of_a_gpt_are_the_closed_form_of_the_papers(name: str) -> None:
    # 72 L h^2 (1 + s/6h + V/12hL) of arXiv 2104.04473 section 5.1, attention halved for causality.
    m = catalog.model(name).shape(2048)
    closed = 72 * m.L * m.h**2 * (1 + m.s / (12 * m.h) + m.V / (12 * m.h * m.L))
    assert flops_per_token(m) == pytest.approx(closed, rel=1e-12)


def test_flops_without_attention_scores_are_six_per_matrix_parameter() -> None:
    # Everything a token is multiplied with: no norms, no input embedding, no unchosen experts.
    for name in ("llama-3.1-8b", "llama-3.1-405b", "mixtral-8x7b", "nemotron-4-340b"):
        m = catalog.model(name).shape(0)
        vectors = 2 * m.L * m.norm * m.h + m.norm * m.h
        router = m.L_moe * m.h * m.E
        matrices = active_parameters(m) - vectors - router - m.V * m.h
        assert flops_per_token(m) == pytest.approx(6 * matrices, rel=1e-9)


def test_a_prediction_layer_costs_a_layer_and_a_head() -> None:
    model = catalog.model("llama-3.1-8b")
    with_mtp = replace(model, mtp_num_layers=1).shape(0)
    plain = model.shape(0)
    longer = replace(model, num_layers=model.num_layers + 1).shape(0)
    h, vocab = plain.h, plain.V
    extra = flops_per_token(with_mtp) - flops_per_token(longer)
    assert extra == pytest.approx(6 * h * vocab + 6 * (3 * h + 2 * h * h), rel=1e-9)


def test_the_prediction_layer_of_deepseek_is_left_out_of_its_size() -> None:
    model = catalog.model("deepseek-v3")
    assert parameters(model.shape(1)) == parameters(replace(model, mtp_num_layers=0).shape(1))


def _columns() -> tuple[list[Shape], Shape]:
    shapes = [catalog.model(name).shape(2048) for name in catalog.names("model")]
    names = [f.name for f in fields(Shape)]
    columns = {n: np.array([float(getattr(s, n)) for s in shapes]) for n in names}
    return shapes, Shape(**columns)


@pytest.mark.parametrize(
    "formula",
    [
        parameters,
        active_parameters,
        flops_per_token,
        attention_parameters,
        mlp_parameters,
        expert_parameters,
        router_and_shared_parameters,
        norm_parameters,
        embedding_parameters,
    ],
)
def test_one_formula_serves_scalars_and_columns(formula: object) -> None:
    assert callable(formula)
    shapes, columns = _columns()
    rows = formula(columns)
    assert rows.shape == (len(shapes),)
    assert rows.tolist() == [float(formula(shape)) for shape in shapes]


def test_size_does_not_depend_on_the_sequence() -> None:
    model = catalog.model("llama-3.1-8b")
    assert parameters(model.shape(1)) == parameters(model.shape(131_072))


def test_tying_saves_one_embedding_table() -> None:
    model = catalog.model("llama-3.1-8b")
    tied = replace(model, untie_embeddings_and_output_weights=False)
    saved = parameters(model.shape(1)) - parameters(tied.shape(1))
    assert saved == model.vocab_size * model.hidden_size


def test_moe_layers_leave_out_the_leading_dense_ones() -> None:
    assert catalog.model("deepseek-v3").moe_layers == 58
    assert catalog.model("llama-3.1-8b").moe_layers == 0
