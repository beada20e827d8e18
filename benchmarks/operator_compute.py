"""From measured rows to GEMM times and attention efficiencies.

`build_operator_tables.py` writes what these functions return; `operators.py` calls them without
some of the rows and scores them on those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from operator_rows import MEASURED, Array, Board
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import least_squares

Curve = dict[float, float]
"""Sequence length -> efficiency."""


def v100_layers(frame: pd.DataFrame) -> pd.DataFrame:
    """Forward times of Aceso's linear layers, without those that contain an all-reduce.

    A row-parallel layer at 2 ranks exceeds one rank's rate by just the table's all-reduce of its
    output; so of row-parallel layers only the unsharded ones count.
    """
    rows = frame[(frame.kind == "op") & (frame.gpu == "V100-SXM2-32GB")]
    row_parallel = rows.op.str.contains("dense|GEMM-2")
    return rows[~row_parallel | rows.source.str.contains("_tp1_")]


def gemm_rows(frame: pd.DataFrame, gpu: str, precision: str) -> pd.DataFrame:
    """m, n, k, seconds of isolated GEMMs; a V100's are its transformer linear layers in fp16."""
    if gpu.startswith("V100"):
        rows = v100_layers(frame)
    else:
        dtype = "fp8" if precision == "fp8" else "bfloat16"
        rows = frame[(frame.kind == "gemm") & (frame.gpu == gpu) & (frame.dtype == dtype)]
    seconds = rows.assign(seconds=rows.time_ms / 1e3)
    return seconds.groupby(["m", "n", "k"])[["seconds"]].median().reset_index()


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Compact form: peak x e_max x waves/(waves + w0) x tile fill x k/(k + k0), bytes, launch."""

    efficiency: float
    k0: float
    launch_us: float
    memory_share: float
    w0: float
    board: Board
    precision: str

    def seconds(self, m: Array, n: Array, k: Array) -> Array:
        """Time of the product."""
        rows, columns = np.ceil(m / 128), np.ceil(n / 256)
        waves = rows * columns / self.board.sms
        fill = m * n / (rows * columns * 128 * 256)
        share = self.efficiency * k / (k + self.k0) * fill * waves / (waves + self.w0)
        bytes_in = 1.0 if self.precision == "fp8" else 2.0
        moved = bytes_in * k * (m + n) + 2.0 * m * n
        memory = moved / (self.board.memory_bytes_per_s * self.memory_share)
        flops = 2.0 * m * n * k / (self.board.peak(self.precision) * share)
        return np.asarray(self.launch_us * 1e-6 + np.maximum(flops, memory), dtype=np.float64)


def fit_roofline(rows: pd.DataFrame, board: Board, precision: str) -> Roofline:
    """Least squares on log time with a soft L1 loss."""
    m, n, k, seconds = (rows[c].to_numpy(dtype=np.float64) for c in ("m", "n", "k", "seconds"))

    def form(p: Array) -> Roofline:
        e, k0, launch, share, w0 = (float(x) for x in p)
        return Roofline(
            efficiency=e,
            k0=k0,
            launch_us=launch,
            memory_share=share,
            w0=w0,
            board=board,
            precision=precision,
        )

    def residual(p: Array) -> Array:
        return np.asarray(np.log(form(p).seconds(m, n, k) / seconds), dtype=np.float64)

    fit = least_squares(
        residual,
        np.array([0.8, 200.0, 2.0, 0.7, 0.5]),
        bounds=([0.1, 0.0, 0.0, 0.1, 0.0], [1.0, 5000.0, 100.0, 1.0, 5.0]),
        loss="soft_l1",
        f_scale=0.1,
    )
    return form(fit.x)


GEMM_M = 2.0 ** np.arange(9, 16)
GEMM_N = np.array([512, 1024, 2048, 4096, 5120, 8192, 12288, 16384, 51200, 65536], dtype=np.float64)
GEMM_K = np.array([1024, 2048, 4096, 5120, 8192, 12288, 16384], dtype=np.float64)


def gemm_grid(rows: pd.DataFrame) -> Array:
    """Seconds on [GEMM_M, GEMM_N, GEMM_K]; holes from their neighbours in log rate."""
    flops = 2.0 * GEMM_M[:, None, None] * GEMM_N[None, :, None] * GEMM_K
    m_n_k = zip(rows.m, rows.n, rows.k, strict=True)
    times = dict(zip(m_n_k, rows.seconds.to_numpy(dtype=np.float64), strict=True))
    log_rate = np.full(flops.shape, np.nan)
    for i, m in enumerate(GEMM_M):
        for j, n in enumerate(GEMM_N):
            for h, k in enumerate(GEMM_K):
                if (m, n, k) in times:
                    log_rate[i, j, h] = math.log(times[m, n, k] / flops[i, j, h])
    seconds = flops * np.exp(filled(log_rate))
    for axis in (0, 1, 2):
        seconds = np.flip(np.minimum.accumulate(np.flip(seconds, axis), axis), axis)
    return seconds


def filled(grid: Array) -> Array:
    """Every hole replaced by the mean of its 1-D interpolations, those outside the ends at 1/10."""
    axes = [np.log(GEMM_M), np.log(GEMM_N), np.log(GEMM_K)]
    result = grid.copy()
    for hole in np.argwhere(np.isnan(grid)):
        total = weight = 0.0
        for axis, x in enumerate(axes):
            line = grid[tuple(slice(None) if a == axis else h for a, h in enumerate(hole))]
            known = ~np.isnan(line)
            if not known.any():
                continue
            at = x[hole[axis]]
            w = 1.0 if x[known].min() < at < x[known].max() else 0.1
            total += w * float(np.interp(at, x[known], line[known]))
            weight += w
        result[tuple(hole)] = total / weight
    return result


def gemm_times(rows: pd.DataFrame, board: Board, precision: str) -> tuple[Array, Roofline]:
    """Table and its launch time; a V100's sweep is too thin for a table, so its fit fills one."""
    form = fit_roofline(rows, board, precision)
    if board.stem != "v100":
        return gemm_grid(rows), form
    m, n, k = np.meshgrid(GEMM_M, GEMM_N, GEMM_K, indexing="ij")
    return form.seconds(m, n, k), form


def training_rows(gpu: str) -> pd.DataFrame:
    """SimuMax matmul rows: m, n, k, pass and seconds (efficiency is 2 m n k over peak and time)."""
    frame = pd.read_csv(MEASURED / "op_efficiency.csv")
    rows = frame[(frame.op == "matmul") & (frame.gpu == gpu)]
    parts = rows["shape"].str.extract(
        r"m=(\d+), k=(\d+), n=(\d+), layout=(\w+), accumulate=\w+, out_dtype=(\w+)"
    )
    parts.columns = pd.Index(["m", "k", "n", "layout", "out"])
    parts = parts.astype({"m": float, "k": float, "n": float})
    flops = 2.0 * parts.m * parts.k * parts.n
    parts["seconds"] = flops / (rows.efficiency * rows.peak_tflops * 1e12)
    parts["pass_"] = parts.layout.map({"TN": "forward", "NN": "dgrad", "NT": "wgrad"})
    return parts[(parts.pass_ != "wgrad") | (parts.out == "fp32")]


def pass_factors(gpu: str) -> dict[str, float]:
    """Median time of dgrad and of wgrad (fp32 accumulate) over forward of the same linear layer."""
    rows = training_rows(gpu)
    layers = [str(sorted(x)) for x in zip(rows.m, rows.n, rows.k, strict=True)]
    rows = rows.assign(layer=layers)
    table = rows.groupby(["layer", "pass_"]).seconds.median().unstack().dropna()
    return {p: float((table[p] / table.forward).median()) for p in ("forward", "dgrad", "wgrad")}


def lookup(times: Array, m: Array, n: Array, k: Array) -> Array:
    """The table at any size: multilinear in the logs of rate and size, edge rate outside."""
    flops = 2.0 * GEMM_M[:, None, None] * GEMM_N[None, :, None] * GEMM_K
    axes = [np.log(GEMM_M), np.log(GEMM_N), np.log(GEMM_K)]
    inside = [
        np.clip(np.log(x), axis[0], axis[-1]) for x, axis in zip((m, n, k), axes, strict=True)
    ]
    rate = RegularGridInterpolator(axes, np.log(times / flops))(np.stack(inside, axis=-1))
    return np.asarray(2.0 * m * n * k * np.exp(rate), dtype=np.float64)


def training_factor(board: Board, times: Array) -> float:
    """Median forward time in SimuMax's training layouts over the table at those sizes."""
    if board.training != board.gpu:
        return 1.0
    rows = training_rows(board.gpu)
    rows = rows[(rows.pass_ == "forward") & (rows[["m", "n", "k"]].min(axis=1) >= 1024)]
    m, n, k, seconds = (rows[c].to_numpy(dtype=np.float64) for c in ("m", "n", "k", "seconds"))
    return float(np.median(seconds / lookup(times, m, n, k)))


SEQ = 2.0 ** np.arange(9, 18)
AIC_CONTEXT = {
    512: (0.10, 0.23),
    2048: (0.27, 0.46),
    4096: (0.38, 0.53),
    8192: (0.45, 0.57),
    16384: (0.52, 0.64),
}
"""Range over backends and GPUs of causal context attention, share of bf16 peak (aiconfigurator)."""


def attention_rows(gpu: str, name: str) -> pd.DataFrame:
    """SimuMax attention rows with causal FLOPs.

    It counts unmasked FLOPs (2 and 5 x b s^2 a (dqk + dv)) under a causal mask, so its figures
    pass 1 and half of each is the causal share of peak.
    """
    frame = pd.read_csv(MEASURED / "op_efficiency.csv")
    rows = frame[(frame.op == name) & (frame.gpu == gpu)]
    parts = rows["shape"].str.extract(
        r"batch=(\d+), seq_len=(\d+), head_num=(\d+), .*qk_head_dim=(\d+)"
    )
    parts.columns = pd.Index(["b", "s", "a", "d"])
    parts = parts.astype(float)
    parts["efficiency"] = rows.efficiency / 2.0
    return parts


def fit_attention(rows: pd.DataFrame, sms: int) -> tuple[Curve, float, Callable[..., Array]]:
    """Saturated efficiency per sequence length and half-saturation waves of e w / (w + w0)."""
    lengths = sorted(set(rows.s))
    waves = (rows.b * rows.a * rows.s / 128.0 / sms).to_numpy(dtype=np.float64)
    which = np.searchsorted(lengths, rows.s)
    measured = rows.efficiency.to_numpy(dtype=np.float64)

    def predicted(p: Array) -> Array:
        return np.asarray(p[which] * waves / (waves + p[-1]), dtype=np.float64)

    start = np.array([0.5] * len(lengths) + [1.0])
    upper = [2.0] * len(lengths) + [20.0]

    def residual(p: Array) -> Array:
        return np.asarray(np.log(predicted(p) / measured), dtype=np.float64)

    fit = least_squares(residual, start, bounds=(0.0, upper))
    curve = dict(zip(lengths, (float(x) for x in fit.x[:-1]), strict=True))
    return curve, float(fit.x[-1]), lambda: predicted(fit.x)


def sequence_shape() -> Array:
    """Saturated efficiency over that at 4096 tokens, from the middles of published ranges."""
    middle = [(low + high) / 2 for low, high in AIC_CONTEXT.values()]
    base = middle[list(AIC_CONTEXT).index(4096)]
    shape = np.interp(np.log(SEQ), np.log(list(AIC_CONTEXT)), middle) / base
    return np.asarray(shape, dtype=np.float64)


def saturated(curve: Curve) -> Array:
    """Measured lengths as they are; assumed outside: the published shape below, flat above."""
    x = np.array(sorted(curve))
    known = np.interp(np.log(SEQ), np.log(x), [curve[s] for s in x])
    return np.where(x[0] > SEQ, curve[x[0]] * sequence_shape(), known)


def attention_table() -> list[list[str]]:
    """Rows generation, pass, head_dim, nature, half_waves, efficiency per length."""
    result: list[list[str]] = []
    ratio: dict[tuple[str, str, int], tuple[Array, float]] = {}
    for generation, gpu, sms in (("ampere", "A100-PCIe-80GB", 108), ("blackwell", "B200-SXM", 148)):
        for name, pass_ in (("sdp_fwd", "forward"), ("sdp_bwd", "backward")):
            for d in (128, 192):
                rows = attention_rows(gpu, name)
                curve, half, _ = fit_attention(rows[rows.d == d], sms)
                ratio[generation, pass_, d] = (saturated(curve), half)
                lengths = "/".join(f"{int(s)}" for s in curve)
                nature = f"measured at s={lengths} on {gpu}; assumed at other lengths"
                result.append(_attention_row(generation, pass_, d, nature, saturated(curve), half))
    middle = 0.5 * sum(AIC_CONTEXT[4096])
    for pass_ in ("forward", "backward"):
        for d in (128, 192):
            relative = [
                ratio[g, pass_, d][0][3] / ratio[g, "forward", 128][0][3]
                for g in ("ampere", "blackwell")
            ]
            half = ratio["ampere", pass_, d][1]
            nature = (
                "published: middle of aiconfigurator's range; half_waves assumed from ampere"
                if (pass_, d) == ("forward", 128)
                else "assumed: forward at head_dim 128 times the mean ratio of ampere and blackwell"
            )
            values = middle * sequence_shape() * float(np.mean(relative))
            result.append(_attention_row("hopper", pass_, d, nature, values, half))
    volta = [["volta", *row[1:3], "assumed: as ampere", *row[4:]] for row in result[:4]]
    return volta + result


def _attention_row(
    generation: str, pass_: str, d: int, nature: str, values: Array, half: float
) -> list[str]:
    return [generation, pass_, str(d), nature, f"{half:.3f}", *(f"{v:.4f}" for v in values)]
