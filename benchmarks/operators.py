"""Error of the operator tables on rows they were not made from. Prints Markdown, writes nothing.

python benchmarks/operators.py
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from typing import cast

import numpy as np
import pandas as pd
from operator_collectives import OPS, SIZES, collective_rows, curve_on_grid
from operator_compute import (
    GEMM_K,
    GEMM_M,
    GEMM_N,
    Roofline,
    attention_rows,
    filled,
    fit_attention,
    fit_roofline,
    gemm_grid,
    gemm_rows,
    lookup,
    training_rows,
    v100_layers,
)
from operator_rows import BOARDS, ROOT, Array, Board, microbench

from autoparallel.operators import Operators, load_operators
from autoparallel.units import Num

TABLES = ROOT / "profiles" / "operators"
IDS = {
    "v100": "v100-sxm-32gb",
    "a100": "a100-sxm-80gb",
    "h100": "h100-sxm-80gb",
    "h200": "h200-sxm-141gb",
    "b200": "b200-sxm-180gb",
}
FOLDS = 7


def column(frame: pd.DataFrame, *names: str) -> tuple[Array, ...]:
    """Columns as float64 arrays."""
    return tuple(frame[name].to_numpy(dtype=np.float64) for name in names)


def errors(predicted: Num, measured: Array) -> str:
    """`median / p90` of the absolute relative error, in percent."""
    off = 100 * np.abs(np.asarray(predicted) / measured - 1)
    return f"{np.median(off):.1f} / {np.percentile(off, 90):.1f}"


def table(title: str, head: list[str], rows: Iterator[list[str]]) -> None:
    """One Markdown table."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def alpha_beta(x: Array, t: Array, at: Array) -> Array:
    """Relative least squares of `a + b x`, the form a table replaces."""
    a, b = np.linalg.lstsq(np.stack([1 / t, x / t], axis=1), np.ones_like(t), rcond=None)[0]
    return np.asarray(a + b * at, dtype=np.float64)


def left_out_sizes(frame: pd.DataFrame) -> Iterator[list[str]]:
    """Every second size left out, ends kept; table against alpha-beta on the same rows."""
    for board in BOARDS:
        rows = collective_rows(frame, board.gpu)
        for op in OPS:
            got: list[Array] = []
            for ranks in (2, 4, 8):
                of = rows[(rows.op == op) & (rows.ranks == ranks)].sort_values("bytes")
                x, t = column(of, "bytes", "seconds")
                out = np.arange(len(x)) % 2 == 1
                out[-1] = False
                log_t = np.interp(
                    np.log(x[out]), np.log(SIZES), np.log(curve_on_grid(x[~out], t[~out]))
                )
                line = alpha_beta(x[~out], t[~out], x[out])
                got.append(np.stack([np.exp(log_t), line, t[out]]))
            tab, line, truth = np.concatenate(got, axis=1)
            count = f"{truth.size}"
            yield [board.stem, op, count, errors(tab, truth), errors(line, truth)]


def other_sources(frame: pd.DataFrame, ops: dict[str, Operators]) -> Iterator[list[str]]:
    """The shipped tables against sources they do not contain."""
    for stem, name in (("a100", "A100"), ("v100", "V100")):
        rows = frame[(frame.kind == "collective") & (frame.gpu == name)]
        for _, of in rows.groupby("n_gpus"):
            size, ranks, ms = column(of, "size_bytes", "n_gpus", "time_ms")
            took = ops[stem].collectives.seconds("all_reduce", size, ranks)
            label = f"vTrain fp32 all_reduce, {ranks[0]:.0f} ranks"
            yield [stem, label, f"{size.size}", errors(took, ms / 1e3)]
    rows = frame[frame.source.str.contains("NVSWITCH_BW")]
    for op in ("all_reduce", "all_gather"):
        size, ranks, rate = column(rows[rows.op.str.contains(op)], "size_bytes", "n_gpus", "value")
        took = ops["h100"].collectives.seconds(op, size, ranks)
        label = f"meta-pytorch/autoparallel {op} 1 GiB"
        yield ["h100", label, f"{size.size}", errors(took, size / rate / 1e9)]
    rows = frame[frame.source.str.contains("network/benchmarks/README") & (frame.n_nodes == 4)]
    for label, of in (
        (">= 16 MiB", rows[rows["size_bytes"] >= 2**24]),
        ("< 16 MiB", rows[rows["size_bytes"] < 2**24]),
    ):
        size, rate = column(of, "size_bytes", "value")
        took = ops["a100"].network.seconds("all_reduce", size, 4.0, 8.0, 92e9 / 0.96)
        truth = 2 * 31 / 32 * size / rate / 1e9
        yield [
            "network",
            f"ml-engineering 4x8 all_reduce {label}",
            f"{size.size}",
            errors(took, truth),
        ]


def gemm_folds(
    rows: pd.DataFrame, board: Board, precision: str
) -> Iterator[tuple[pd.DataFrame, Array, Array, Array]]:
    """Per fold of (n, k) pairs: left-out rows and the three predictions."""
    pairs = np.array(sorted(set(zip(rows.n, rows.k, strict=True))))
    order = np.random.default_rng(0).permutation(len(pairs))
    m3, n3, k3 = np.meshgrid(GEMM_M, GEMM_N, GEMM_K, indexing="ij")
    for fold in range(FOLDS):
        out = set(map(tuple, pairs[order[fold::FOLDS]]))
        mask = np.array([pair in out for pair in zip(rows.n, rows.k, strict=True)])
        train, test = rows[~mask], rows[mask]
        m, n, k = column(test, "m", "n", "k")
        form: Roofline = fit_roofline(train, board, precision)
        fitted = form.seconds(m, n, k)
        grid = form.seconds(m3, n3, k3)
        residual = np.full(grid.shape, np.nan)
        known = train[train.m.isin(GEMM_M)]
        axes = zip((GEMM_M, GEMM_N, GEMM_K), "mnk", strict=True)
        at = tuple(np.searchsorted(axis, known[c]) for axis, c in axes)
        residual[at] = np.log(known.seconds / grid[at])
        flops = 2.0 * m3 * n3 * k3
        both = lookup(flops * np.exp(filled(residual)), m, n, k) / (2.0 * m * n * k) * fitted
        yield test, fitted, lookup(gemm_grid(train), m, n, k), both


def left_out_gemm(frame: pd.DataFrame) -> Iterator[list[str]]:
    """Whole (n, k) pairs left out: compact form, table, table of the form's residuals."""
    for board in BOARDS[1:]:
        for precision in ("bf16", "fp8"):
            rows = gemm_rows(frame, board.gpu, precision)
            if rows.empty:
                continue
            parts = [
                (column(test, "seconds")[0], *predicted)
                for test, *predicted in gemm_folds(rows, board, precision)
            ]
            truth, *got = (np.concatenate(x) for x in zip(*parts, strict=True))
            yield [board.stem, precision, f"{truth.size}", *(errors(p, truth) for p in got)]
    yield left_out_v100(frame)


def left_out_v100(frame: pd.DataFrame) -> list[str]:
    """The V100 form fitted without one model's layers at a time."""
    board = BOARDS[0]
    raw = v100_layers(frame)
    model = raw.source.str.extract(r"gpt_(\d+_?\d*B)")[0]
    predicted, truth = [], []
    for name in sorted(set(model)):
        form = fit_roofline(gemm_rows(raw[model != name], board.gpu, "bf16"), board, "bf16")
        m, n, k, ms = column(raw[model == name], "m", "n", "k", "time_ms")
        predicted.append(form.seconds(m, n, k))
        truth.append(ms / 1e3)
    t = np.concatenate(truth)
    return ["v100", "fp16 (by model)", f"{t.size}", errors(np.concatenate(predicted), t), "-", "-"]


def shipped_gemm(frame: pd.DataFrame, ops: dict[str, Operators]) -> Iterator[list[str]]:
    """The shipped GEMM tables on rows off their grid."""
    for board in BOARDS[1:]:
        rows = gemm_rows(frame, board.gpu, "bf16")
        m, n, k, t = column(rows[rows.m % 2 == 1], "m", "n", "k", "seconds")
        yield [
            board.stem,
            "m of 1025, 2049, 4097",
            f"{t.size}",
            errors(ops[board.stem].gemm.seconds(m, n, k), t),
        ]
    for stem, gpu in (("b200", "B200-SXM"), ("a100", "A100-PCIe-80GB")):
        yield from training_layouts(stem, gpu, ops[stem])


SKINNY = {
    ("a100", "bf16"): 0.695,
    ("h100", "bf16"): 0.74,
    ("h100", "fp8"): 0.475,
    ("h200", "bf16"): 0.69,
    ("h200", "fp8"): 0.395,
    ("b200", "bf16"): 0.63,
    ("b200", "fp8"): 0.26,
}
"""Median share of memory bandwidth at m <= 64, n k >= 4096^2, in the GEMM tables of aiconfigurator
0.12.0 (middle of the range over backends). The rows themselves are not in `measured/`."""


def skinny_gemm(ops: dict[str, Operators]) -> Iterator[list[str]]:
    """Products below the tables' smallest m: the floor that GemmTable.seconds falls to."""
    n = np.array([4096.0, 8192.0, 8192.0, 16384.0, 16384.0])
    k = np.array([4096.0, 4096.0, 8192.0, 8192.0, 16384.0])
    bandwidth = {board.stem: board.memory_bytes_per_s for board in BOARDS}
    for (stem, precision), published in SKINNY.items():
        bytes_moved = n * k * (1 if precision == "fp8" else 2)
        seconds = ops[stem].gemm.seconds(32.0, n, k, "fp8" if precision == "fp8" else "bf16")
        share = float(np.median(bytes_moved / seconds)) / bandwidth[stem]
        yield [stem, precision, f"{published:.2f}", f"{share:.2f}"]


def training_layouts(stem: str, gpu: str, op: Operators) -> Iterator[list[str]]:
    """Per pass; one factor (the pass medians' median) is taken out, as calibration would."""
    parts = []
    for pass_, of in training_rows(gpu).groupby("pass_"):
        m, n, k, t = column(of, "m", "n", "k", "seconds")
        name = cast("str", pass_)
        predicted = op.gemm.seconds(m, n, k, "bf16", name)  # type: ignore[arg-type]
        parts.append((name, np.asarray(predicted), t))
    factor = float(np.median(np.concatenate([t / p for _, p, t in parts])))
    for name, predicted, t in parts:
        label = f"SimuMax {gpu} {name}, table x {factor:.2f}"
        yield [stem, label, f"{t.size}", errors(predicted * factor, t)]


def attention() -> Iterator[list[str]]:
    """Fit error of `e w / (w + w0)` (in sample: too few rows to leave out)."""
    for gpu, sms in (("A100-PCIe-80GB", 108), ("B200-SXM", 148)):
        for name in ("sdp_fwd", "sdp_bwd"):
            for d in (128, 192):
                rows = attention_rows(gpu, name)
                rows = rows[rows.d == d]
                curve, half, predicted = fit_attention(rows, sms)
                (truth,) = column(rows, "efficiency")
                shown = ", ".join(f"{s:.0f}: {e:.2f}" for s, e in curve.items())
                label = [gpu, f"{name} d={d}", f"{truth.size}", shown, f"{half:.2f}"]
                yield [*label, errors(predicted(), truth)]


def best_ms(call: object, repeats: int = 20) -> float:
    """Fastest of some calls, in ms."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def speed(ops: Operators) -> Iterator[list[str]]:
    """Load and lookup times, for orientation."""
    rng = np.random.default_rng(0)
    m, n, k, size = 2.0 ** rng.uniform(8, 15, (4, 10_000))
    yield ["load one GPU", f"{best_ms(lambda: load_operators(ops.gpu, TABLES)):.1f} ms"]
    yield ["GEMM, 10,000 rows", f"{best_ms(lambda: ops.gemm.seconds(m, n, k)):.2f} ms"]
    yield [
        "collective, 10,000 rows",
        f"{best_ms(lambda: ops.collectives.seconds('all_reduce', size * m, 8.0)):.2f} ms",
    ]


def main() -> None:
    """Prints every table."""
    frame = microbench()
    ops = {stem: load_operators(name, TABLES) for stem, name in IDS.items()}
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, pandas {pd.__version__}")
    print("\nErrors are `median / p90` of |predicted / measured - 1| in percent.")
    head = ["GPU", "what", "rows"]
    table(
        "Collectives: every second measured size left out",
        [*head, "table", "alpha-beta"],
        left_out_sizes(frame),
    )
    table(
        "Collectives: against sources not in the table", [*head, "table"], other_sources(frame, ops)
    )
    table(
        f"GEMM: (n, k) pairs left out, {FOLDS} folds",
        [*head, "compact form", "table (shipped)", "table of the form's residuals"],
        left_out_gemm(frame),
    )
    table("GEMM: shipped tables off their grid", [*head, "table"], shipped_gemm(frame, ops))
    table(
        "GEMM with m = 32: share of memory bandwidth (assumed floor against published medians)",
        ["GPU", "precision", "published", "table"],
        skinny_gemm(ops),
    )
    table(
        "Attention: fit, causal share of peak at saturation by length",
        [*head, "saturated", "half waves", "error"],
        attention(),
    )
    table("Speed (shared machine, orientation only)", ["what", "best"], speed(ops["h100"]))


if __name__ == "__main__":
    main()
