"""What it runs on: GPUs, clusters, and the numbers of both that the formulas take.

`Gpu` and `Cluster` are catalog records with a source for every number. `Machine` is the pair of
them as scalars or columns [N], for `cost/`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from autoparallel.units import Num


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One accelerator. Peaks are dense (no sparsity); bandwidths are per GPU and one direction.

    Attributes:
        peak_flops_per_s: Dense peak per precision id (`bf16`, `fp16`, `fp8`, `mxfp8`, `nvfp4`,
            ...).
        memory_bytes: What the driver reports as total, not the figure on the box.
        measured_matmul_flops_per_s: Best bf16 rate anyone measured, 0 when nobody has published
            one.
        generation: Which calibration it belongs to or borrows from (`volta`, `ampere`, `hopper`,
            ...).
    """

    name: str
    generation: str
    memory_bytes: float
    memory_bandwidth_bytes_per_s: float
    peak_flops_per_s: dict[str, float]
    streaming_multiprocessors: int
    tdp_w: float
    idle_w: float = 0.0
    measured_matmul_flops_per_s: float = 0.0
    source: str = ""

    @property
    def half_flops_per_s(self) -> float:
        """Dense peak in 16 bit: of bf16, of fp16 on a GPU without it."""
        peaks = self.peak_flops_per_s
        return peaks.get("bf16", peaks.get("fp16", 0.0))

    def with_arithmetic(self, factor: float) -> Gpu:
        """The same GPU with `factor` times its arithmetic, nominal and measured."""
        return replace(
            self,
            peak_flops_per_s={name: v * factor for name, v in self.peak_flops_per_s.items()},
            measured_matmul_flops_per_s=self.measured_matmul_flops_per_s * factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One level of the network, per GPU and one direction."""

    bandwidth_bytes_per_s: float
    latency_s: float
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """GPUs and the network between them.

    Attributes:
        nvlink_domain_gpus: GPUs that reach each other over the fast links. Not `gpus_per_node`: an
            NVL72 rack has nodes of 4 and a domain of 72.
        intra_link: Fast links inside the domain.
        inter_link: Fabric between domains; bandwidth is one GPU's share of its node's adapters.
        nvls: Whether switches reduce in the network (NVLink SHARP).
        pairwise_links: Whether a GPU's links go straight to the others of its domain, so that a
            group of few has few of them, and not to switches.
        max_gpus: Size of a named machine; 0 means as many as asked for.
    """

    name: str
    gpu: Gpu
    gpus_per_node: int
    nvlink_domain_gpus: int
    intra_link: Link
    inter_link: Link
    nvls: bool = False
    pairwise_links: bool = False
    max_gpus: int = 0
    usd_per_gpu_hour: float | None = None
    pue: float = 1.2
    grid_kg_co2_per_kwh: float | None = None
    failures_per_node_day: float = 0.0038
    checkpoint_bandwidth_bytes_per_s_per_node: float = 2e9
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Machine:
    """GPU and cluster numbers for the formulas; every field is a scalar or [N]."""

    peak_flops_per_s: Num
    """Dense peak of the linear layers' precision."""
    bf16_flops_per_s: Num
    """Dense bf16 (or fp16) peak: attention and logits stay there under fp8."""
    memory_bandwidth_bytes_per_s: Num
    memory_bytes: Num
    sms: Num
    domain_gpus: Num
    node_gpus: Num
    intra_bytes_per_s: Num
    intra_latency_s: Num
    inter_bytes_per_s: Num
    inter_latency_s: Num
    reached_share: Num = 1.0
    """Share of its dense 16-bit peak that the best matrix product anyone measured reaches."""
    inter_is_measured: Num = 0.0
    """1 where the fabric bandwidth is a bus bandwidth measured in the job, not a nominal one."""
    pairwise: Num = 0.0
    """1 where a GPU reaches every other one of its domain by a link of its own."""


REACHED_SHARE = 0.8
"""Assumed of a GPU nobody has published a best product of: published ones lie between 0.73 (GB200)
and 0.87 (A100), AMD's MI300X at 0.51."""


def machine(cluster: Cluster, precision: str) -> Machine:
    """The numbers of `cluster` for linear layers in `precision`.

    A recipe (`fp8-blockwise`) runs at the peak of its format; a format the GPU lacks at half
    precision.
    """
    gpu = cluster.gpu
    half = gpu.half_flops_per_s
    eight_bit = gpu.peak_flops_per_s.get("fp8", half)
    peak = half if precision in ("bf16", "fp16") else eight_bit
    return Machine(
        peak_flops_per_s=gpu.peak_flops_per_s.get(precision, peak),
        bf16_flops_per_s=half,
        reached_share=gpu.measured_matmul_flops_per_s / half or REACHED_SHARE,
        memory_bandwidth_bytes_per_s=gpu.memory_bandwidth_bytes_per_s,
        memory_bytes=gpu.memory_bytes,
        sms=float(gpu.streaming_multiprocessors),
        domain_gpus=float(cluster.nvlink_domain_gpus),
        node_gpus=float(cluster.gpus_per_node),
        intra_bytes_per_s=cluster.intra_link.bandwidth_bytes_per_s,
        intra_latency_s=cluster.intra_link.latency_s,
        inter_bytes_per_s=cluster.inter_link.bandwidth_bytes_per_s,
        inter_latency_s=cluster.inter_link.latency_s,
        pairwise=float(cluster.pairwise_links),
    )
