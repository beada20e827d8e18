"""From measured rows to collective times inside a node and shares of bandwidth between nodes.

`build_operator_tables.py` writes what these functions return; `operators.py` calls them without
some of the rows and scores them on those.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping

import numpy as np
import pandas as pd
from operator_rows import MEASURED, Array, Board

SIZES = 2.0 ** np.arange(10, 34)
RANKS = (2, 4, 8, 16, 32, 64, 128)
OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
NETWORK_SIZES = 2.0 ** np.arange(24, 35)
NODES = (2, 4, 8, 16, 32, 64, 128)


def wire_factor(op: str, ranks: float) -> float:
    """Share of the full message a rank sends."""
    return (2.0 if op in ("all_reduce", "custom_all_reduce") else 1.0) * (ranks - 1) / ranks


def collective_rows(frame: pd.DataFrame, gpu: str) -> pd.DataFrame:
    """Rows with columns op, ranks, bytes (full buffer of one rank) and seconds.

    SuperScaler (Aceso) prints the all-gather size per shard: only then is its bus bandwidth (59
    GB/s at 4 GPUs, 92 at 8) that of its reduce-scatter (57, 90); as the full buffer it would be 15.
    Its reduce-scatter and all-to-all sizes are full buffers: per shard they would exceed the
    150 GB/s of six NVLink2 links. 1e9 ms marks a run that did not fit there. All other sources fit
    the limits as full buffers (A100 222 of 300 GB/s, H100 336 of 450, B200 617 of 900).
    """
    rows = frame[
        (frame.kind == "collective") & (frame.gpu == gpu) & frame.time_ms.between(1e-6, 1e6)
    ]
    op = rows.op.replace("alltoall", "all_to_all")
    shard = rows.source.str.contains("SuperScaler") & (op == "all_gather")
    full = rows["size_bytes"] * np.where(shard, rows.n_gpus, 1.0)
    return pd.DataFrame(
        {"op": op, "ranks": rows.n_gpus, "bytes": full, "seconds": rows.time_ms / 1e3}
    )


def nvls_points(frame: pd.DataFrame, gpu: str) -> pd.DataFrame:
    """8 GiB all-reduce of ml-engineering, from bus bandwidth back to seconds."""
    rows = frame[
        (frame.gpu == gpu)
        & frame.interconnect.fillna("").str.contains("NVLS auto")
        & frame.n_gpus.isin([4, 8])
    ]
    wire = 2.0 * (rows.n_gpus - 1) / rows.n_gpus
    return pd.DataFrame(
        {
            "op": rows.op,
            "ranks": rows.n_gpus,
            "bytes": rows["size_bytes"],
            "seconds": wire * rows["size_bytes"] / (rows.value * 1e9),
        }
    )


def curve_on_grid(sizes: Iterable[float], seconds: Iterable[float]) -> Array:
    """Times on `SIZES`: the fastest any larger message did, then alpha-beta outside the rows.

    Noise of a collective has one sign (a late rank delays it, nothing hurries it), so a size that
    was slower than a larger one is set to that one's time: the table never falls with size.
    """
    best = pd.Series(list(seconds), index=list(sizes)).groupby(level=0).median().sort_index()
    x = best.index.to_numpy(dtype=np.float64)
    t = np.minimum.accumulate(best.to_numpy(dtype=np.float64)[::-1])[::-1]
    grid = np.exp(np.interp(np.log(SIZES), np.log(x), np.log(t)))
    if x[0] > SIZES[0]:
        slope = (t[1] - t[0]) / (x[1] - x[0])
        line = np.maximum(t[0] - slope * (x[0] - SIZES), 0.25 * t[0])
        grid = np.where(x[0] > SIZES, line, grid)
    low = int(np.searchsorted(x, x[-1] / 2.0))
    slope = (t[-1] - t[low]) / (x[-1] - x[low]) if low < len(x) - 1 else t[-1] / x[-1]
    result: Array = np.where(x[-1] < SIZES, t[-1] + slope * (SIZES - x[-1]), grid)
    return result


def more_ranks(op: str, four: Array, eight: Array, ranks: int) -> Array:
    """Assumed: latency grows per doubling as from 4 to 8 ranks, the rest with the wire bytes."""
    growth = max(eight[0] - four[0], 0.0) * math.log2(ranks / 8)
    scale = wire_factor(op, ranks) / wire_factor(op, 8)
    return np.asarray(eight[0] + growth + (eight - eight[0]) * scale, dtype=np.float64)


def custom_curve(row: Mapping[Hashable, float]) -> Array:
    """Small-message all-reduce kernels: floor to 16 KiB, line to 512 KiB, then bus bandwidth."""
    wire = wire_factor("custom_all_reduce", float(row["tp"]))
    floor, middle = row["floor_us_le16KB"] * 1e-6, row["us_at_512KB"] * 1e-6
    first, second = 2.0**14, 2.0**19
    ramp = np.interp(SIZES, [first, second], [floor, middle])
    large = wire * SIZES / (row["busbw_large_GBps"] * 1e9)
    return np.asarray(np.maximum(ramp, np.where(second < SIZES, large, 0.0)), dtype=np.float64)


Collectives = dict[tuple[str, int], tuple[str, Array]]


def collective_table(rows: pd.DataFrame, custom: pd.DataFrame) -> Collectives:
    """(op, ranks) -> (nature, seconds on `SIZES`)."""
    table: Collectives = {}
    for op in OPS:
        for ranks in (2, 4, 8):
            of = rows[(rows.op == op) & (rows.ranks == ranks)]
            if len(of):
                table[op, ranks] = ("measured", curve_on_grid(of.bytes, of.seconds))
    for row in custom.to_dict("records"):
        table["custom_all_reduce", int(row["tp"])] = ("measured", custom_curve(row))
    return table


def with_assumed_ranks(table: Collectives) -> Collectives:
    """The table with rows for 16 to 128 ranks."""
    result = {}
    for op in dict.fromkeys(op for op, _ in table):
        four, eight = table[op, 4][1], table[op, 8][1]
        for ranks in RANKS:
            known = table.get((op, ranks))
            result[op, ranks] = known or ("assumed", more_ranks(op, four, eight, ranks))
    return result


def board_collectives(frame: pd.DataFrame, board: Board) -> Collectives:
    """Collective table of one GPU, assumed ranks included."""
    small = pd.read_csv(MEASURED / "allreduce_small.csv")
    rows = pd.concat([collective_rows(frame, board.gpu), nvls_points(frame, board.gpu)])
    return with_assumed_ranks(collective_table(rows, small[small.system == board.custom]))


def gb200_collectives(frame: pd.DataFrame, b200: Collectives) -> Collectives:
    """GB200 measured at 2 and 4 ranks, B200 beyond."""
    own = collective_table(collective_rows(frame, "GB200"), pd.DataFrame())
    return {
        key: own.get(key, ("assumed" if key[0] in OPS else "borrowed", times))
        for key, (_, times) in b200.items()
    }


def network_fractions(frame: pd.DataFrame, name: str) -> dict[int, Array]:
    """SimAI's share of theoretical bus bandwidth, nodes -> [sizes].

    Made non-decreasing in size, never more than doubling with it: more bytes are not faster.
    """
    rows = frame[(frame.kind == "busbw_ratio") & frame.source.str.contains(f"{name}_ratio")]
    rows = rows[rows.n_nodes > 1].sort_values("size_bytes")
    result = {}
    for nodes, of in rows.groupby("n_nodes"):
        share = of.value.to_numpy(dtype=np.float64)
        share = np.maximum.accumulate(share)
        for i in reversed(range(share.size - 1)):
            share[i] = max(share[i], share[i + 1] / 2.0)
        result[int(float(str(nodes)))] = share
    return result


def network_floors(frame: pd.DataFrame, op: str) -> dict[int, float]:
    """Lowest NCCL tuner latency over algorithms and protocols, 8 ranks a node, nodes -> us."""
    rows = frame[(frame.kind == "nccl_tuner") & frame.op.str.contains(op)]
    rows = rows[rows.n_gpus == 8 * rows.n_nodes]
    best = rows.groupby("n_nodes").time_ms.min()
    floors = {int(float(str(n))): 1e3 * float(t) for n, t in best.items()}
    for nodes in NODES:
        if nodes not in floors:
            half, quarter = floors[nodes // 2], floors[nodes // 4]
            tree = 2 * half - quarter
            floors[nodes] = tree if op == "all_reduce" else half * half / quarter
    return floors
