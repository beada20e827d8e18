"""Calibrated constants: what the formulas multiply physics by, with bounds, units and origin.

`Constants` are the numbers of one family (framework x GPU generation); every field is a scalar or
[N]. A field's metadata says what it means, its prior and its physical bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from autoparallel.units import Num

FITS = 0.5
"""P(fits) from which a layout is called fitting."""
NORMAL_90 = 1.645
"""Standard deviations of a normal distribution from its middle to its 95th percentile."""


def constant(prior: float, low: float, high: float, meaning: str) -> Any:
    """A field with its prior as the default, its physical bounds and what it means."""
    return field(default=prior, metadata={"low": low, "high": high, "meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constants:
    """Bounded, physically meaningful numbers; the defaults are the priors of an unknown machine."""

    gemm_efficiency: Num = constant(
        0.9,
        0.4,
        1.15,
        "rate of a large GEMM inside a step over the best product measured alone",
    )
    gemm_ramp_waves: Num = constant(
        0.25, 0.02, 2.0, "waves of 128x256 tiles at which a GEMM reaches half of that"
    )
    fp8_efficiency: Num = constant(
        0.85, 0.5, 1.05, "gemm_efficiency under fp8 and narrower, relative to bf16"
    )
    attention_efficiency: Num = constant(
        0.5, 0.1, 1.0, "rate of attention over the best bf16 product measured"
    )
    memory_traffic: Num = constant(
        1.2, 1.0, 4.0, "bytes moved by memory-bound operators over the ideal count"
    )
    launch_s_per_layer: Num = constant(
        2.0e-3, 0.2e-3, 8e-3, "host time to launch one layer's forward and backward"
    )
    launch_tp_factor: Num = constant(
        0.03, 0.0, 3.0, "growth of that host time with every further tensor-parallel rank"
    )
    step_overhead_s: Num = constant(
        0.02, 0.0, 0.5, "host time a step spends outside the layers: data, logging, clipping"
    )
    intra_bandwidth: Num = constant(
        0.85, 0.3, 1.1, "speed of NVLink collectives inside a step over their isolated speed"
    )
    inter_bandwidth: Num = constant(
        0.5, 0.15, 0.95, "share of the nominal fabric bandwidth that collectives reach"
    )
    collective_latency_s: Num = constant(
        20e-6, 2e-6, 400e-6, "wait for the slowest rank of a collective, beyond its isolated time"
    )
    hop_latency_s: Num = constant(
        3e-6, 0.2e-6, 100e-6, "time a ring that leaves the fast domain adds with every rank"
    )
    tp_exposed: Num = constant(
        0.7, 0.1, 1.6, "share of tensor-parallel communication that compute does not hide"
    )
    dp_exposed: Num = constant(
        0.5, 0.05, 1.5, "share of gradient all-reduces that compute does not hide (ZeRO-0)"
    )
    shard_exposed: Num = constant(
        0.5, 0.05, 3.0, "the same of a sharded optimizer's traffic (ZeRO-1 and 2)"
    )
    gather_exposed: Num = constant(
        0.3, 0.05, 0.7, "the same of fully sharded weights and gradients (ZeRO-3)"
    )
    cp_exposed: Num = constant(
        0.15, 0.02, 1.0, "share of a context-parallel ring exposed where attention is long enough"
    )
    ep_exposed: Num = constant(1.0, 0.1, 1.5, "share of expert-parallel communication exposed")
    pp_exposed: Num = constant(0.3, 0.02, 1.0, "share of pipeline point-to-point time exposed")
    bubble: Num = constant(0.95, 0.6, 1.2, "pipeline bubble over the ideal schedule's")
    straggling: Num = constant(
        0.010, 0.0003, 0.03, "wait for the slowest node over the step, per doubling of nodes"
    )
    expert_ramp_waves: Num = constant(
        1.0, 0.02, 12.0, "the same as gemm_ramp_waves for one expert's products in a grouped GEMM"
    )
    expert_imbalance: Num = constant(1.1, 1.0, 2.0, "load of the fullest expert rank over the mean")
    moe_launch: Num = constant(1.5, 0.0, 6.0, "extra host time of a MoE layer, in plain layers")
    moe_traffic: Num = constant(1.0, 0.3, 4.0, "token permutation traffic over the ideal count")


CONSTANT_NAMES = tuple(f.name for f in fields(Constants))


def bounds(name: str) -> tuple[float, float]:
    """Physical bounds of a constant."""
    metadata = Constants.__dataclass_fields__[name].metadata
    return metadata["low"], metadata["high"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemoryConstants:
    """What memory accounting cannot derive; scalars or [N]. Same metadata as `Constants`."""

    context_bytes: Num = constant(
        0.6e9, 0.2e9, 3e9, "CUDA context and libraries, outside the allocator"
    )
    fragmentation: Num = constant(
        0.08, 0.02, 0.6, "memory reserved but not used, over activations, logits and buffers"
    )
    workspace_bytes: Num = constant(
        0.08e9, 0.02e9, 2e9, "workspaces of GEMM, attention and optimizer libraries"
    )
    extra_gradient_bytes: Num = constant(
        0.0, 0.0, 4.0, "half-precision gradients kept beside the accumulated ones, per parameter"
    )
    residual_copies: Num = constant(
        0.0, 0.0, 6.0, "tensors of the residual stream a layer keeps beyond those the code shows"
    )
    held_tensors: Num = constant(
        40.0, 0.0, 80.0, "full-length tensors that communication streams hold at most, if they do"
    )
    """Assumed: CUDA queues 1,024 launches, some 50 a layer, and two tensors a layer."""
    logits_copies: Num = constant(
        1.0, 0.4, 2.5, "fp32 copies of the logits over what the framework's code shows"
    )
    error_sigma: Num = constant(
        0.12, 0.02, 0.3, "standard deviation of the log of needed over predicted allocator memory"
    )


def memory_bounds(name: str) -> tuple[float, float]:
    """Physical bounds of a memory constant."""
    metadata = MemoryConstants.__dataclass_fields__[name].metadata
    return metadata["low"], metadata["high"]
