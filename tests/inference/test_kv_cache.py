"""Bytes of the KV cache against published architectures."""

from __future__ import annotations

import numpy as np
import pytest
from settings_served import served

from autoparallel.inference import Instance
from autoparallel.inference.kv_cache import attended_tokens, kv_bytes, paged_tokens


@pytest.mark.parametrize(
    ("model", "element_bytes", "kib"),
    [
        ("llama-3.1-70b", 2.0, 320.0),
        ("llama-3.1-70b", 1.0, 160.0),
        ("llama-3.1-8b", 2.0, 128.0),
        ("qwen3-32b", 2.0, 256.0),
        ("deepseek-v3", 2.0, 68.625),
    ],
)
def test_bytes_of_a_token_are_those_of_the_architecture(model, element_bytes, kib):
    one = Instance(kv_element_bytes=element_bytes)
    assert kv_bytes(served(model), one, 1.0) == pytest.approx(kib * 1024)


def test_heads_are_split_until_there_is_one_and_then_copied():
    sizes = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    bytes_ = kv_bytes(served("llama-3.1-70b"), Instance(tensor_model_parallel_size=sizes), 1000.0)
    np.testing.assert_allclose(bytes_[0] / bytes_, [1, 2, 4, 8, 8])


def test_the_latent_cache_is_whole_on_every_gpu():
    deepseek = served("deepseek-v3", "fp8")
    split = kv_bytes(deepseek, Instance(tensor_model_parallel_size=8.0), 100.0)
    assert split == kv_bytes(deepseek, Instance(), 100.0)


def test_stages_hold_their_own_layers():
    halves = kv_bytes(served("llama-3.1-8b"), Instance(pipeline_model_parallel_size=2.0), 64.0)
    assert halves == kv_bytes(served("llama-3.1-8b"), Instance(), 64.0) / 2


def test_layers_with_a_window_stop_growing_at_it():
    m = served("gpt-oss-20b", "mxfp4").shape
    assert attended_tokens(m, 100.0) == 100.0
    assert attended_tokens(m, 1128.0) == pytest.approx((1128 + 128) / 2)


def test_a_sequence_takes_whole_blocks():
    np.testing.assert_array_equal(
        paged_tokens(served("llama-3.1-8b"), np.array([1.0, 16.0, 17.0])), [16, 16, 32]
    )
