"""Tables read from the files of `profiles/operators`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from autoparallel.errors import ProfileError
from autoparallel.operators.collectives import CollectiveTable, NetworkTable
from autoparallel.operators.kernels import AttentionTable, GemmTable
from autoparallel.operators.lookup import entry
from autoparallel.units import US

MAX_FILE_BYTES = 200_000
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
    _, rows = read_table(folder / "index.csv")
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
    header, rows = read_table(folder / "index.csv")
    row = entry({row["gpu"]: row for row in rows}, gpu, "GPU with operator tables")
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
    header, rows = read_table(path)
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
    return entry(LINK_BYTES_PER_S, stem, "link of a collective table")


def _load_network(path: Path) -> NetworkTable:
    header, rows = read_table(path)
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
    header, rows = read_table(path)
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
    header, rows = read_table(path)
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


def read_table(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
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
