"""Serving constants: what the formulas of this room multiply physics by, with bounds and meaning.

One record belongs to a backend on a GPU generation; every field is a scalar or [N]. The defaults
are the priors of an unknown engine, read off published kernel measurements (medians over the
aiconfigurator kernel tables, Apache-2.0) or assumed where the meaning says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from autoparallel.constants import constant
from autoparallel.units import Num


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingConstants:
    """Bounded, physically meaningful numbers of one serving engine on one GPU generation.

    Assumed defaults worth a word: a layer run eagerly starts some 35 kernels at 10 to 15 us each
    (`prefill_layer_s`); grouped products of experts reach half of a plain one's rate
    (`moe_efficiency`, in arithmetic; they read their weights like any other), and 4-bit weights
    are widened beside the arithmetic, not before it (`upcast_efficiency`). `narrow_s` is one more
    kernel; isolated 8-bit products show 11 us, most of which engines fuse into their neighbours.
    `stream_s` is the fastest front end measured (SGLang 0.5.6, 19,600 tokens a second to 512
    clients).
    """

    gemm_efficiency: Num = constant(
        0.84, 0.4, 0.97, "share of the dense peak that a large GEMM reaches on slow tensor cores"
    )
    fp8_efficiency: Num = constant(1.0, 0.4, 1.3, "rate of a large fp8 GEMM over what that gives")
    fp4_efficiency: Num = constant(1.0, 0.3, 1.3, "the same under 4-bit floats")
    gemm_ramp_waves: Num = constant(
        0.035, 0.01, 2.0, "waves of 128x256 tiles at which a GEMM reaches half of its rate"
    )
    narrow_s: Num = constant(
        3e-6, 0.1e-6, 20e-6, "start that a product of 8- or 4-bit weights has beyond a wide one's"
    )
    memory_bandwidth: Num = constant(
        0.89, 0.4, 0.97, "share of the memory's bandwidth that a kernel reaches on slow memory"
    )
    kernel_s: Num = constant(
        3e-6, 0.5e-6, 15e-6, "time a kernel takes however small it is, inside a CUDA graph"
    )
    kernels_per_layer: Num = constant(
        9.0, 4.0, 30.0, "kernels of one layer that are bound by their own start"
    )
    attention_efficiency: Num = constant(
        0.6, 0.2, 0.9, "share of the bf16 peak that prefill attention reaches on long prompts"
    )
    attention_half_tokens: Num = constant(
        1300.0, 100.0, 6000.0, "prompt length at which prefill attention reaches half of that"
    )
    kv_bandwidth: Num = constant(
        0.75, 0.3, 0.93, "share of memory bandwidth at which decode attention streams the KV cache"
    )
    decode_attention_s: Num = constant(
        6e-6, 1e-6, 30e-6, "time of one layer's decode attention however short the contexts"
    )
    all_reduce: Num = constant(
        1.0, 0.8, 4.0, "time of an engine's all-reduce over its isolated measured time"
    )
    moe_efficiency: Num = constant(
        0.5, 0.2, 1.0, "rate of the experts' grouped GEMM over a plain one of the same size"
    )
    upcast_efficiency: Num = constant(
        0.85, 0.1, 1.0, "rate of a GEMM whose 4-bit weights the GPU must widen first, over bf16's"
    )
    expert_padding: Num = constant(
        32.0, 0.0, 256.0, "rows by which the tiles of an expert's GEMM exceed many tokens, mean"
    )
    expert_imbalance: Num = constant(1.2, 1.0, 2.5, "load of the fullest expert rank over the mean")
    hidden_passes: Num = constant(
        12.0, 2.0, 60.0, "times a layer reads or writes the hidden state outside its GEMMs"
    )
    moe_s: Num = constant(
        40e-6, 2e-6, 150e-6, "routing, permutation and combination of one MoE layer, fixed part"
    )
    step_s: Num = constant(
        1.0e-3, 0.0, 20e-3, "host time of a step that the GPU waits for: scheduling, sampling"
    )
    sequence_s: Num = constant(20e-6, 0.0, 200e-6, "the same for every sequence of the step")
    prompt_s: Num = constant(0.5e-3, 0.0, 5e-3, "the same for every prompt that enters the step")
    arm_host: Num = constant(1.2, 1.0, 1.6, "host time on a Grace CPU over that on an x86 host")
    prefill_step_s: Num = constant(
        3e-3,
        0.0,
        60e-3,
        "host time to start a step with prompt tokens, which runs outside the CUDA graphs",
    )
    prefill_layer_s: Num = constant(
        450e-6, 20e-6, 1.5e-3, "the same for every layer, whose kernels are started one by one"
    )
    prefill_moe_s: Num = constant(
        100e-6, 5e-6, 600e-6, "the same for the experts' part of every MoE layer"
    )
    request_s: Num = constant(
        10e-3, 0.0, 200e-3, "time of a request outside the engine's steps: tokenizer, HTTP, client"
    )
    stream_s: Num = constant(
        51e-6, 0.0, 300e-6, "time of the server's front end for every token it streams"
    )
    stream_lag: Num = constant(
        0.2,
        0.01,
        0.6,
        "share of what the front end falls behind over the decode steps of an answer that a "
        "request waits before its first token",
    )
    prompts_in_line: Num = constant(
        2.0, 0.1, 8.0, "prompts a closed-loop request waits behind in steady state"
    )


CONSTANT_NAMES = tuple(f.name for f in fields(ServingConstants))


def bounds(name: str) -> tuple[float, float]:
    """Physical bounds of a serving constant."""
    metadata = ServingConstants.__dataclass_fields__[name].metadata
    return metadata["low"], metadata["high"]


ENGINE_NAMES = (
    "all_reduce",
    "step_s",
    "sequence_s",
    "prompt_s",
    "prefill_step_s",
    "prefill_layer_s",
    "prefill_moe_s",
    "request_s",
    "stream_s",
    "stream_lag",
    "prompts_in_line",
)
"""Constants of the engine's own code; the others belong to the GPU and its kernels."""

GENERATION_FACTORS: Mapping[str, Mapping[str, float]] = {
    "ada": {"gemm_efficiency": 0.67, "fp8_efficiency": 0.83},
    "cdna3": {"gemm_efficiency": 0.64, "gemm_ramp_waves": 0.5},
}
"""Constants of a generation over those of others before any run of it is known.

`gemm_efficiency`: L40S reaches 53 % of its bf16 and 42 % of its fp8 peak where the rate of its
multiprocessors would let it reach 80 and 76 % (`benchmarks/measured/microbench.csv`); on MI300X the
best product reaches 51 % of the peak where H100's reaches 80 % (`measured_matmul_tflops` of the
catalog).
`gemm_ramp_waves`: a compute unit of MI300X does half of the work of a Hopper multiprocessor.
"""
BACKEND_FACTORS: Mapping[str, Mapping[str, float]] = {
    "vllm": {"prefill_layer_s": 0.45, "prefill_moe_s": 0.45},
    "tensorrt-llm": {"kv_bandwidth": 1.2},
}
"""Constants of a backend over those of an engine that runs its prompts eagerly.

`prefill_layer_s`: vLLM compiles the layers of a prompt step and starts them as a few captured
pieces each (`CompilationConfig`, piecewise CUDA graphs); about half of the launches is assumed to
be left.
`kv_bandwidth`: isolated decode attention over more than 1 GB of cache reaches from 51 and 64 %
(SGLang and vLLM, fp8 cache on H200) to 90 % of the memory's bandwidth (aiconfigurator's kernel
tables, Apache-2.0); the 90 % are taken for TensorRT-LLM's kernels.
"""


def expected(constants: ServingConstants, backend: str, generation: str) -> ServingConstants:
    """Constants known of all engines on Hopper as a family is expected to have them.

    Args:
        constants: Of an eager engine on Hopper.
        backend: Name of the engine.
        generation: Of the GPU.
    """
    for factors in (BACKEND_FACTORS.get(backend, {}), GENERATION_FACTORS.get(generation, {})):
        constants = replace(
            constants, **{n: bounded(n, getattr(constants, n) * f) for n, f in factors.items()}
        )
    return constants


def bounded(name: str, value: Num) -> Num:
    """`value` inside the bounds of constant `name`."""
    low, high = bounds(name)
    inside: Num = np.minimum(np.maximum(value, low), high)
    return inside
