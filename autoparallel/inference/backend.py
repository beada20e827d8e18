"""Serving backends as data: what an engine reserves and how it batches by default."""

from __future__ import annotations

from dataclasses import dataclass

from autoparallel.errors import CatalogError, nearest

MIB = 2.0**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Defaults and memory rule of one inference engine.

    Attributes:
        release: The release whose flags and defaults these are.
        memory_fraction: Share of the GPU that the engine may use (of what is free after loading
            where `fraction_of_free`).
        fraction_of_free: The fraction is of the memory left after weights and profiling, and goes
            to the KV cache alone (TensorRT-LLM); else it bounds everything the engine holds.
        max_num_tokens: Token budget of one step.
        max_batch_size: Sequences a replica runs at once.
        block_tokens: Tokens of one KV block.
        mixed_steps: Prompt chunks and decodes share a step; else prompts run in steps of their own.
        overlapped: The host prepares a step while the GPU works on the one before.
        slow_on_grace: Its host code runs slower on a Grace CPU than on an x86 host (assumed for
            engines without a run on one).
        all_reduce_bytes: Largest message that the engine's own all-reduce kernels take, of 2 and of
            more ranks; NCCL reduces larger ones.
        graph_bytes: Memory of captured CUDA graphs (assumed unless the source says so).
        context_bytes: CUDA context, NCCL and framework outside the weights, KV and activations.
    """

    name: str
    release: str
    memory_fraction: float
    fraction_of_free: bool
    max_num_tokens: int
    max_batch_size: int
    block_tokens: int
    mixed_steps: bool
    overlapped: bool
    slow_on_grace: bool
    all_reduce_bytes: tuple[float, float]
    graph_bytes: float
    context_bytes: float
    source: str = ""


BACKENDS: dict[str, Backend] = {
    "vllm": Backend(
        name="vllm",
        release="0.24.0",
        memory_fraction=0.92,
        fraction_of_free=False,
        max_num_tokens=8192,
        max_batch_size=1024,
        block_tokens=16,
        mixed_steps=True,
        overlapped=False,
        slow_on_grace=True,
        all_reduce_bytes=(64.0 * MIB, 32.0 * MIB),
        graph_bytes=1.5e9,
        context_bytes=2.5e9,
        source="vLLM 0.24 defaults (gpu_memory_utilization, max_num_batched_tokens, max_num_seqs "
        "on GPUs of 70 GiB and more); its `all_reduce_utils.py` (symmetric memory on Hopper, of 4 "
        "ranks; 2 and 8 have 64 MiB); graph and context memory assumed",
    ),
    "sglang": Backend(
        name="sglang",
        release="0.5.14",
        memory_fraction=0.88,
        fraction_of_free=False,
        max_num_tokens=8192,
        max_batch_size=512,
        block_tokens=1,
        mixed_steps=False,
        overlapped=True,
        slow_on_grace=True,
        all_reduce_bytes=(8.0 * MIB, 8.0 * MIB),
        graph_bytes=2.0e9,
        context_bytes=2.5e9,
        source="SGLang 0.5 defaults (mem_fraction_static, chunked_prefill_size on GPUs of 80 GB); "
        "_MAX_CAR_SIZE of its custom_all_reduce.py; graph and context memory assumed",
    ),
    "tensorrt-llm": Backend(
        name="tensorrt-llm",
        release="1.3.0",
        memory_fraction=0.9,
        fraction_of_free=True,
        max_num_tokens=8192,
        max_batch_size=2048,
        block_tokens=32,
        mixed_steps=True,
        overlapped=True,
        slow_on_grace=False,
        all_reduce_bytes=(16.0e6, 8.0e6),
        graph_bytes=1.0e9,
        context_bytes=2.5e9,
        source="TensorRT-LLM 1.x defaults (free_gpu_memory_fraction, max_num_tokens, "
        "tokens_per_block; customAllReduceUtils.h); graph and context memory assumed",
    ),
}
ALIASES = {"trtllm": "tensorrt-llm", "trt-llm": "tensorrt-llm", "tensorrt_llm": "tensorrt-llm"}


def backend(name: str) -> Backend:
    """The backend called, or also called, `name`.

    Raises:
        CatalogError: no such backend, with the nearest known one.
    """
    known = name.strip().lower()
    known = ALIASES.get(known, known)
    if known not in BACKENDS:
        hint = nearest(known, BACKENDS)
        raise CatalogError(f"backend: {name!r} is not a serving backend; {hint}")
    return BACKENDS[known]
