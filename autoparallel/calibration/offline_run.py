"""What `trtllm-bench throughput` does in NVIDIA's published runs: limits, mapping, requests.

A TensorRT-LLM figure without a concurrency is such a run. The tool works out the batch limit and
the token budget from the lengths, prompts are not split, CUDA graphs are few and padded, models
with experts copy the attention on every GPU, and the number of requests goes by the lengths.

Sources: TensorRT-LLM's perf-overview (1.0 and 1.2), sections on the dataset and on running the
benchmark; `tensorrt_llm/bench/build/tuning.py` and `bench/benchmark/utils/general.py`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autoparallel.inference import Instance, Setting
from autoparallel.inference.setting import FOUR_BIT, WEIGHT_BYTES
from autoparallel.model import attention_parameters, embedding_parameters, parameters
from autoparallel.units import GIB, Num

MEMORY_FRACTION = 0.95
"""Share of the free memory that goes to the KV cache in most of the runs."""
REQUESTS = ((256, 30000.0), (2999, 3000.0), (9999, 1500.0))
"""Prompt and answer tokens up to which a run has so many requests."""
FEWEST_REQUESTS = 1000.0
DRIVER_BYTES = 0.6 * GIB
"""Memory of a GPU by its driver, which the tool asks, over what CUDA has for itself: 79.65 GiB of
79.10 on H100, 140.40 of 139.80 on H200."""
MOST_SEQUENCES, MOST_TOKENS = 4096.0, 32768.0
"""Caps of the batch limit and the token budget."""
PARAMETER_BYTES = {"fp8": 1.0, "fp8-blockwise": 1.0, "nvfp4": 0.5}
"""Bytes of a parameter as the tool reckons; 2 for formats it does not know."""


def requests_sent(input_tokens: Num, output_tokens: Num) -> Num:
    """Requests of a run with these lengths."""
    tokens = np.asarray(input_tokens + output_tokens)
    steps = [tokens <= most for most, _ in REQUESTS]
    return np.select(steps, [n for _, n in REQUESTS], FEWEST_REQUESTS)


def offline_limits(
    case: Setting, instance: Instance, input_tokens: Num, output_tokens: Num
) -> Instance:
    """`instance` with the limits that the tool gives the engine for requests of these lengths."""
    sequences = _sequences(case, instance, input_tokens + output_tokens)
    sequences = np.minimum(sequences, MOST_SEQUENCES) / instance.pipeline_model_parallel_size
    tokens = np.minimum(sequences * (1.0 + input_tokens / output_tokens), MOST_TOKENS)
    grain = np.where(sequences < 256, 32.0, np.where(sequences < 1024, 128.0, 256.0))
    batch = np.maximum(np.ceil(sequences / grain) * grain, 64.0)
    grain = np.where(tokens < 4096, 256.0, np.where(tokens < 8192, 512.0, 1024.0))
    budget = np.maximum(np.ceil(tokens / grain) * grain, 2048.0)
    return replace(
        instance,
        max_batch_size=batch,
        max_num_tokens=np.maximum(budget, input_tokens + batch),
        memory_fraction=MEMORY_FRACTION + 0.0 * batch,
        whole_prompts=1.0 + 0.0 * batch,
        coarse_graphs=1.0 + 0.0 * batch,
    )


def _sequences(case: Setting, instance: Instance, tokens: Num) -> Num:
    """Sequences that fit into the memory of all GPUs beside the parameters, as the tool reckons."""
    m, gpus = case.shape, instance.gpus
    stage = instance.stage_gpus
    heads = np.maximum(m.g, stage)
    width = np.where(np.asarray(m.r_kv) > 0, m.r_kv + m.d_rope, heads * (m.d_qk + m.d_v))
    held = PARAMETER_BYTES.get(case.precision, 2.0) * _elements(case)
    free = (case.machine.memory_bytes + DRIVER_BYTES) * gpus - held
    return (
        np.maximum(free, GIB) * MEMORY_FRACTION / (m.L * width * instance.kv_element_bytes * tokens)
    )


def _elements(case: Setting) -> float:
    """Elements of the checkpoint's tensors: 4-bit weights lie two in a byte beside their scales."""
    m = case.shape
    whole = float(parameters(m))
    if case.precision not in FOUR_BIT:
        return whole
    wide = float(embedding_parameters(m))
    if case.attention_precision == "bf16":
        wide += float(m.L * attention_parameters(m))
    return wide + (whole - wide) * WEIGHT_BYTES[case.precision]
