"""Time of one layer's operators on one rank, for one micro-batch: GEMMs, attention, memory traffic.

Letters: b micro-batch, s sequence, h hidden, t tensor parallel, c context parallel; T = b s / c is
the number of tokens a rank works on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from autoparallel.cost.case import Case
from autoparallel.cost.context import rearranged_s, ring_ranks
from autoparallel.units import Num

HALF_BYTES = 2.0
TILE_M, TILE_N = 128.0, 256.0
SHORT_K, SHORT_K_8_BIT = 100.0, 240.0
"""Inner dimension at which a product reaches half its rate: fitted to isolated GEMMs of A100 (111),
H100 (93) and H200 (74) in 16 bit, and of H100 (243) and H200 (213) in fp8
(benchmarks/operators.py)."""
FOUR_BIT_SHARE = 0.75
"""Share of peak of a large nvfp4 product over that of an fp8 one on B200: .36-.38 against .47-.51
(ai-dynamo/aiconfigurator GEMM tables)."""
Passes: TypeAlias = NDArray[np.float64]
"""Seconds of the forward and of the backward pass, [2] or [2, N]."""
UNFUSED_SCORE_BYTES, UNFUSED_BACKWARD_BYTES = 13.0, 20.0
"""Traffic per attention score, unfused. Forward: written by the product (2), softmax (4), dropout
and its mask (5), read by the second product (2). Backward: both products (8), dropout (5), softmax
(6), 1."""
PERMUTE_BYTES = 12.0
"""Traffic per element of a routed token, each way, in 16 bit: sorted by rank (written, the input is
one of K copies), then by local expert (read and written), before the experts; the same after them
(Megatron-Core 0.16.1 `MoEAlltoAllTokenDispatcher`)."""
PLAIN_TRAFFIC = 3.0
"""Traffic of norm, activation and rope written in plain torch, over that of fused kernels: each
writes and reads its intermediate results (casts to fp32, squares, products)."""
SOFTMAX_HEADS = 4.0
"""Megatron's fused kernel for scale, mask and softmax takes a multiple of so many heads x sequences
(Megatron-Core 0.16.1 `FusedScaleMaskSoftmax.is_kernel_available`)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operators:
    """Seconds of one layer (or the head) for one micro-batch on one rank, by kind and direction."""

    gemm_forward_s: Num
    gemm_backward_s: Num
    attention_forward_s: Num
    attention_backward_s: Num
    memory_forward_s: Num
    memory_backward_s: Num

    @property
    def forward_s(self) -> Num:
        """All of the forward pass."""
        return self.gemm_forward_s + self.attention_forward_s + self.memory_forward_s

    @property
    def backward_s(self) -> Num:
        """All of the backward pass, recomputation not included."""
        return self.gemm_backward_s + self.attention_backward_s + self.memory_backward_s


def tokens(case: Case) -> Num:
    """T: tokens of one micro-batch on one context-parallel rank."""
    return case.knobs.mbs * case.model.s / case.knobs.cp


def sequence_shards(case: Case) -> Num:
    """Ranks that share the norm and residual work: t with sequence parallelism, else 1."""
    return np.where(np.asarray(case.knobs.sp) > 0, case.knobs.tp, 1.0)


def padded_vocabulary(case: Case) -> Num:
    """V rounded up to a multiple of 128 t, as Megatron pads it."""
    multiple = 128.0 * case.knobs.tp
    return np.ceil(case.model.V / multiple) * multiple


def gemm_s(
    m: Num, n: Num, k: Num, case: Case, narrow: bool = True, ramp_waves: Num | None = None
) -> Num:
    """One GEMM [m, k] x [k, n]; `narrow` GEMMs run in the layout's precision, others in bf16.

    The best rate known of the GPU times e k / (k + k0) w / (w + w0): short inner dimensions do not
    fill a tile's pipeline, few waves w of tiles do not fill the GPU. k0 is measured on isolated
    products, e and w0 inside a step. `ramp_waves` is w0, a dense layer's when None.
    """
    c, machine = case.constants, case.machine
    cast = is_narrow(case) if narrow else False
    waves = np.ceil(m / TILE_M) * np.ceil(n / TILE_N) / machine.sms
    w0 = c.gemm_ramp_waves if ramp_waves is None else ramp_waves
    ramp = (waves + w0) / np.maximum(waves, 1e-9)
    short = 1 + np.where(cast, SHORT_K_8_BIT, SHORT_K) / np.maximum(k, 1.0)
    four_bit = machine.peak_flops_per_s > 3 * np.asarray(machine.bf16_flops_per_s)
    eight_bit = machine.peak_flops_per_s * c.fp8_efficiency
    narrow_rate = eight_bit * np.where(four_bit, FOUR_BIT_SHARE, 1.0)
    rate = np.where(cast, narrow_rate, machine.bf16_flops_per_s) * machine.reached_share
    moved_s = HALF_BYTES * (m * n + m * k + k * n) / machine.memory_bandwidth_bytes_per_s
    return np.maximum(2 * m * n * k * ramp * short / (rate * c.gemm_efficiency), moved_s)


def linear_s(
    T: Num,
    inputs: Num,
    outputs: Num,
    case: Case,
    narrow: bool = True,
    ramp_waves: Num | None = None,
) -> Passes:
    """A linear layer on T tokens: forward, and backward as the products for inputs and weights."""
    forward = gemm_s(T, outputs, inputs, case, narrow, ramp_waves)
    for_inputs = gemm_s(T, inputs, outputs, case, narrow, ramp_waves)
    for_weights = gemm_s(outputs, inputs, T, case, narrow, ramp_waves)
    return np.stack(np.broadcast_arrays(forward, for_inputs + for_weights))


def is_narrow(case: Case) -> NDArray[np.bool_]:
    """True where the linear layers run in 8 bits or fewer."""
    half = np.asarray(case.machine.bf16_flops_per_s)
    return np.asarray(case.machine.peak_flops_per_s > 1.2 * half)


def attention_projections_s(case: Case) -> Passes:
    """QKV and output projections of one layer."""
    m, t, T = case.model, case.knobs.tp, tokens(case)
    q, kv = m.a * m.d_qk / t, np.maximum(m.g / t, 1.0) * (m.d_qk + m.d_v)
    out = linear_s(T, m.a * m.d_v / t, m.h, case)
    qkv = linear_s(T, m.h, q + kv, case)
    if not np.any(m.r_kv):
        return qkv + out
    up = m.r_kv + m.a / t * (m.d_qk - m.d_rope + m.d_v)
    low_rank = linear_s(T, m.h, m.r_q, case) + linear_s(T, m.r_q, q, case)
    q_s = np.where(np.asarray(m.r_q) > 0, low_rank, linear_s(T, m.h, q, case))
    latent = q_s + linear_s(T, m.h, m.r_kv + m.d_rope, case) + linear_s(T, m.r_kv, up, case)
    return np.where(np.asarray(m.r_kv) > 0, latent, qkv) + out


def mlp_s(case: Case, width: Num, T: Num, shards: Num, ramp_waves: Num | None = None) -> Passes:
    """The two linear layers of an MLP of inner `width` on `T` tokens, split over `shards`."""
    m = case.model
    f = width / shards
    up = linear_s(T, m.h, (m.k - 1) * f, case, ramp_waves=ramp_waves)
    return up + linear_s(T, f, m.h, case, ramp_waves=ramp_waves)


def torch_softmax(case: Case) -> Num:
    """1 where unfused attention also has to do without the fused softmax kernel."""
    heads = case.knobs.mbs * case.model.a / case.knobs.tp
    fused = np.mod(heads, SOFTMAX_HEADS) == 0
    return np.where(fused | (np.asarray(case.traits.flash_attention) > 0), 0.0, 1.0)


def attention_core_s(case: Case) -> tuple[Num, Num]:
    """Scores, softmax and context of one layer: (forward, backward).

    Flash attention skips the masked half and recomputes scores backward (2.5 times the forward);
    unfused attention does neither and moves every score through memory. A context-parallel ring
    attends to pieces, which are as efficient as sequences of that length; what any kind of context
    parallelism copies counts as attention.
    """
    m, t, c, machine = case.model, case.knobs.tp, case.constants, case.machine
    rows = case.knobs.mbs * m.a / t * m.s / case.knobs.cp
    span = m.s / 2
    windowed = np.minimum(np.where(np.asarray(m.window) > 0, m.window, m.s), span)
    keys = span * (1 - m.window_fraction) + windowed * m.window_fraction
    half_rate = machine.bf16_flops_per_s * machine.reached_share
    flash_flops = 2 * rows * keys * (m.d_qk + m.d_v)
    piece = m.s / ring_ranks(case)
    longer = case.look_up(lambda o, s: o.attention.length_factor(s), piece)
    rate = c.attention_efficiency * head_width_factor((m.d_qk + m.d_v) / 2) * longer
    flash_s = flash_flops / (half_rate * rate)
    full_flops = 2 * rows * m.s * (m.d_qk + m.d_v)
    matmul_s = full_flops / (half_rate * c.gemm_efficiency * 0.7)
    score_byte_s = rows * m.s * c.memory_traffic / machine.memory_bandwidth_bytes_per_s
    flash = np.asarray(case.traits.flash_attention)
    forward = np.where(flash > 0, flash_s, matmul_s + UNFUSED_SCORE_BYTES * score_byte_s)
    unfused = 2 * matmul_s + UNFUSED_BACKWARD_BYTES * score_byte_s
    backward = np.where(flash > 0, 2.5 * flash_s, unfused)
    rearranged = rearranged_s(case)
    return forward + rearranged[0], backward + rearranged[1]


def head_width_factor(d: Num) -> Num:
    """Flash attention's efficiency at head width d over that at 128.

    Exponentials cost the same at every width, so narrow heads spend a larger share on them.
    """
    return d / (d + 24.0) * (128.0 + 24.0) / 128.0


def memory_bound_s(case: Case, width: Num) -> tuple[Num, Num]:
    """Norms, residuals, rope and activation of one layer: (forward, backward).

    Bytes a token, 16 bit: a norm reads and writes h (4 h) and reads twice, writes once backward
    (6 h); bias, dropout and residual 7 h and 5 h; rope 4 a q, k, v element each way; the activation
    reads its k - 1 inputs and writes one (2 k f), backward reads k and writes k - 1 (4 k - 2) f.
    """
    m, k, c = case.model, case.knobs, case.constants
    qkv = (m.a * m.d_qk + m.g * (m.d_qk + m.d_v)) / k.tp
    plain = PLAIN_TRAFFIC - (PLAIN_TRAFFIC - 1) * case.traits.fused_kernels
    norms, f = 22 * m.h / sequence_shards(case), width / k.tp
    cast = cast_bytes(case, width)
    forward = (norms + 4 * qkv + 2 * m.k * f) * plain + cast
    backward = (norms + 4 * qkv + (4 * m.k - 2) * f) * plain + 1.5 * cast
    rate = case.machine.memory_bandwidth_bytes_per_s / (tokens(case) * c.memory_traffic)
    return forward / rate, backward / rate


def cast_bytes(case: Case, width: Num) -> Num:
    """Bytes a token to cast 8-bit linear layers' inputs: read 2, write 1, transposed 1."""
    m, t = case.model, case.knobs.tp
    inputs = 2 * m.h + m.a * m.d_v / t + width / t
    return np.where(is_narrow(case), 4.0 * inputs, 0.0)


def dense_layer(case: Case) -> Operators:
    """A layer with a dense MLP."""
    gemm = attention_projections_s(case) + mlp_s(case, case.model.f, tokens(case), case.knobs.tp)
    return _layer(case, gemm, memory_bound_s(case, case.model.f))


def moe_layer(case: Case) -> Operators:
    """A layer with experts: router, GEMMs on the fullest rank, shared expert, permutation."""
    m, k, c = case.model, case.knobs, case.constants
    T = tokens(case)
    local = np.maximum(m.E / k.ep, 1.0)
    arriving = T / k.tp * m.K * k.etp * c.expert_imbalance
    per_expert = arriving / local
    experts = local * mlp_s(case, m.f_e, per_expert, k.etp, c.expert_ramp_waves)
    shared = mlp_s(case, m.f_s, T, k.tp) * (np.asarray(m.f_s) > 0)
    router = linear_s(T, m.h, np.maximum(m.E, 1.0), case, narrow=False) / k.tp
    gemm = attention_projections_s(case) + experts + shared + router
    moved = PERMUTE_BYTES + 2.5 * np.where(is_narrow(case), 4.0, 0.0)
    permuted = moved * arriving * m.h * c.moe_traffic / case.machine.memory_bandwidth_bytes_per_s
    active = m.f_e * m.K + m.f_s
    forward, backward = memory_bound_s(case, active)
    return _layer(case, gemm, (forward + permuted, backward + permuted))


def _layer(case: Case, gemm: Passes, memory_s: tuple[Num, Num]) -> Operators:
    forward, backward = attention_core_s(case)
    return Operators(
        gemm_forward_s=gemm[0],
        gemm_backward_s=gemm[1],
        attention_forward_s=forward,
        attention_backward_s=backward,
        memory_forward_s=memory_s[0],
        memory_backward_s=memory_s[1],
    )


def head(case: Case) -> Operators:
    """Output projection and loss on the last stage (bf16 GEMM, fp32 softmax)."""
    T, V, t = tokens(case), padded_vocabulary(case), case.knobs.tp
    gemm = linear_s(T, case.model.h, V / t, case, narrow=False)
    softmax = T * V / t * 14.0 / case.machine.memory_bandwidth_bytes_per_s
    zero = np.zeros_like(gemm[0])
    return Operators(
        gemm_forward_s=gemm[0],
        gemm_backward_s=gemm[1],
        attention_forward_s=zero,
        attention_backward_s=zero,
        memory_forward_s=softmax,
        memory_backward_s=softmax * 0.6,
    )
