"""Reading the tools of a node, each of which may be missing or say something odd."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoparallel import strict_json as check
from autoparallel.errors import ConfigError
from autoparallel.profiling.programs import ask
from autoparallel.units import GB, MIB

_FIELDS = "index,name,memory.total,clocks.max.sm,power.limit,pcie.link.gen.max,pcie.link.width.max"
QUERY = ("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits")
MATRIX = ("nvidia-smi", "topo", "-m")
IBSTAT = ("ibstat",)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_DEVICE_FILE = re.compile(r"nvidia\d+")
_NEAR = ("PIX", "PXB")
Say = Callable[[Sequence[str]], str]
"""A program's output, empty when it is missing or fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenGpu:
    """One GPU as the driver reports it; 0 where it says `[N/A]`."""

    index: int
    name: str
    memory_bytes: float
    max_clock_hz: float = 0.0
    power_limit_w: float = 0.0
    pcie_generation: int = 0
    pcie_lanes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A port of a network adapter; rate in one direction."""

    name: str
    bytes_per_s: float
    active: bool
    near_gpu: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A node.

    Attributes:
        nvlinks: NVLinks between two GPUs, by the pair of their indices, lower first.
        cores: Processor cores.
        missing: What could not be asked, and why.
    """

    gpus: tuple[SeenGpu, ...] = ()
    nvlinks: dict[tuple[int, int], int]
    adapters: tuple[Adapter, ...] = ()
    cores: int = 1
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The node as plain data."""
        links = [[a, b, count] for (a, b), count in self.nvlinks.items()]
        return {k: check.plain(k, v) for k, v in (asdict(self) | {"nvlinks": links}).items()}

    @classmethod
    def parse(cls, path: str, data: Any) -> Seen:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: a field unknown, missing or of the wrong kind.
        """
        return cls(**check.record(path, data, _SEEN))


def _links(path: str, value: Any) -> dict[tuple[int, int], int]:
    rows = check.list_of(check.list_of(check.count))(path, value)
    if any(len(row) != 3 for row in rows):
        raise check.wrong(path, value, "is not a list of [GPU, GPU, links]")
    return {(row[0], row[1]): row[2] for row in rows}


_GPU: dict[str, check.Check] = {
    "index": check.count,
    "name": check.text,
    **dict.fromkeys(("memory_bytes", "max_clock_hz", "power_limit_w"), check.number),
    **dict.fromkeys(("pcie_generation", "pcie_lanes"), check.count),
}
_PORT: dict[str, check.Check] = {
    "name": check.text,
    "bytes_per_s": check.number,
    **dict.fromkeys(("active", "near_gpu"), check.flag),
}
_SEEN: dict[str, check.Check] = {
    "gpus": check.list_of(check.built(SeenGpu, _GPU)),
    "nvlinks": _links,
    "adapters": check.list_of(check.built(Adapter, _PORT)),
    "cores": check.count,
    "missing": check.list_of(check.text),
}


def look(say: Say | None = None, sys_root: Path = Path("/sys"), cores: int | None = None) -> Seen:
    """Ask this node.

    Args:
        say: Runs a program; recorded outputs in tests.
        sys_root: Where the kernel shows its devices.
        cores: Processor cores, those of this machine when None.
    """
    say = say or _say
    gpus = tuple(_gpus(say(QUERY)))
    matrix = topology_matrix(say(MATRIX)) if gpus else {}
    ports = _kernel_adapters(sys_root) or _ibstat_adapters(say(IBSTAT))
    missing = []
    if not gpus:
        missing.append("no GPU: nvidia-smi is missing or lists none")
    if not ports:
        missing.append("no InfiniBand or RoCE port in /sys/class/infiniband, none from ibstat")
    return Seen(
        gpus=gpus,
        nvlinks=_nvlinks(matrix),
        adapters=tuple(_near(ports, matrix)),
        cores=cores or os.cpu_count() or 1,
        missing=tuple(missing),
    )


def gpu_count(say: Say | None = None, devices: Path = Path("/dev")) -> int:
    """GPUs of this machine: those the driver lists, else its device files.

    Args:
        say: Runs a program; recorded outputs in tests.
        devices: Where the driver puts its device files.
    """
    listed = len(_gpus((say or _say)(QUERY)))
    files = [file.name for file in devices.glob("nvidia*")]
    return listed or sum(_DEVICE_FILE.fullmatch(name) is not None for name in files)


def _say(words: Sequence[str]) -> str:
    try:
        answer = ask(words, timeout_s=30.0)
    except ConfigError:
        return ""
    return answer.text if answer.ok else ""


def _gpus(text: str) -> list[SeenGpu]:
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_FIELDS.split(",")) or not cells[0].isdecimal():
            continue
        numbers = [_number(cell) for cell in cells[2:]]
        found.append(
            SeenGpu(
                index=int(cells[0]),
                name=cells[1],
                memory_bytes=numbers[0] * MIB,
                max_clock_hz=numbers[1] * 1e6,
                power_limit_w=numbers[2],
                pcie_generation=int(numbers[3]),
                pcie_lanes=int(numbers[4]),
            )
        )
    return found


def _number(cell: str) -> float:
    """A number, or 0 for `[N/A]` and the like."""
    return float(cell) if re.fullmatch(r"\d+(?:\.\d+)?", cell) else 0.0


def topology_matrix(text: str) -> dict[tuple[str, str], str]:
    """The cells of `nvidia-smi topo -m`: (row, column) -> `NV18`, `PIX`, `SYS`, ...

    The header names GPUs and adapters, then columns of affinities. A legend after the matrix says
    which adapter `NIC0` is; its names take the place of the numbers.
    """
    lines = [_ANSI.sub("", line) for line in text.splitlines()]
    header: list[str] = []
    cells: dict[tuple[str, str], str] = {}
    for line in lines:
        words = line.split()
        if not header and words[:1] == ["GPU0"]:
            header = [word for word in words if re.fullmatch(r"GPU\d+|NIC\d+|mlx\d+_\d+", word)]
        elif header and words and words[0] in header:
            cells |= {(words[0], name): cell for name, cell in zip(header, words[1:], strict=False)}
    names = dict(re.findall(r"^\s*(NIC\d+):\s*(\S+)", "\n".join(lines), re.M))
    return {(names.get(a, a), names.get(b, b)): cell for (a, b), cell in cells.items()}


def _nvlinks(matrix: dict[tuple[str, str], str]) -> dict[tuple[int, int], int]:
    found = {}
    for (row, column), cell in matrix.items():
        at = re.fullmatch(r"GPU(\d+)", row), re.fullmatch(r"GPU(\d+)", column)
        links = re.fullmatch(r"NV(\d+)", cell)
        if at[0] and at[1] and links and (pair := (int(at[0][1]), int(at[1][1])))[0] < pair[1]:
            found[pair] = int(links[1])
    return found


def _kernel_adapters(sys_root: Path) -> list[Adapter]:
    """Ports under `/sys/class/infiniband`, RoCE included."""
    found = []
    for port in sorted(sys_root.glob("class/infiniband/*/ports/*")):
        try:
            rate = re.match(r"\s*(\d+(?:\.\d+)?)", (port / "rate").read_text())
            state = (port / "state").read_text()
        except OSError:
            continue
        if rate:
            found.append(_adapter(port.parts[-3], float(rate[1]), "ACTIVE" in state))
    return found


def _ibstat_adapters(text: str) -> list[Adapter]:
    """Ports from `ibstat`, where `/sys` is not to be seen (in a container)."""
    found = []
    for block in re.split(r"^CA '", text, flags=re.M)[1:]:
        name = block.partition("'")[0]
        states = re.findall(r"State:\s*(\w+)", block)
        for state, rate in zip(states, re.findall(r"Rate:\s*(\d+)", block), strict=False):
            found.append(_adapter(name, float(rate), state == "Active"))
    return found


def _adapter(name: str, gigabit: float, active: bool) -> Adapter:
    return Adapter(name=name, bytes_per_s=gigabit / 8 * GB, active=active)


def _near(ports: list[Adapter], matrix: dict[tuple[str, str], str]) -> list[Adapter]:
    """Ports with whether a GPU sits at the same PCIe switch; all, when none is said to."""
    near = {b for (a, b), cell in matrix.items() if a.startswith("GPU") and cell in _NEAR}
    if not near:
        return ports
    return [
        Adapter(name=p.name, bytes_per_s=p.bytes_per_s, active=p.active, near_gpu=p.name in near)
        for p in ports
    ]
