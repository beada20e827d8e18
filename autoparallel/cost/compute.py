"""Time of one layer's operators on one rank, for one micro-batch: GEMMs, attention, memory traffic.

Letters: b micro-batch, s sequence, h hidden, t tensor parallel, c context parallel; T = b s / c is the
number of tokens a rank works on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoparallel.cost.case import Case
from autoparallel.units import Num

HALF_BYTES = 2.0
TILE_M, TILE_N = 128.0, 256.0
UNFUSED_SCORE_BYTES = 11.0
"""Traffic per attention score, forward, unfused: scores written (2), softmax (4), dropout (5)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operators:
    """Seconds of one layer (or of the head) for one micro-batch on one rank, by kind and direction."""

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


def gemm_s(m: Num, n: Num, k: Num, case: Case, narrow: bool = True) -> Num:
    """One GEMM [m, k] x [k, n]; `narrow` GEMMs run in the layout's precision, others in bf16.

    Efficiency falls when the tiles do not fill the GPU: e w / (w + w0) for w waves of tiles.
    """
    c, machine = case.constants, case.machine
    waves = np.ceil(m / TILE_M) * np.ceil(n / TILE_N) / machine.sms
    slowdown = (waves + c.gemm_ramp_waves) / np.maximum(waves, 1e-9)
    is_narrow = machine.peak_flops_per_s > 1.2 * np.asarray(machine.bf16_flops_per_s)
    precision = np.where(is_narrow, c.fp8_efficiency, 1.0)
    rate = machine.peak_flops_per_s * precision if narrow else machine.bf16_flops_per_s
    moved_s = HALF_BYTES * (m * n + m * k + k * n) / machine.memory_bandwidth_bytes_per_s
    return np.maximum(2 * m * n * k * slowdown / (rate * c.gemm_efficiency), moved_s)


def attention_projections_s(case: Case) -> Num:
    """QKV and output projections of one layer, forward."""
    m, t, T = case.model, case.knobs.tp, tokens(case)
    q, kv = m.a * m.d_qk / t, np.maximum(m.g / t, 1.0) * (m.d_qk + m.d_v)
    plain = gemm_s(T, q + kv, m.h, case)
    up = m.r_kv + m.a / t * (m.d_qk - m.d_rope + m.d_v)
    q_low_rank = gemm_s(T, m.r_q, m.h, case) + gemm_s(T, q, m.r_q, case)
    q_s = np.where(np.asarray(m.r_q) > 0, q_low_rank, gemm_s(T, q, m.h, case))
    latent = q_s + gemm_s(T, m.r_kv + m.d_rope, m.h, case) + gemm_s(T, up, m.r_kv, case)
    qkv = np.where(np.asarray(m.r_kv) > 0, latent, plain)
    return qkv + gemm_s(T, m.h, m.a * m.d_v / t, case)


def mlp_s(case: Case, width: Num, T: Num, shards: Num) -> Num:
    """The two GEMMs of an MLP of inner `width` on `T` tokens, split over `shards`, forward."""
    m = case.model
    f = width / shards
    return gemm_s(T, (m.k - 1) * f, m.h, case) + gemm_s(T, m.h, f, case)


def attention_core_s(case: Case) -> tuple[Num, Num]:
    """Scores, softmax and context of one layer: (forward, backward).

    Flash attention skips the masked half and recomputes scores backward (2.5 times the forward);
    unfused attention does neither and moves every score through memory.
    """
    m, t, c, machine = case.model, case.knobs.tp, case.constants, case.machine
    rows = case.knobs.mbs * m.a / t * m.s / case.knobs.cp
    span = m.s / 2
    windowed = np.minimum(np.where(np.asarray(m.window) > 0, m.window, m.s), span)
    keys = span * (1 - m.window_fraction) + windowed * m.window_fraction
    flash_flops = 2 * rows * keys * (m.d_qk + m.d_v)
    rate = c.attention_efficiency * head_width_factor((m.d_qk + m.d_v) / 2)
    flash_s = flash_flops / (machine.bf16_flops_per_s * rate)
    full_flops = 2 * rows * m.s * (m.d_qk + m.d_v)
    matmul_s = full_flops / (machine.bf16_flops_per_s * c.gemm_efficiency * 0.7)
    moved = rows * m.s * UNFUSED_SCORE_BYTES * c.memory_traffic
    moved_s = moved / machine.memory_bandwidth_bytes_per_s
    flash = np.asarray(case.traits.flash_attention)
    forward = np.where(flash > 0, flash_s, matmul_s + moved_s)
    backward = np.where(flash > 0, 2.5 * flash_s, 2 * matmul_s + 1.8 * moved_s)
    return forward, backward


def head_width_factor(d: Num) -> Num:
    """Flash attention's efficiency at head width d over that at 128.

    Exponentials cost the same at every width, so narrow heads spend a larger share on them.
    """
    return d / (d + 24.0) * (128.0 + 24.0) / 128.0


def memory_bound_s(case: Case, width: Num) -> Num:
    """Norms, residuals, rope and activation of one layer, forward.

    Bytes per token: 24 h for norms and residuals, 2 k f for the activation, 6 a token's qkv for rope.
    """
    m, k, c = case.model, case.knobs, case.constants
    qkv = m.a * m.d_qk + m.g * (m.d_qk + m.d_v)
    per_token = 24 * m.h / sequence_shards(case) + (2 * m.k + 2) * width / k.tp + 6 * qkv / k.tp
    plain = np.where(np.asarray(case.traits.fused_kernels) > 0, 1.0, 3.0)
    traffic = tokens(case) * per_token * c.memory_traffic * plain
    return traffic / case.machine.memory_bandwidth_bytes_per_s


def dense_layer(case: Case) -> Operators:
    """A layer with a dense MLP."""
    gemm = attention_projections_s(case) + mlp_s(case, case.model.f, tokens(case), case.knobs.tp)
    return _layer(case, gemm, memory_bound_s(case, case.model.f))


def moe_layer(case: Case) -> Operators:
    """A layer with experts: router, grouped GEMMs on the fullest rank, shared expert, permutation."""
    m, k, c = case.model, case.knobs, case.constants
    T = tokens(case)
    local = np.maximum(m.E / k.ep, 1.0)
    arriving = T / k.tp * m.K * k.etp * c.expert_imbalance
    per_expert = arriving / local
    experts = local * mlp_s(case, m.f_e, per_expert, k.etp)
    shared = mlp_s(case, m.f_s, T, k.tp) * (np.asarray(m.f_s) > 0)
    router = gemm_s(T, np.maximum(m.E, 1.0), m.h, case, narrow=False) / k.tp
    gemm = attention_projections_s(case) + experts + shared + router
    permuted = 8 * arriving * m.h * c.moe_traffic / case.machine.memory_bandwidth_bytes_per_s
    active = (m.f_e * m.K + m.f_s) * k.etp / k.etp
    return _layer(case, gemm, memory_bound_s(case, active) + permuted)


def _layer(case: Case, gemm_s_: Num, memory_s: Num) -> Operators:
    forward, backward = attention_core_s(case)
    return Operators(
        gemm_forward_s=gemm_s_,
        gemm_backward_s=2 * gemm_s_,
        attention_forward_s=forward,
        attention_backward_s=backward,
        memory_forward_s=memory_s,
        memory_backward_s=1.6 * memory_s,
    )


def head(case: Case) -> Operators:
    """Output projection and loss on the last stage (bf16 GEMM, fp32 softmax over the vocabulary)."""
    T, V, t = tokens(case), padded_vocabulary(case), case.knobs.tp
    gemm = gemm_s(T, V / t, case.model.h, case, narrow=False)
    softmax = T * V / t * 14.0 / case.machine.memory_bandwidth_bytes_per_s
    zero = np.zeros_like(gemm)
    return Operators(
        gemm_forward_s=gemm,
        gemm_backward_s=2 * gemm,
        attention_forward_s=zero,
        attention_backward_s=zero,
        memory_forward_s=softmax,
        memory_backward_s=softmax * 0.6,
    )
