"""Makes `profiles/operators/*.csv` from the rows in `benchmarks/measured/`.

python benchmarks/build_operator_tables.py [--out profiles/operators]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from operator_collectives import (
    NETWORK_SIZES,
    NODES,
    OPS,
    SIZES,
    Collectives,
    board_collectives,
    gb200_collectives,
    network_floors,
    network_fractions,
)
from operator_compute import (
    GEMM_K,
    GEMM_M,
    GEMM_N,
    SEQ,
    attention_table,
    gemm_rows,
    gemm_times,
    pass_factors,
    training_factor,
    v100_layers,
)
from operator_rows import BOARDS, GB200, ROOT, Board, microbench

MEMORY_SHARE = 0.8
DATE = "2026-11-21"
DATASHEETS = (
    "datasheet peaks and bandwidths: NVIDIA V100, A100, H100, H200 datasheets; "
    "DGX B200 and GB200 NVL72"
)
AIC = "ai-dynamo/aiconfigurator@095f58a51 (Apache-2.0)"
SIMUMAX = "MooreThreads/SimuMax@4dcaae5 (Apache-2.0)"
STAS = "stas00/ml-engineering@744d01e (CC-BY-SA-4.0; Stas Bekman)"


def write(path: Path, header: Mapping[str, str], title: list[str], rows: list[list[str]]) -> None:
    """A table file: `# key: value` lines, a title row, rows."""
    lines = [f"# {key}: {value}" for key, value in {**header, "date": DATE}.items()]
    lines += [",".join(row) for row in [title, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def sources_of(rows: pd.DataFrame) -> str:
    """Distinct sources of some rows, file names cut to their folder."""
    cut = rows.source.str.replace(r" gpt_\S+", "", regex=True)
    cut = cut.str.replace(r"_(all_\w+|reduce_scatter)_\dgpus\.csv", "", regex=True)
    return "; ".join(sorted(set(cut)))


def write_collectives(path: Path, frame: pd.DataFrame, board: Board, table: Collectives) -> None:
    """One file of collective times in us."""
    used = frame[(frame.kind == "collective") & (frame.gpu == board.gpu)]
    small = f"; custom_all_reduce: {AIC} custom all-reduce tables" if board.custom else ""
    floor = "1 MiB" if board.stem == "v100" else "512 B"
    header = {
        "gpu": board.gpu,
        "source": sources_of(used) + small,
        "unit": "us per collective; columns are bytes of the full buffer of one rank",
        "nature": "measured to 8 ranks; assumed above (latency per doubling as 4 to 8, wire bytes)",
        "conversion": "size conventions checked against NVLink limits (see benchmarks/measured/"
        "README.md); a size slower than a larger one takes the larger one's time; "
        f"alpha-beta below {floor} and above the largest size measured",
        "made by": "benchmarks/build_operator_tables.py",
    }
    rows = [
        [op, str(ranks), nature, *(f"{t * 1e6:.5g}" for t in times)]
        for (op, ranks), (nature, times) in table.items()
    ]
    title = ["op", "ranks", "nature", *(f"2^{int(x)}" for x in np.log2(SIZES))]
    write(path, header, title, rows)


def write_network(path: Path, frame: pd.DataFrame) -> None:
    """Fractions of theoretical bus bandwidth and latency floors between nodes."""
    rows = []
    for op in OPS:
        fractions = network_fractions(frame, "ata" if op == "all_to_all" else "nic")
        known = max(fractions)
        floors = network_floors(frame, "all_reduce" if op == "all_reduce" else "all_gather")
        for nodes in NODES:
            floor = "; floor assumed" if nodes > 32 or op == "all_to_all" else ""
            nature = ("measured" if nodes <= known else f"assumed: as {known} nodes") + floor
            values = fractions[min(nodes, known)]
            shown = [f"{v:.9g}" for v in values]
            rows.append([op, str(nodes), nature, f"{floors[nodes]:.5g}", *shown])
    hf = frame[frame.source.str.contains("ultrascale") & (frame.n_nodes > 1)]
    fabric = " ".join(
        f"{nodes:.0f}n {rate:.0f}" for nodes, rate in zip(hf.n_nodes, hf.value, strict=True)
    )
    header = {
        "source": "aliyun/SimAI@cef83f9d inputs/ratio nic_ratio.csv, ata_ratio.csv (Apache-2.0; "
        "A100/H800 class); floors: meta-pytorch/autoparallel@a54c252 NCCL 2.27.5 tuner (BSD-3)",
        "unit": "share of theoretical bus bandwidth by full-buffer bytes; floor_us = lowest tuner "
        "latency over algorithms and protocols at 8 ranks a node",
        "conversion": "non-decreasing in size and at most doubling with it; floors beyond 32 nodes "
        "extrapolated (tree: +1 step a doubling, ring: x2); all_to_all floors as all_gather's",
        "for comparison": f"H100 with EFA, mean all-reduce bus GB/s by nodes: {fabric} "
        "(nanotron/ultrascale-playbook, Apache-2.0; 5-95 % band is wide, not used in the table)",
        "made by": "benchmarks/build_operator_tables.py",
    }
    title = ["op", "nodes", "nature", "floor_us", *(f"2^{int(x)}" for x in np.log2(NETWORK_SIZES))]
    write(path, header, title, rows)


def write_gemm(path: Path, frame: pd.DataFrame, board: Board) -> None:
    """One file of GEMM times in us for every precision of the GPU."""
    rows, launches, training = [], {}, 1.0
    used = frame[frame.kind.isin(["gemm", "op"]) & (frame.gpu == board.gpu)]
    for precision in ("bf16", "fp8") if (used.dtype == "fp8").any() else ("bf16",):
        times, form = gemm_times(gemm_rows(frame, board.gpu, precision), board, precision)
        launches[precision] = form.launch_us
        if precision == "bf16":
            training = training_factor(board, times)
        for i, m in enumerate(GEMM_M):
            for j, n in enumerate(GEMM_N):
                shown = [f"{t * 1e6:.5g}" for t in times[i, j]]
                rows.append([precision, f"{m:.0f}", f"{n:.0f}", *shown])
    boards = [board.training] if board.training else ["A100-PCIe-80GB", "B200-SXM"]
    factors = pd.DataFrame([pass_factors(gpu) for gpu in boards]).mean()
    measured = board.stem != "v100"
    header = {
        "gpu": board.gpu,
        "source": sources_of(used) + f"; pass factors: {SIMUMAX}; {DATASHEETS}",
        "unit": "us per product; m rows of activations, n outputs, k reduced",
        "nature": "measured: isolated kernels"
        if measured
        else f"fitted: compact form on {len(v100_layers(frame))} fp16 linear layers "
        "(m 2048-16384, n 768-20480, k 2048-20480)",
        "conversion": "median per shape; made non-decreasing along m, n and k; missing shapes from "
        "their neighbours in log rate",
        "memory_bytes_per_s": f"{board.memory_bytes_per_s * MEMORY_SHARE:.6g}",
        "memory note": f"assumed: {MEMORY_SHARE} of the datasheet bandwidth, as {AIC} does",
        **{f"launch_us {p}": f"{us:.4g}" for p, us in launches.items()},
        "launch note": "intercept of the compact form fitted to the same rows",
        **{f"pass_factor {p}": f"{factors[p]:.4f}" for p in ("forward", "dgrad", "wgrad")},
        "pass note": "median over linear layers on " + " and ".join(boards)
        if board.training
        else "assumed: mean of A100-PCIe and B200",
        "training_factor": f"{training:.4g}",
        "made by": "benchmarks/build_operator_tables.py",
    }
    write(path, header, ["precision", "m", "n", *(f"k={k:.0f}" for k in GEMM_K)], rows)


def write_attention(path: Path) -> None:
    """Flash attention efficiencies."""
    header = {
        "source": f"{SIMUMAX} sdp_fwd, sdp_bwd; shape over length: {AIC} context attention tables, "
        "range over backends: 512 .10-.23, 2K .27-.46, 4K .38-.53, 8K .45-.57, 16K .52-.64",
        "unit": "share of dense bf16 peak, causal FLOPs, saturated; half_waves: waves of 128-query "
        "tiles at which half is reached",
        "conversion": "SimuMax counts unmasked FLOPs (2 and 5 b a s^2 (dqk + dv)) under a causal "
        "mask: halved; e w / (w + w0) fitted per head width",
        "assumed": "lengths outside those measured follow aiconfigurator's shape below and stay "
        "flat above; widths below 128 as 128; volta as ampere; hopper backward by ratio",
        "made by": "benchmarks/build_operator_tables.py",
    }
    title = ["generation", "pass", "head_dim", "nature", "half_waves"]
    write(path, header, [*title, *(f"s={s:.0f}" for s in SEQ)], attention_table())


def best_matmul(frame: pd.DataFrame, gpu: str) -> float:
    """Best bf16 TFLOP/s anyone measured (ml-engineering)."""
    rows = frame[(frame.kind == "mamf") & (frame.gpu == gpu) & (frame.dtype == "bf16")]
    return float(rows.value.iloc[0])


GENERATION = {
    "v100": "volta",
    "a100": "ampere",
    "h100": "hopper",
    "h200": "hopper",
    "b200": "blackwell",
}


def index_row(
    gpu: str,
    stem: str,
    nature: str = "measured",
    *,
    collectives: Board | None = None,
    gemm_time_factor: float = 1.0,
) -> list[str]:
    """What GPU id `gpu` reads: the tables of `stem`, or the collectives of another board."""
    own = next(board for board in BOARDS if board.stem == stem)
    board = collectives or own
    numbers = (gemm_time_factor, board.sms, board.peak_flops_per_s)
    shown = [f"{x:.6g}" for x in numbers]
    return [gpu, board.stem, stem, GENERATION[stem], *shown, nature]


def write_index(path: Path, frame: pd.DataFrame) -> None:
    """Which tables a GPU id reads and what is borrowed."""
    best = {
        name: best_matmul(frame, f"NVIDIA {name} SXM")
        for name in ("H100", "GH200", "B200", "B300", "GB200")
    }
    b300, gb200 = best["B200"] / best["B300"], best["B200"] / best["GB200"]
    gh200 = best["H100"] / best["GH200"]
    by_best = "the ratio of best GEMM rates"
    rows = [
        index_row("v100-sxm-32gb", "v100"),
        index_row("v100-sxm-16gb", "v100", "assumed: as v100-sxm-32gb"),
        index_row("a100-sxm-80gb", "a100"),
        index_row("a100-sxm-40gb", "a100", "assumed: as a100-sxm-80gb"),
        index_row("h100-sxm-80gb", "h100"),
        index_row(
            "h100-96gb-hbm2e-500w", "h100", "assumed: as h100-sxm-80gb despite its power cap"
        ),
        index_row("gh200-96gb", "h100", f"assumed: h100 by {by_best}", gemm_time_factor=gh200),
        index_row("h200-sxm-141gb", "h200"),
        index_row("b200-sxm-180gb", "b200"),
        index_row("b300-sxm-288gb", "b200", f"assumed: b200 by {by_best}", gemm_time_factor=b300),
        index_row(
            "gb200-nvl72",
            "b200",
            f"assumed: b200 by {by_best}; collectives of 2 and 4 ranks measured",
            collectives=GB200,
            gemm_time_factor=gb200,
        ),
        index_row(
            "gb300-nvl72",
            "b200",
            "assumed: as gb200-nvl72",
            collectives=GB200,
            gemm_time_factor=gb200,
        ),
    ]
    title = ["gpu", "collectives", "gemm", "attention", "gemm_time_factor"]
    title += ["streaming_multiprocessors", "peak_bf16_flops_per_s", "nature"]
    write(path, {"source": f"{DATASHEETS}; best GEMM rates: {STAS}"}, title, rows)


def build(out: Path) -> None:
    """Writes every table file into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    frame = microbench()
    for board in BOARDS:
        table = board_collectives(frame, board)
        write_collectives(out / f"{board.stem}-collectives.csv", frame, board, table)
        write_gemm(out / f"{board.stem}-gemm.csv", frame, board)
        if board.stem == "b200":
            mixed = gb200_collectives(frame, table)
            write_collectives(out / "gb200-collectives.csv", frame, GB200, mixed)
    write_network(out / "network.csv", frame)
    write_attention(out / "attention.csv")
    write_index(out / "index.csv", frame)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "profiles" / "operators")
    build(parser.parse_args().out)
