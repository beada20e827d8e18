"""One engine replica: how its GPUs share the model, and how much it takes on at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoparallel.units import Num

COARSE_GRAPHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 1024, 2048, 4096, 8192)
"""Batch sizes of CUDA graphs in NVIDIA's throughput runs (TensorRT-LLM perf-overview, 1.0)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Instance:
    """Parallel sizes and limits of one replica; every field is a scalar or a column [N].

    Attributes:
        tensor_model_parallel_size: GPUs that split every attention layer (and every dense MLP).
        pipeline_model_parallel_size: Stages of layers.
        attention_data_parallel_size: Copies of the attention layers, each with its own sequences;
            the experts are shared by all of them.
        expert_model_parallel_size: GPUs that split the experts whole; the rest of the stage's
            tensor x attention-data GPUs splits each expert's matrices.
        kv_element_bytes: Bytes of one element of the KV cache: 2 bf16, 1 fp8.
        max_batch_size: Sequences one attention copy runs at once.
        max_num_tokens: Token budget of a step, prompt and generated tokens together.
        memory_fraction: What the engine is told to use, as the backend means it.
        whole_prompts: 1 where a prompt is not split over steps (no chunked prefill).
        coarse_graphs: 1 where an offline run pads its decode batches to `COARSE_GRAPHS`, few and
            far apart; a finer list is not felt.
    """

    tensor_model_parallel_size: Num = 1.0
    pipeline_model_parallel_size: Num = 1.0
    attention_data_parallel_size: Num = 1.0
    expert_model_parallel_size: Num = 1.0
    kv_element_bytes: Num = 2.0
    max_batch_size: Num = 256.0
    max_num_tokens: Num = 8192.0
    memory_fraction: Num = 0.9
    whole_prompts: Num = 0.0
    coarse_graphs: Num = 0.0

    @property
    def stage_gpus(self) -> Num:
        """GPUs of one pipeline stage."""
        return self.tensor_model_parallel_size * self.attention_data_parallel_size

    @property
    def gpus(self) -> Num:
        """GPUs of the replica."""
        return self.stage_gpus * self.pipeline_model_parallel_size

    @property
    def most_running(self) -> Num:
        """Sequences it runs at once: a full batch in every attention copy and pipeline stage."""
        copies = self.attention_data_parallel_size * self.pipeline_model_parallel_size
        return self.max_batch_size * copies

    def padding(self, decoding: Num) -> Num:
        """Rows that fill a step of `decoding` sequences up to a captured graph of every copy."""
        each = np.ceil(decoding / self.attention_data_parallel_size)
        sizes = np.array(COARSE_GRAPHS, dtype=np.float64)
        graph = sizes[np.searchsorted(sizes, each).clip(max=sizes.size - 1)]
        rows: Num = np.maximum(graph - each, 0.0) * self.attention_data_parallel_size
        return self.coarse_graphs * rows
