"""How long single operators take on a GPU, looked up in measured tables.

Takes a GPU id and the folder `profiles/operators`; returns an `Operators` record of four tables:
collectives inside the NVLink domain, the fabric between nodes, GEMM and flash attention. Every
lookup is a multilinear interpolation of log time over log sizes, a few NumPy calls for a scalar or
a column, and stays finite outside the measured range by the rule its docstring states. The tables
are made from `benchmarks/measured/` by `benchmarks/build_operator_tables.py`; their headers name
sources and units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoparallel.errors import ProfileError, nearest
from autoparallel.units import US, Num

T = TypeVar("T")
Array = NDArray[np.float64]
Pass = Literal["forward", "dgrad", "wgrad"]
AttentionPass = Literal["forward", "backward"]
Precision = Literal["bf16", "fp8"]
PASSES: tuple[AttentionPass, ...] = ("forward", "backward")

MAX_FILE_BYTES = 200_000
WIRE_FACTOR = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0}
"""A rank sends `factor * (n - 1) / n` of the full message (NCCL-tests PERFORMANCE.md)."""


LINK_BYTES_PER_S = {
    "v100": 150e9,
    "a100": 300e9,
    "h100": 450e9,
    "h200": 450e9,
    "b200": 900e9,
    "gb200": 900e9,
}
"""NVLink of the systems the tables were measured on, per GPU and direction (vendor datasheets)."""
STAND_INS = {
    "volta": "v100-sxm-32gb",
    "ampere": "a100-sxm-80gb",
    "ada": "a100-sxm-80gb",
    "hopper": "h100-sxm-80gb",
    "blackwell": "b200-sxm-180gb",
    "cdna3": "h100-sxm-80gb",
}
"""Whose tables a GPU without its own borrows, by generation; others borrow the A100's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CollectiveTable:
    """Time of NCCL collectives among GPUs that share NVLink.

    Attributes:
        log2_seconds: Per operation, log2 of the time; rows are ranks 2, 4, 8, ... and columns
            message sizes one octave apart, the first of `2**first_size_log2` bytes.
        assumed_beyond_ranks: Rows of more ranks than this are extrapolated, not measured.
        link_bytes_per_s: NVLink of the measured system, per GPU and direction.
    """

    gpu: str
    link_bytes_per_s: float
    log2_seconds: dict[str, Array]
    first_size_log2: float
    assumed_beyond_ranks: int
    nature: str
    source: str

    def seconds(self, op: str, message_bytes: Num, ranks: Num) -> Num:
        """Time of one collective; exactly 0 for one rank or an empty message.

        `message_bytes` is the full buffer of one rank: the reduced tensor, the gathered result, the
        input of a reduce-scatter, all that a rank sends in an all-to-all (its own part included).
        Below the smallest size the latency floor holds; above the largest the last bandwidth does.
        More ranks are not always slower, as measured: NVLS all-reduce on 8 GPUs beats 4 (NVLink
        SHARP), a V100 pair shares fewer links than a ring of 8, and between 2 and 8 MiB NCCL
        changes protocol at other sizes for 4 ranks than for 8.

        Args:
            op: `all_reduce`, `all_gather`, `reduce_scatter`, `all_to_all`, or `custom_all_reduce`
                (the one-shot kernels of inference engines).
            message_bytes: Scalar or [N].
            ranks: Group size, scalar or [N]; all inside one NVLink domain.

        Raises:
            ProfileError: the table has no such operation.
        """
        table = _entry(self.log2_seconds, op, f"operator of {self.gpu}")
        rows, columns = table.shape
        size, n = np.maximum(message_bytes, 1.0), np.maximum(ranks, 1.0)
        octave = np.log2(size) - self.first_size_log2
        log2_s = _bilinear(
            table,
            np.clip(np.log2(n) - 1.0, 0.0, rows - 1.0),
            np.clip(octave, 0.0, columns - 1.0),
        )
        beyond = np.exp2(np.maximum(octave - (columns - 1.0), 0.0))
        does_something = (np.asarray(ranks) > 1) & (np.asarray(message_bytes) > 0)
        result: Num = np.exp2(log2_s) * beyond * does_something
        return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkTable:
    """What share of its theoretical bus bandwidth a collective across nodes reaches.

    Attributes:
        log2_effective_bytes: Per operation, log2 of message size over that share; rows are 2, 4, 8,
            ... nodes, columns octaves of size from `2**first_size_log2` bytes.
        floor_s: Per operation, the base latency per number of nodes (same rows).
    """

    log2_effective_bytes: dict[str, Array]
    first_size_log2: float
    floor_s: dict[str, Array]
    source: str

    def fraction(self, op: str, message_bytes: Num, nodes: Num) -> Num:
        """Measured over theoretical bus bandwidth, in (0, 1]; the edge value outside the table.

        Below the smallest tabulated size (16 MiB) use `seconds`, which goes to the latency floor.
        """
        table = _entry(self.log2_effective_bytes, op, "operator between nodes")
        first = np.exp2(self.first_size_log2)
        last = np.exp2(self.first_size_log2 + table.shape[1] - 1)
        size = np.clip(message_bytes, first, last)
        return size / np.exp2(
            _bilinear(table, self._row(table, nodes), np.log2(size) - self.first_size_log2)
        )

    def seconds(
        self, op: str, message_bytes: Num, nodes: Num, gpus_per_node: Num, bus_bytes_per_s: Num
    ) -> Num:
        """Time of a collective over all GPUs of `nodes` nodes; 0 for one node or an empty message.

        At and above 16 MiB: wire bytes over `bus_bytes_per_s` times `fraction`. Below it a straight
        line from the latency floor at size 0 to that time.

        Args:
            op: `all_reduce`, `all_gather`, `reduce_scatter` or `all_to_all`.
            message_bytes: Full buffer of one rank, as in `CollectiveTable.seconds`.
            nodes: Nodes the group spans.
            gpus_per_node: Ranks of the group on each node.
            bus_bytes_per_s: Theoretical bus bandwidth of the group, per rank and one direction.
        """
        floor = _entry(self.floor_s, op, "operator between nodes")
        n = np.maximum(nodes * gpus_per_node, 1.0)
        first = np.exp2(self.first_size_log2)
        size = np.maximum(message_bytes, first)
        wire = WIRE_FACTOR[op] * (n - 1) / n * size
        large = wire / (bus_bytes_per_s * self.fraction(op, size, nodes))
        row = self._row(self.log2_effective_bytes[op], nodes)
        floor_s = np.minimum(np.interp(row, np.arange(len(floor)), floor), large)
        ramp = np.minimum(np.asarray(message_bytes) / first, 1.0)
        does_something = (np.asarray(nodes) > 1) & (np.asarray(message_bytes) > 0)
        result: Num = (floor_s + (large - floor_s) * ramp) * does_something
        return result

    @staticmethod
    def _row(table: Array, nodes: Num) -> Num:
        return np.clip(np.log2(np.maximum(nodes, 1.0)) - 1.0, 0.0, table.shape[0] - 1.0)


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
        table = _entry(self.log2_seconds_per_flop, precision, f"precision of {self.gpu}")
        factor = _entry(self.pass_factor, pass_, "pass")
        position = [
            np.interp(np.log2(size), axis, np.arange(axis.size, dtype=np.float64))
            for size, axis in zip((m, n, k), self.axes, strict=True)
        ]
        rate_s = 2.0 * m * n * k * np.exp2(_trilinear(table, *position)) * factor
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
        table = _entry(self.efficiency_of, pass_, "attention pass")
        rows, columns = np.arange(self.head_dims.size), np.arange(self.log2_seq.size)
        row = np.interp(head_dim, self.head_dims, rows.astype(np.float64))
        column = np.interp(np.log2(seq_length), self.log2_seq, columns.astype(np.float64))
        half = np.interp(head_dim, self.head_dims, self.half_waves[pass_])
        waves = heads * seq_length / 128.0 / self.streaming_multiprocessors
        return _bilinear(table, row, column) * waves / (waves + half)

    def length_factor(self, seq_length: Num) -> Num:
        """Efficiency at a length over that at 4,096, of both passes together, head width 128."""
        share = {p: self._saturated(seq_length, p) / self._saturated(4096.0, p) for p in PASSES}
        return 3.5 / (1.0 / share["forward"] + 2.5 / share["backward"])

    def _saturated(self, seq_length: Num, pass_: AttentionPass) -> Num:
        columns = np.arange(self.log2_seq.size, dtype=np.float64)
        column = np.interp(np.log2(seq_length), self.log2_seq, columns)
        return _bilinear(self.efficiency_of[pass_], np.zeros_like(column), column)

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operators:
    """All operator tables of one GPU; `nature` says if they were measured on it or borrowed."""

    gpu: str
    collectives: CollectiveTable
    network: NetworkTable
    gemm: GemmTable
    attention: AttentionTable
    nature: str
    source: str


@cache
def operators_for(gpu: str, generation: str, folder: Path) -> Operators:
    """The tables of a GPU, or of its generation's stand-in when it has none (`nature` says so).

    Raises:
        ProfileError: a file that is missing, too large or malformed.
    """
    _, rows = _read(folder / "index.csv")
    if any(row["gpu"] == gpu for row in rows):
        return load_operators(gpu, folder)
    stand_in = STAND_INS.get(generation, "a100-sxm-80gb")
    borrowed = load_operators(stand_in, folder)
    return replace(borrowed, gpu=gpu, nature=f"assumed: as {stand_in}, scaled by bandwidth")


def load_operators(gpu: str, folder: Path) -> Operators:
    """The tables of GPU id `gpu` (`h100-sxm-80gb`) from `folder`, the shipped `profiles/operators`.

    Raises:
        ProfileError: an id without tables, or a file that is missing, too large or malformed.
    """
    header, rows = _read(folder / "index.csv")
    row = _entry({row["gpu"]: row for row in rows}, gpu, "GPU with operator tables")
    return Operators(
        gpu=gpu,
        collectives=_load_collectives(folder / f"{row['collectives']}-collectives.csv"),
        network=_load_network(folder / "network.csv"),
        gemm=_load_gemm(folder / f"{row['gemm']}-gemm.csv", float(row["gemm_time_factor"])),
        attention=_load_attention(folder / "attention.csv", row),
        nature=row["nature"],
        source=header["source"],
    )


def _load_collectives(path: Path) -> CollectiveTable:
    header, rows = _read(path)
    sizes = [key for key in rows[0] if key.startswith("2^")]
    measured = [int(row["ranks"]) for row in rows if row["nature"] == "measured"]
    tables = {
        op: np.log2([[float(row[s]) * US for s in sizes] for row in rows if row["op"] == op])
        for op in dict.fromkeys(row["op"] for row in rows)
    }
    return CollectiveTable(
        gpu=header["gpu"],
        link_bytes_per_s=_link_bytes_per_s(header, path),
        log2_seconds=tables,
        first_size_log2=float(sizes[0][2:]),
        assumed_beyond_ranks=max(measured),
        nature=header["nature"],
        source=header["source"],
    )


def _link_bytes_per_s(header: Mapping[str, str], path: Path) -> float:
    """What the table says of its own link, else the datasheet's."""
    if stated := header.get("link_bytes_per_s"):
        return float(stated)
    stem = path.stem.removesuffix("-collectives")
    return _entry(LINK_BYTES_PER_S, stem, "link of a collective table")


def _load_network(path: Path) -> NetworkTable:
    header, rows = _read(path)
    sizes = [key for key in rows[0] if key.startswith("2^")]
    log2_size = np.array([float(s[2:]) for s in sizes])
    by_op = {op: [r for r in rows if r["op"] == op] for op in dict.fromkeys(r["op"] for r in rows)}
    return NetworkTable(
        log2_effective_bytes={
            op: log2_size - np.log2([[float(r[s]) for s in sizes] for r in of])
            for op, of in by_op.items()
        },
        first_size_log2=float(log2_size[0]),
        floor_s={op: np.array([float(r["floor_us"]) * US for r in of]) for op, of in by_op.items()},
        source=header["source"],
    )


def _load_gemm(path: Path, time_factor: float) -> GemmTable:
    header, rows = _read(path)
    names = [key for key in rows[0] if key.startswith("k=")]
    k = np.array([float(name[2:]) for name in names])
    m, n = (np.array(sorted({float(row[axis]) for row in rows})) for axis in ("m", "n"))
    flops = 2.0 * m[:, None, None] * n[None, :, None] * k
    tables = {}
    for precision in dict.fromkeys(row["precision"] for row in rows):
        of = sorted(
            (float(r["m"]), float(r["n"]), [float(r[name]) for name in names])
            for r in rows
            if r["precision"] == precision
        )
        us = np.array([values for _, _, values in of]).reshape(flops.shape)
        tables[precision] = np.log2(us * US * time_factor / flops)
    return GemmTable(
        gpu=header["gpu"],
        log2_seconds_per_flop=tables,
        axes=(np.log2(m), np.log2(n), np.log2(k)),
        launch_s={p: float(header[f"launch_us {p}"]) * US for p in tables},
        memory_bytes_per_s=float(header["memory_bytes_per_s"]),
        pass_factor={p: float(header[f"pass_factor {p}"]) for p in ("forward", "dgrad", "wgrad")},
        training_factor=float(header["training_factor"]),
        nature=header["nature"],
        source=header["source"],
    )


def _load_attention(path: Path, index_row: dict[str, str]) -> AttentionTable:
    header, rows = _read(path)
    of = [row for row in rows if row["generation"] == index_row["attention"]]
    names = [key for key in rows[0] if key.startswith("s=")]
    passes = list(dict.fromkeys(row["pass"] for row in of))
    return AttentionTable(
        gpu=index_row["gpu"],
        head_dims=np.array([float(row["head_dim"]) for row in of if row["pass"] == passes[0]]),
        log2_seq=np.log2([float(name[2:]) for name in names]),
        efficiency_of={
            p: np.array([[float(row[s]) for s in names] for row in of if row["pass"] == p])
            for p in passes
        },
        half_waves={
            p: np.array([float(row["half_waves"]) for row in of if row["pass"] == p])
            for p in passes
        },
        streaming_multiprocessors=float(index_row["streaming_multiprocessors"]),
        peak_flops_per_s=float(index_row["peak_bf16_flops_per_s"]),
        nature="; ".join(dict.fromkeys(row["nature"] for row in of)),
        source=header["source"],
    )


def _read(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The `# key: value` header and the rows of a table file."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ProfileError(f"{path}: larger than {MAX_FILE_BYTES} bytes; not an operator table")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: cannot be read ({error}); rebuild or reinstall") from error
    header = dict(
        line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line
    )
    body = [line.split(",") for line in lines if line and not line.startswith("#")]
    if len(body) < 2 or "source" not in header or any(len(row) != len(body[0]) for row in body):
        raise ProfileError(
            f"{path}: needs a `# source: ` line, a title row and rows of equal width"
        )
    return header, [dict(zip(body[0], row, strict=True)) for row in body[1:]]


def _entry(table: Mapping[str, T], key: str, what: str) -> T:
    try:
        return table[key]
    except KeyError:
        raise ProfileError(f"{what}: {key!r} is not tabulated; {nearest(key, table)}") from None


def _bilinear(table: Array, row: Num, column: Num) -> Num:
    """Linear interpolation at fractional indices that lie inside the table."""
    i, x = _cell(row, table.shape[0])
    j, y = _cell(column, table.shape[1])
    flat, corner = table.ravel(), i * table.shape[1] + j
    low = flat[corner] * (1 - y) + flat[corner + 1] * y
    corner = corner + table.shape[1]
    high = flat[corner] * (1 - y) + flat[corner + 1] * y
    result: Num = low + (high - low) * x
    return result


def _trilinear(table: Array, plane: Num, row: Num, column: Num) -> Num:
    """`_bilinear` with one more axis in front."""
    i, x = _cell(plane, table.shape[0])
    j, y = _cell(row, table.shape[1])
    k, z = _cell(column, table.shape[2])
    flat, stride = table.ravel(), table.shape[1] * table.shape[2]
    corner = i * stride + j * table.shape[2] + k
    result: Num = 0.0
    for offset_i, weight_i in ((0, 1 - x), (stride, x)):
        for offset_j, weight_j in ((0, 1 - y), (table.shape[2], y)):
            at = corner + (offset_i + offset_j)
            result = result + (flat[at] + (flat[at + 1] - flat[at]) * z) * (weight_i * weight_j)
    return result


def _cell(position: Num, size: int) -> tuple[NDArray[np.intp], Num]:
    """Index of the cell's lower corner and the position inside the cell, in [0, 1]."""
    corner = np.minimum(np.asarray(position).astype(np.intp), size - 2)
    return corner, position - corner
