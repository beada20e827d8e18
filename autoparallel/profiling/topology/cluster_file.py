"""From what a node shows to a cluster file, and how it differs from the catalog."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoparallel import catalog
from autoparallel.errors import bad_value
from autoparallel.hardware import Cluster, Gpu
from autoparallel.profiling.seen import Seen, SeenGpu
from autoparallel.units import GB, GIB, US

NVLINK_BYTES_PER_S = {"volta": 25 * GB, "ampere": 25 * GB, "hopper": 25 * GB, "blackwell": 50 * GB}
"""One NVLink in one direction, by generation (NVLink 2, 3, 4 and 5; vendor datasheets)."""
NVLINKS = {"volta": 6, "ampere": 12, "hopper": 18, "blackwell": 18}
PCIE_BYTES_PER_S = {3: 15.75 * GB, 4: 31.5 * GB, 5: 63.0 * GB, 6: 121.0 * GB}
"""16 lanes in one direction (PCI-SIG: 8, 16, 32, 64 GT/s a lane, after encoding)."""
LATENCY_S = {"nvlink": 1.9 * US, "pcie": 2.5 * US, "fabric": 4.0 * US}
_NCCL = "NVIDIA/nccl src/graph/tuning.cc, hwLat, {}, ring, LL128 (us)"
UNKNOWN_FABRIC_BYTES_PER_S = 1.25 * GB
TOLERANCE = 0.03
_NAMES = (
    ("GB300", "gb300-nvl72"),
    ("GB200", "gb200-nvl72"),
    ("GH200", "gh200-96gb"),
    ("B300", "b300-sxm-288gb"),
    ("B200", "b200-sxm-180gb"),
    ("H200", "h200-sxm-141gb"),
    ("H100 NVL", "h100-nvl-94gb"),
    ("H100 PCIE", "h100-pcie-80gb"),
    ("H100 80GB HBM3", "h100-sxm-80gb"),
    ("H100 96GB", "h100-96gb-hbm2e-500w"),
    ("A100-SXM4-80GB", "a100-sxm-80gb"),
    ("A100-SXM4-40GB", "a100-sxm-40gb"),
    ("A100 80GB PCIE", "a100-pcie-80gb"),
    ("V100-SXM2-32GB", "v100-sxm-32gb"),
    ("V100-SXM3-32GB", "v100-sxm-32gb"),
    ("V100-SXM2-16GB", "v100-sxm-16gb"),
    ("L40S", "l40s-48gb"),
)
"""What the driver's name holds -> GPU of the catalog, the more particular first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A cluster file's entries with their sources, and what a person should know.

    Attributes:
        gpu: Entry of the catalog.
        deviations: From the catalog and between the node's own parts, in words.
        nearest: The catalog's cluster it was compared with; empty for none.
    """

    gpu: str
    gpus_per_node: int
    nvlink_domain_gpus: int
    intra_bytes_per_s: float
    intra_latency_s: float
    inter_bytes_per_s: float
    inter_latency_s: float
    nvls: bool
    sources: dict[str, str]
    deviations: tuple[str, ...] = ()
    nearest: str = ""


def gpu_id(name: str) -> str:
    """The catalog's GPU of a driver's name; empty when there is none."""
    upper = name.upper()
    return next((entry for part, entry in _NAMES if part in upper), "")


def cluster_of(seen: Seen, gpu: str | None = None, config_dir: Path | None = None) -> Found:
    """The node as a cluster of such nodes.

    Args:
        seen: What the node shows.
        gpu: GPU of the catalog, or of a file, for a name that is not known.
        config_dir: A folder in front of the shipped catalog.

    Raises:
        CatalogError: a GPU that the catalog does not have.
    """
    if not seen.gpus:
        if gpu:
            raise bad_value(
                "--gpu", gpu, "was given, but this machine shows no GPU", "leave it out"
            )
        return _without_gpus(seen)
    name = gpu or gpu_id(seen.gpus[0].name)
    if not name:
        rule = "is no GPU of the catalog"
        raise bad_value("gpu", seen.gpus[0].name, rule, "write a file for it and give it as --gpu")
    record = catalog.gpu(name, config_dir)
    intra, latency, domain, how = _inside(seen, record)
    inter, outside = _outside(seen)
    found = Found(
        gpu=name,
        gpus_per_node=len(seen.gpus),
        nvlink_domain_gpus=domain,
        intra_bytes_per_s=intra,
        intra_latency_s=latency,
        inter_bytes_per_s=inter,
        inter_latency_s=LATENCY_S["fabric"],
        nvls=record.generation in ("hopper", "blackwell") and _switched(seen, record),
        sources={
            "gpus_per_node": "nvidia-smi on this node",
            "nvlink_domain_gpus": "nvidia-smi topo -m on this node",
            "intra_link.bandwidth_gb_per_s": how,
            "intra_link.latency_us": _NCCL.format("NVLINK" if "NVLink" in how else "PCI"),
            "inter_link.bandwidth_gb_per_s": outside,
            "inter_link.latency_us": _NCCL.format("NET"),
        },
    )
    return _compared(found, seen, record, config_dir)


def _without_gpus(seen: Seen) -> Found:
    """The cores of this machine, as `local-cpu`."""
    local = catalog.cluster("local-cpu")
    said = "assumed: shared memory of one machine; for trying the tool out, not for planning"
    keys = ("nvlink_domain_gpus", "intra_link", "inter_link")
    return Found(
        gpu="cpu",
        gpus_per_node=seen.cores,
        nvlink_domain_gpus=seen.cores,
        intra_bytes_per_s=local.intra_link.bandwidth_bytes_per_s,
        intra_latency_s=local.intra_link.latency_s,
        inter_bytes_per_s=local.inter_link.bandwidth_bytes_per_s,
        inter_latency_s=local.inter_link.latency_s,
        nvls=False,
        sources={"gpus_per_node": "processor cores of this machine"} | dict.fromkeys(keys, said),
        deviations=seen.missing,
        nearest="local-cpu",
    )


def links_of(seen: Seen, index: int) -> list[int]:
    """NVLinks from one GPU to each of its peers."""
    return [count for pair, count in seen.nvlinks.items() if index in pair]


def _switched(seen: Seen, gpu: Gpu) -> bool:
    """Through NVSwitch every peer is reached over all links, more in sum than a GPU has."""
    most = NVLINKS.get(gpu.generation, 0)
    return any(sum(links_of(seen, g.index)) > most for g in seen.gpus)


def _inside(seen: Seen, gpu: Gpu) -> tuple[float, float, int, str]:
    """Bandwidth, latency, domain and source of the fast links: of the GPU that has the fewest."""
    rate = NVLINK_BYTES_PER_S.get(gpu.generation, 25 * GB)
    per_gpu = [links_of(seen, g.index) for g in seen.gpus]
    if seen.nvlinks and all(per_gpu):
        switched = _switched(seen, gpu)
        links = min(max(counts) if switched else sum(counts) for counts in per_gpu)
        how = f"NVLink: {links} links a GPU (nvidia-smi topo -m) x {rate / GB:g} GB/s"
        return links * rate, LATENCY_S["nvlink"], _domain(seen), how
    first = seen.gpus[0]
    lanes = (first.pcie_lanes or 16) / 16
    generation = first.pcie_generation or 4
    said = f"PCIe {generation} x{16 * lanes:.0f} (nvidia-smi), line rate"
    return (
        PCIE_BYTES_PER_S.get(generation, 31.5 * GB) * lanes,
        LATENCY_S["pcie"],
        len(seen.gpus),
        said,
    )


def _domain(seen: Seen) -> int:
    """GPUs in the smallest group that NVLinks hold together."""
    groups: list[set[int]] = [{gpu.index} for gpu in seen.gpus]
    for a, b in seen.nvlinks:
        joined = [group for group in groups if group & {a, b}]
        groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    return min(len(group) for group in groups)


def _outside(seen: Seen) -> tuple[float, str]:
    """A GPU's share of the node's adapters that sit beside GPUs, and the source."""
    used = [port for port in seen.adapters if port.active and port.near_gpu]
    if not used:
        return UNKNOWN_FABRIC_BYTES_PER_S, "assumed: 10 Gb/s Ethernet; no fabric was found here"
    total = sum(port.bytes_per_s for port in used)
    names = ", ".join(port.name for port in used)
    said = f"{len(used)} active ports beside GPUs, {total * 8 / GB:g} Gb/s in all: {names}"
    return total / len(seen.gpus), said


def _compared(found: Found, seen: Seen, gpu: Gpu, config_dir: Path | None) -> Found:
    """With the catalog's nearest cluster of the same GPU, and what differs."""
    clusters = [catalog.cluster(name, config_dir) for name in catalog.names("cluster", config_dir)]
    alike = [c for c in clusters if c.gpu.name == found.gpu]
    near = min(alike, key=lambda c: (_distance(found, c), not _is_plain(c)), default=None)
    notes = [*_gpu_notes(seen.gpus, gpu), *_link_notes(seen, gpu), *_port_notes(seen)]
    if near is not None:
        notes += _cluster_notes(found, near)
    else:
        notes.append(f"no cluster of {found.gpu} in the catalog to compare with")
    return Found(
        **{name: getattr(found, name) for name in Found.__slots__ if name not in _OWN},
        deviations=tuple(notes),
        nearest=near.name if near else "",
    )


_OWN = ("deviations", "nearest")


def _is_plain(cluster: Cluster) -> bool:
    """Whether it is a vendor's own system, not a cloud's copy of it."""
    return cluster.name.startswith("dgx")


def _distance(found: Found, cluster: Cluster) -> float:
    return (
        4 * abs(math.log(found.gpus_per_node / cluster.gpus_per_node))
        + abs(math.log(found.intra_bytes_per_s / cluster.intra_link.bandwidth_bytes_per_s))
        + abs(math.log(found.inter_bytes_per_s / cluster.inter_link.bandwidth_bytes_per_s))
    )


def _cluster_notes(found: Found, near: Cluster) -> list[str]:
    pairs = (
        ("gpus_per_node", found.gpus_per_node, near.gpus_per_node, 1.0, ""),
        ("nvlink_domain_gpus", found.nvlink_domain_gpus, near.nvlink_domain_gpus, 1.0, ""),
        (
            "intra_link",
            found.intra_bytes_per_s,
            near.intra_link.bandwidth_bytes_per_s,
            GB,
            " GB/s a GPU",
        ),
        (
            "inter_link",
            found.inter_bytes_per_s,
            near.inter_link.bandwidth_bytes_per_s,
            GB,
            " GB/s a GPU",
        ),
    )
    return [
        f"{name} {here / unit:g}{word}, {near.name} has {there / unit:g}"
        for name, here, there, unit, word in pairs
        if abs(here / there - 1) > TOLERANCE
    ]


def _gpu_notes(gpus: Sequence[SeenGpu], record: Gpu) -> list[str]:
    """GPUs that are not alike, smaller than the catalog says, or held below their power."""
    notes = []
    if len(kinds := Counter(gpu.name for gpu in gpus)) > 1:
        kinds_said = ", ".join(f"{count} x {name}" for name, count in kinds.items())
        notes.append(f"GPUs differ: {kinds_said}")
    least = min(gpu.memory_bytes for gpu in gpus)
    if least and abs(least / record.memory_bytes - 1) > TOLERANCE:
        there = f"{record.name} has {record.memory_bytes / GIB:.1f}"
        notes.append(f"memory {least / GIB:.1f} GiB, {there}")
    power = [gpu.power_limit_w for gpu in gpus if gpu.power_limit_w]
    if power and min(power) < record.tdp_w * (1 - TOLERANCE):
        notes.append(f"power limit {min(power):g} W, {record.name} has {record.tdp_w:g} W")
    clocks = {gpu.max_clock_hz for gpu in gpus if gpu.max_clock_hz}
    if len(clocks) > 1:
        low, high = min(clocks) / 1e6, max(clocks) / 1e6
        notes.append(f"highest clocks differ between GPUs: {low:g} to {high:g} MHz")
    return notes


def _link_notes(seen: Seen, gpu: Gpu) -> list[str]:
    """Pairs that reach each other over fewer links than others do."""
    if not seen.nvlinks or not _switched(seen, gpu):
        return []
    usual = max(seen.nvlinks.values())
    fewer = [f"GPU{a}-GPU{b} NV{n}" for (a, b), n in sorted(seen.nvlinks.items()) if n < usual]
    count = len(seen.gpus)
    apart = count * (count - 1) // 2 - len(seen.nvlinks)
    notes = [f"fewer NVLinks than NV{usual}: {', '.join(fewer[:8])}"] if fewer else []
    return notes + ([f"{apart} pairs of GPUs are not joined by NVLink"] if apart else [])


def _port_notes(seen: Seen) -> list[str]:
    down = [port.name for port in seen.adapters if not port.active]
    far = [port.name for port in seen.adapters if port.active and not port.near_gpu]
    notes = [f"adapters that are down: {', '.join(down)}"] if down else []
    if far:
        notes.append(f"adapters not beside a GPU, left out: {', '.join(far)}")
    return notes + [note for note in seen.missing if "InfiniBand" in note]


def cluster_text(found: Found) -> str:
    """The cluster file."""
    lines = [
        "# Written by `autoparallel discover`: one node as it showed itself, taken for all nodes.",
        *(f"# {note}" for note in found.deviations),
        f"gpu: {found.gpu}",
        f"gpus_per_node: {found.gpus_per_node}",
        f"nvlink_domain_gpus: {found.nvlink_domain_gpus}",
        "intra_link:",
        f"  bandwidth_gb_per_s: {found.intra_bytes_per_s / GB:g}",
        f"  latency_us: {found.intra_latency_s / US:g}",
        "inter_link:",
        f"  bandwidth_gb_per_s: {found.inter_bytes_per_s / GB:g}",
        f"  latency_us: {found.inter_latency_s / US:g}",
        f"nvls: {'true' if found.nvls else 'false'}",
        "usd_per_gpu_hour: null",
        "sources:",
        *(f'  {key}: "{value}"' for key, value in found.sources.items()),
    ]
    return "\n".join(lines) + "\n"
