"""Kernels of a serving step: GEMM from one token to thousands, attention, small collectives."""

from __future__ import annotations

import numpy as np

from autoparallel.inference.setting import WEIGHT_BYTES, Setting, activation_bytes
from autoparallel.units import Num, indicator

TILE = (128.0, 256.0)
"""Output tile of one multiprocessor in a large GEMM."""
NORM = 4.0
"""How two bounds of a time meet: a p-norm, since neither hides wholly behind the other."""
SM_BYTES_PER_S = 64.0 * 1.8e9
"""What one multiprocessor takes in from the L2 cache: 64 bytes a clock (CUDA C++ programming guide,
NVIDIA A100 whitepaper), at some 1.8 GHz."""
INNER_TURN = {True: 80.0, False: 330.0}
"""Inputs by which a tile's time exceeds those it sums over, of 16-bit weights and of narrower ones:
filling the pipeline and writing the tile (`benchmarks/measured/microbench.csv`: products of over
33 million outputs on A100, H100, H200 and B200, intercept over slope of the time against k)."""


def gemm_s(
    setting: Setting, precision: str, m: Num, n: Num, k: Num, matrices: Num = 1.0, share: Num = 1.0
) -> Num:
    """Time of `matrices` products [m, k] x [k, n], without the start of the kernel.

    Arithmetic at a rate that ramps with the waves of output tiles and with the inputs summed over,
    or reading the weights, whichever is longer, joined smoothly. Products of 8- and 4-bit weights
    quantise their inputs first, which takes a start of its own.

    Args:
        setting: What is served.
        precision: Of the weights.
        m: Tokens, scalar or [N].
        n: Outputs on this GPU.
        k: Inputs on this GPU.
        matrices: Products of that size (experts of one layer).
        share: Of the rate of arithmetic of a plain product.
    """
    c, wide = setting.constants, precision in ("bf16", "fp16")
    flops = 2.0 * m * n * k * matrices
    waves = m * n * matrices / (TILE[0] * TILE[1]) / setting.machine.sms
    ramp = waves / (waves + c.gemm_ramp_waves) * k / (k + INNER_TURN[wide])
    rate = setting.gemm_flops_per_s(precision) * ramp * share
    moved = WEIGHT_BYTES[precision] * n * k * matrices
    moved = moved + (activation_bytes(precision) * k + 2.0 * n) * m * matrices
    compute = flops / np.maximum(rate, 1.0)
    start = 0.0 if wide else c.narrow_s
    return longer(compute, streamed_s(setting, moved)) + start


def streamed_s(setting: Setting, moved_bytes: Num) -> Num:
    """Time in which a kernel reads or writes `moved_bytes` of memory.

    They cross the memory's bus and the way between cache and multiprocessors, and hardly overlap:
    the faster the memory, the smaller its share that a kernel reaches (skinny products of isolated
    kernels: 74 % on H100, 69 % on H200, 63 % on B200).
    """
    machine = setting.machine
    bus = machine.memory_bandwidth_bytes_per_s * setting.constants.memory_bandwidth
    total: Num = moved_bytes * (1.0 / bus + 1.0 / (SM_BYTES_PER_S * machine.sms))
    return total


def longer(one: Num, other: Num) -> Num:
    """The longer of two times that run side by side, smoothly: neither hides wholly."""
    most, least = np.maximum(one, other), np.minimum(one, other)
    share = least / np.maximum(most, 1e-30)
    total: Num = most * (1.0 + share**NORM) ** (1.0 / NORM)
    return total


def elementwise_s(setting: Setting, tokens: Num, copies: Num = 1.0) -> Num:
    """Norms, activations, rotations, quantisation of one layer: `copies` of the hidden state."""
    moved = setting.constants.hidden_passes * 2.0 * tokens * setting.shape.h * copies
    return streamed_s(setting, moved)


def prompt_attention_s(setting: Setting, pairs: Num, prompt_tokens: Num, heads: Num) -> Num:
    """Attention of one layer over `pairs` (query, key) pairs of `heads` query heads on this GPU."""
    m, c = setting.shape, setting.constants
    share = c.attention_efficiency * prompt_tokens / (prompt_tokens + c.attention_half_tokens)
    flops = 2.0 * pairs * heads * (m.d_qk + m.d_v)
    return flops / (setting.machine.bf16_flops_per_s * np.maximum(share, 1e-6))


def decode_attention_s(setting: Setting, cache_bytes: Num, flops: Num) -> Num:
    """One layer's attention over cached tokens: streams the cache, or computes latent heads."""
    c = setting.constants
    stream = cache_bytes / (setting.machine.memory_bandwidth_bytes_per_s * c.kv_bandwidth)
    compute = flops / (setting.machine.bf16_flops_per_s * c.attention_efficiency)
    return np.maximum(stream, compute)


def all_reduce_s(setting: Setting, message_bytes: Num, ranks: Num) -> Num:
    """All-reduce of an engine: its own kernels up to a size, then NCCL; 0 for 1 rank.

    Up to that size whichever of the two is faster, as engines choose among their kernels. Inside
    the NVLink domain the measured tables hold, scaled by the link. A group that leaves it reduces
    in the domain and rings over the fabric between domains.
    """
    machine = setting.machine
    inside = np.minimum(ranks, machine.domain_gpus)
    times = [_near_s(setting, op, message_bytes, inside) for op in _REDUCTIONS if _has(setting, op)]
    own = np.minimum(times[0], times[-1])
    pair, more = setting.backend.all_reduce_bytes
    most = np.where(np.asarray(ranks) > 2, more, pair)
    fastest = np.where(np.asarray(message_bytes) > most, times[-1], own)
    domains = np.ceil(ranks / machine.domain_gpus)
    wire = 2.0 * (domains - 1) / domains * message_bytes / inside
    outside = 2.0 * (domains - 1) * machine.inter_latency_s + wire / machine.inter_bytes_per_s
    return (fastest + outside) * setting.constants.all_reduce


SMALLEST_BYTES = 1024.0
"""A message whose time is all start."""
_REDUCTIONS = ("custom_all_reduce", "all_reduce")


def _near_s(setting: Setting, op: str, message_bytes: Num, ranks: Num) -> Num:
    """A collective inside the domain by the tables: what the wire takes is scaled by the link."""
    machine, tables = setting.machine, setting.operators.collectives
    scale = tables.link_bytes_per_s / machine.intra_bytes_per_s
    start = tables.seconds(op, SMALLEST_BYTES * indicator(np.asarray(message_bytes) > 0), ranks)
    whole = tables.seconds(op, message_bytes, ranks)
    total: Num = start + np.maximum(whole - start, 0.0) * scale
    return total


def _has(setting: Setting, op: str) -> bool:
    return op in setting.operators.collectives.log2_seconds


def all_to_all_s(setting: Setting, message_bytes: Num, ranks: Num) -> Num:
    """Token exchange in which every rank sends `message_bytes`; 0 for one rank."""
    machine = setting.machine
    inside = np.minimum(ranks, machine.domain_gpus)
    near = _near_s(setting, "all_to_all", message_bytes, inside)
    domains = np.ceil(ranks / machine.domain_gpus)
    far = message_bytes * (domains - 1) / domains / machine.inter_bytes_per_s
    total: Num = (
        near + far + machine.inter_latency_s * indicator(domains > 1)
    ) * setting.constants.all_reduce
    return total
