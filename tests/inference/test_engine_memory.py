"""What an engine holds before and beside its KV cache."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from settings_served import served

from autoparallel.inference import Instance
from autoparallel.inference.engine_memory import (
    COMMUNICATOR_BYTES,
    ServingMemory,
    cache_room_bytes,
    fits_probability,
    kv_capacity_sequences,
    kv_capacity_tokens,
    memory,
    weights_bytes,
)
from autoparallel.model import parameters

LLAMA = served("llama-3.1-70b")


def test_bf16_weights_of_one_gpu_are_two_bytes_a_parameter():
    assert weights_bytes(LLAMA, Instance()) == pytest.approx(2 * parameters(LLAMA.shape), rel=1e-6)


def test_embeddings_and_output_matrix_stay_in_bf16_when_the_layers_are_quantised():
    fp8 = served("llama-3.1-70b", "fp8")
    m = fp8.shape
    saved = weights_bytes(LLAMA, Instance()) - weights_bytes(fp8, Instance())
    in_layers = parameters(m) - 2 * m.V * m.h - (2 * m.L + 1) * m.h
    assert saved == pytest.approx(in_layers, rel=1e-6)


@pytest.mark.parametrize(
    "sizes",
    [
        {"tensor_model_parallel_size": np.array([1.0, 2.0, 4.0, 8.0])},
        {"pipeline_model_parallel_size": np.array([1.0, 2.0, 4.0, 8.0])},
    ],
)
def test_weights_fall_as_they_are_split(sizes):
    assert np.all(np.diff(weights_bytes(LLAMA, Instance(**sizes))) < 0)


def test_experts_are_split_over_all_copies_of_the_attention_and_attention_is_not():
    deepseek = served("deepseek-v3", "fp8")
    alone = weights_bytes(deepseek, Instance())
    copies = weights_bytes(deepseek, Instance(attention_data_parallel_size=8.0))
    m = deepseek.shape
    experts = m.L_moe * m.E * m.k * m.h * m.f_e
    assert alone - copies == pytest.approx(experts * 7 / 8, rel=1e-3)


def test_parts_add_up_and_leave_the_cache_apart():
    need = memory(LLAMA, Instance(tensor_model_parallel_size=8.0), 16.0, 5000.0)
    assert need.total == sum(getattr(need, f.name) for f in fields(ServingMemory))
    assert need.before_cache == pytest.approx(need.total - need.kv_bytes)


def test_a_gpu_of_several_also_holds_communicators():
    case = served("llama-3.1-8b")
    one, two = (memory(case, Instance(tensor_model_parallel_size=n), 1.0, 1.0) for n in (1.0, 2.0))
    assert one.context_bytes == case.backend.context_bytes
    assert two.context_bytes - one.context_bytes == COMMUNICATOR_BYTES


def test_capacity_is_in_whole_sequences_and_holds_what_it_says():
    tp8 = Instance(tensor_model_parallel_size=8.0)
    count = kv_capacity_sequences(LLAMA, tp8, 5000.0)
    assert count == np.floor(count) > 0
    assert kv_capacity_tokens(LLAMA, tp8, 5000.0) == count * 5000
    room = cache_room_bytes(LLAMA, tp8)
    assert memory(LLAMA, tp8, count, 5000.0).kv_bytes <= room
    assert memory(LLAMA, tp8, count + 1, 5000.0).kv_bytes > room


def test_a_model_that_does_not_fit_has_no_capacity_and_no_chance():
    assert kv_capacity_sequences(LLAMA, Instance(), 100.0) == 0
    assert fits_probability(LLAMA, Instance(), 1.0, 100.0) < 1e-3


def test_the_chance_to_fit_falls_with_the_batch_and_is_even_at_the_capacity():
    tp8 = Instance(tensor_model_parallel_size=8.0)
    full = kv_capacity_sequences(LLAMA, tp8, 500.0)
    chances = fits_probability(LLAMA, tp8, full * np.array([0.1, 0.9, 1.0, 1.5]), 500.0)
    assert np.all(np.diff(chances) <= 0)
    assert chances[2] == pytest.approx(0.5, abs=0.05)


def test_tensorrt_llm_gives_its_fraction_of_what_is_free_and_vllm_of_the_whole():
    trt = served("llama-3.1-8b", engine="tensorrt-llm")
    vllm = served("llama-3.1-8b")
    half, all_ = Instance(memory_fraction=0.5), Instance(memory_fraction=1.0)
    assert cache_room_bytes(trt, half) == pytest.approx(cache_room_bytes(trt, all_) / 2)
    lost = cache_room_bytes(vllm, all_) - cache_room_bytes(vllm, half)
    assert lost == pytest.approx(vllm.machine.memory_bytes / 2)
