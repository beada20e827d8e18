"""Time of the kernels that training spends itself on: matrix products and flash attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from autoparallel.operators.lookup import Array, bilinear, entry, trilinear
from autoparallel.units import Num

Pass = Literal["forward", "dgrad", "wgrad"]
AttentionPass = Literal["forward", "backward"]
Precision = Literal["bf16", "fp8"]
PASSES: tuple[AttentionPass, ...] = ("forward", "backward")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GemmTable:
    """Time of one [m, k] x [k, n] matrix product with 16-bit output.

    Attributes:
        log2_seconds_per_flop: Per precision, over the log2 axes m, n, k.
        axes: log2 of the tabulated m, n and k.
        launch_s: Per precision, fixed time of a small product.
        memory_bytes_per_s: Rate at which a skinny product streams its matrices.
        pass_factor: Time of a pass over the forward pass of the same size.
        training_factor: Time inside a training stack over this table's (its median), where a source
            measured both, else 1. Not applied: it is what calibration of a job replaces.
    """

    gpu: str
    log2_seconds_per_flop: dict[str, Array]
    axes: tuple[Array, Array, Array]
    launch_s: dict[str, float]
    memory_bytes_per_s: float
    pass_factor: dict[str, float]
    training_factor: float
    nature: str
    source: str

    def seconds(
        self, m: Num, n: Num, k: Num, precision: Precision = "bf16", pass_: Pass = "forward"
    ) -> Num:
        """Time of the product, finite for any positive sizes and never shorter for twice the `m`.

        The sizes are the product's own. With T tokens, I inputs and O outputs a linear layer is
        forward (T, O, I), dgrad (T, I, O), wgrad (O, I, T). Above the tabulated sizes the
        efficiency of the edge holds. Below them the time shrinks with the size down to launch plus
        the bytes of the three matrices over `memory_bytes_per_s`:
        `t = max(time at edge rate, min(time at edge size, floor))`.
        `bf16` on a V100 means fp16.

        Raises:
            ProfileError: no such precision (fp8 on A100, V100) or pass.
        """
        table = entry(self.log2_seconds_per_flop, precision, f"precision of {self.gpu}")
        factor = entry(self.pass_factor, pass_, "pass")
        position = [
            np.interp(np.log2(size), axis, np.arange(axis.size, dtype=np.float64))
            for size, axis in zip((m, n, k), self.axes, strict=True)
        ]
        rate_s = 2.0 * m * n * k * np.exp2(trilinear(table, *position)) * factor
        m0, n0, k0 = (2.0 ** axis[0] for axis in self.axes)
        shrink = np.minimum(m / m0, 1.0) * np.minimum(n / n0, 1.0) * np.minimum(k / k0, 1.0)
        moved = (1.0 if precision == "fp8" else 2.0) * k * (m + n) + 2.0 * m * n
        floor_s = self.launch_s[precision] + moved / self.memory_bytes_per_s
        result: Num = np.maximum(rate_s, np.minimum(rate_s / shrink, floor_s))
        return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionTable:
    """Share of the dense bf16 peak that causal flash attention reaches, causal FLOPs counted.

    Attributes:
        efficiency_of: Per pass, saturated efficiency over `head_dims` (rows) and `log2_seq`
            (columns).
        half_waves: Per pass, waves of 128-query tiles a GPU at which half of that is reached, over
            `head_dims`.
    """

    gpu: str
    head_dims: Array
    log2_seq: Array
    efficiency_of: dict[str, Array]
    half_waves: dict[str, Array]
    streaming_multiprocessors: float
    peak_flops_per_s: float
    nature: str
    source: str

    def efficiency(
        self, seq_length: Num, heads: Num, head_dim: Num, pass_: AttentionPass = "forward"
    ) -> Num:
        """Share of peak for `heads` (batch x heads on this GPU) sequences of `seq_length` tokens.

        `e(s, d) w / (w + w0)` with w the waves of 128-query tiles over the multiprocessors. Outside
        the tabulated lengths and widths the edge value holds.
        """
        table = entry(self.efficiency_of, pass_, "attention pass")
        rows, columns = np.arange(self.head_dims.size), np.arange(self.log2_seq.size)
        row = np.interp(head_dim, self.head_dims, rows.astype(np.float64))
        column = np.interp(np.log2(seq_length), self.log2_seq, columns.astype(np.float64))
        half = np.interp(head_dim, self.head_dims, self.half_waves[pass_])
        waves = heads * seq_length / 128.0 / self.streaming_multiprocessors
        return bilinear(table, row, column) * waves / (waves + half)

    def length_factor(self, seq_length: Num) -> Num:
        """Efficiency at a length over that at 4,096, of both passes together, head width 128."""
        share = {p: self._saturated(seq_length, p) / self._saturated(4096.0, p) for p in PASSES}
        return 3.5 / (1.0 / share["forward"] + 2.5 / share["backward"])

    def _saturated(self, seq_length: Num, pass_: AttentionPass) -> Num:
        columns = np.arange(self.log2_seq.size, dtype=np.float64)
        column = np.interp(np.log2(seq_length), self.log2_seq, columns)
        return bilinear(self.efficiency_of[pass_], np.zeros_like(column), column)

    def seconds(
        self, seq_length: Num, heads: Num, d_qk: Num, d_v: Num, pass_: AttentionPass = "forward"
    ) -> Num:
        """Time of causal attention.

        `heads s^2 (d_qk + d_v)` FLOPs forward, 2.5 times that backward (2307.08691, section 4.1).
        """
        flops = (
            heads * seq_length * seq_length * (d_qk + d_v) * (1.0 if pass_ == "forward" else 2.5)
        )
        return flops / (self.peak_flops_per_s * self.efficiency(seq_length, heads, d_qk, pass_))
