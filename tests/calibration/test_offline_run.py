"""What a figure without a concurrency was measured with, by the tool's own rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoparallel.calibration.offline_run import DRIVER_BYTES, offline_limits, requests_sent
from autoparallel.calibration.serving_cases import instance_of, predicted, understood_serving
from autoparallel.inference import Instance
from autoparallel.measured.serving_rows import ServingRun

PUBLISHED = {
    (128, 128): 30000,
    (128, 2048): 3000,
    (128, 4096): 1500,
    (1000, 2000): 1500,
    (2048, 128): 3000,
    (2048, 2048): 1500,
    (5000, 500): 1500,
    (1000, 1000): 3000,
    (500, 2000): 3000,
    (20000, 2000): 1000,
    (1024, 1024): 3000,
    (8192, 1024): 1500,
    (1024, 8192): 1500,
    (32768, 1024): 1000,
    (1024, 32768): 1000,
}
"""TensorRT-LLM perf-overview 1.0 and 1.2, tables of requests."""


def reading(**changes):
    values = {
        "framework_version": "TensorRT-LLM 1.0",
        "model": "Llama 3.1 8B",
        "gpu": "h100-sxm-80gb",
        "precision": "fp8",
        "tp": 1,
        "isl": 1000,
        "osl": 1000,
        "metric": "throughput_tok_s_total",
        "value": 1.0,
    }
    [found] = understood_serving([ServingRun(**values | changes)])[0]
    return found


def instance(found):
    return instance_of(found.case, [found])


def test_the_lengths_say_how_many_requests_a_run_has():
    lengths = np.array(list(PUBLISHED), dtype=float)
    assert requests_sent(*lengths.T).tolist() == list(PUBLISHED.values())


@pytest.mark.parametrize("lengths", PUBLISHED)
@pytest.mark.parametrize("gpu", ["h100-sxm-80gb", "b200-sxm-180gb"])
def test_a_step_holds_a_whole_prompt_beside_every_sequence(lengths, gpu):
    found = reading(gpu=gpu)
    limits = offline_limits(found.case, Instance(kv_element_bytes=1.0), *map(float, lengths))
    assert limits.max_num_tokens >= lengths[0] + limits.max_batch_size
    assert limits.max_num_tokens >= 2048
    assert limits.max_batch_size % 32 == 0
    assert 64 <= limits.max_batch_size <= 4096


def test_the_batch_limit_is_the_tools_own_reckoning():
    found = reading()
    limits = offline_limits(found.case, Instance(kv_element_bytes=1.0), 1000.0, 1000.0)
    bytes_of_one = 2 * 32 * 8 * 128 * 2000
    free = found.case.machine.memory_bytes + DRIVER_BYTES - 8.03e9
    assert limits.max_batch_size == 128 * np.ceil(0.95 * free / bytes_of_one / 128)


def test_the_tool_reckons_with_the_memory_that_the_driver_has():
    """GPT-OSS-20B, 1024/8192 on H100: 128.0 sequences of what CUDA reports, 129.2 of NVML's."""
    found = reading(model="gpt-oss-20b", precision="mxfp4", gpu="h100-sxm-80gb")
    limits = offline_limits(found.case, Instance(kv_element_bytes=2.0), 1024.0, 8192.0)
    assert limits.max_batch_size == 160


def test_models_with_experts_copy_their_attention_unless_the_row_says_how():
    moe = {"model": "Llama 4 Scout", "tp": 4}
    copied = instance(reading(**moe))
    assert (copied.tensor_model_parallel_size, copied.attention_data_parallel_size) == (1, 4)
    stated = instance(reading(**moe, notes="TEP4"))
    assert (stated.tensor_model_parallel_size, stated.attention_data_parallel_size) == (4, 1)
    dense = instance(reading(model="Llama 3.1 70B", tp=4))
    assert dense.tensor_model_parallel_size == 4
    loop = {"metric": "tpot_ms", "batch_or_concurrency": "8"}
    assert instance(reading(**moe, **loop)).attention_data_parallel_size == 1


def test_only_tensorrt_llm_without_a_concurrency_has_the_tools_limits():
    for changes in (
        {"framework_version": "vllm 0.12.0"},
        {"metric": "tpot_ms", "batch_or_concurrency": "8"},
    ):
        found = instance(reading(**changes))
        assert found.whole_prompts == found.coarse_graphs == 0
    assert instance(reading()).memory_fraction == 0.95


def test_gpt_oss_has_its_cache_in_fp8_on_blackwell_alone():
    rows = {g: reading(model="GPT-OSS-20B", gpu=g) for g in ("h100-sxm-80gb", "b200-sxm-180gb")}
    assert [r.kv_element_bytes for r in rows.values()] == [2.0, 1.0]


def test_a_figure_of_all_gpus_is_that_of_one_times_their_number():
    one = reading(tp=2, gpus=2, metric="tokens_s_per_gpu")
    both = replace(one, run=replace(one.run, metric="throughput_tok_s_total"))
    each, total = predicted([one])[0], predicted([both])[0]
    assert total == pytest.approx(2 * each)
