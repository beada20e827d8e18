from __future__ import annotations

import numpy as np
import pytest
from cases import DENSE, MOE, SMALL_CLUSTER

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.inference import backend
from autoparallel.inference.space import RULES, ServingSpace, held, replicas

SPACE = ServingSpace(max_batch_size=(1, 8, 64), max_num_tokens=(2048, 8192))


def found(model=DENSE, name="vllm", space=SPACE, gpus=16, precision="bf16", **given):
    asked = {"kv_dtypes": ("bf16",), "input_tokens": 1000} | given
    return replicas(space, model, SMALL_CLUSTER, backend(name), precision, gpus=gpus, **asked)


@pytest.mark.parametrize("model", [DENSE, MOE])
@pytest.mark.parametrize("name", ["vllm", "sglang", "tensorrt-llm"])
def test_whatever_is_not_a_row_is_counted_with_its_rule(model, name):
    of = found(model, name)
    assert of.considered == of.size + sum(of.pruned.values())
    assert of.pruned.keys() <= {*RULES, "max_num_tokens", "max_batch_size"}


@pytest.mark.parametrize("name", ["vllm", "sglang", "tensorrt-llm"])
def test_every_row_can_be_started(name):
    of = found(MOE, name)
    i = of.instance
    stage = i.tensor_model_parallel_size * i.attention_data_parallel_size
    ep = i.expert_model_parallel_size
    assert np.all(of.count * i.gpus <= 16)
    assert np.all(of.count >= 1)
    assert np.all(MOE.num_attention_heads % i.tensor_model_parallel_size == 0)
    assert np.all(MOE.num_moe_experts % ep == 0)
    assert np.all(stage % ep == 0)
    assert np.all(i.max_batch_size * i.pipeline_model_parallel_size <= i.max_num_tokens)
    if name == "vllm":
        assert np.all((ep == 1) | (ep == stage))
    if name == "tensorrt-llm":
        assert np.all((i.attention_data_parallel_size == 1) | (i.tensor_model_parallel_size == 1))


def test_a_dense_model_has_neither_experts_nor_copies_of_its_attention():
    i = found(DENSE).instance
    assert set(i.expert_model_parallel_size) == set(i.attention_data_parallel_size) == {1.0}


def test_blocks_of_128_are_not_cut():
    allowed = set(found(DENSE, precision="fp8-blockwise").instance.tensor_model_parallel_size)
    assert allowed == {tp for tp in (1.0, 2.0, 4.0, 8.0) if 14336 % (tp * 128) == 0}


def test_a_larger_budget_than_any_step_needs_is_no_candidate():
    assert set(found(input_tokens=1000).instance.max_num_tokens) == {2048.0}
    assert set(found(input_tokens=5000).instance.max_num_tokens) == {2048.0, 8192.0}


def test_limits_above_what_the_load_fills_are_no_candidates():
    of = found(gpus=8, load=8.0)
    one = of.instance.gpus == 8
    assert set((of.instance.max_batch_size * of.instance.pipeline_model_parallel_size)[one]) == {
        1.0,
        8.0,
    }


def test_replicas_are_packed_into_nodes():
    sizes = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    assert held(20, sizes, 8).tolist() == [20, 10, 5, 2, 1]
    assert held(6, np.array([4.0]), 8).tolist() == [1]
    assert held(12, np.array([4.0]), 6).tolist() == [2]


def test_the_shipped_space_reads_and_a_wrong_one_does_not():
    ServingSpace.from_mapping(catalog.entry("space", "serving"))
    for values in (
        {"max_batch": [1]},
        {"max_batch_size": "auto"},
        {"max_num_tokens": []},
        {"tensor_model_parallel_size": [0]},
        {"tensor_model_parallel_size": [True]},
    ):
        with pytest.raises(ConfigError):
            ServingSpace.from_mapping(values)
