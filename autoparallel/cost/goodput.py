"""From a step to a run: days, failures, checkpoints, dollars, energy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoparallel.hardware import Cluster
from autoparallel.model import Model, parameters
from autoparallel.units import DAY_S

CHECKPOINT_BYTES_PER_PARAMETER = 14.0
"""bf16 weights, fp32 master weights and two moments (stas00/ml-engineering: BLOOM-176B, 2.3 TB)."""
RESTART_S = 600.0
"""Assumed: detection, rescheduling and loading after a failure."""
IDLE_SHARE = 0.15
"""Assumed: idle power over TDP where the catalog has no figure."""
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A whole training run.

    Attributes:
        goodput: Share of the wall time that advances training.
        checkpoint_interval_s: Gap between checkpoints that loses the least time.
        cost_usd, co2_kg: None when the catalog has no price or no grid intensity.
    """

    days: float
    goodput: float
    checkpoint_interval_s: float
    failures: float
    cost_usd: float | None
    energy_kwh: float
    co2_kg: float | None


def run(
    model: Model, cluster: Cluster, num_gpus: int, tokens: float, tokens_per_s: float, busy: float
) -> Run:
    """The run that trains `tokens` at `tokens_per_s`.

    Failures come per node at the cluster's rate; the checkpoint interval is Young's optimum
    sqrt(2 x mean time between failures x time of a checkpoint).

    Args:
        model: Sets the size of a checkpoint.
        cluster: Failure rate, checkpoint bandwidth, price, power.
        num_gpus: GPUs of the job, all paid for.
        tokens: Tokens to train.
        tokens_per_s: Of the whole job.
        busy: Share of the step in which a GPU computes or communicates; the rest idles.

    Source: Young 1974; rates in the cluster's record.
    """
    nodes = max(num_gpus / cluster.gpus_per_node, 1.0)
    between_failures_s = DAY_S / max(nodes * cluster.failures_per_node_day, 1e-9)
    state_bytes = float(parameters(model.shape(1))) * CHECKPOINT_BYTES_PER_PARAMETER
    save_s = state_bytes / (nodes * cluster.checkpoint_bandwidth_bytes_per_s_per_node)
    interval_s = float(np.sqrt(2 * between_failures_s * save_s))
    lost = save_s / interval_s + (interval_s / 2 + RESTART_S) / between_failures_s
    goodput = 1 / (1 + lost)
    wall_s = tokens / tokens_per_s / goodput
    energy = num_gpus * power_w(cluster, busy) * cluster.pue * wall_s / JOULES_PER_KWH
    price, grid = cluster.usd_per_gpu_hour, cluster.grid_kg_co2_per_kwh
    return Run(
        days=wall_s / DAY_S,
        goodput=goodput,
        checkpoint_interval_s=interval_s,
        failures=wall_s / between_failures_s,
        cost_usd=None if price is None else price * num_gpus * wall_s / 3600,
        energy_kwh=energy,
        co2_kg=None if grid is None else energy * grid,
    )


def power_w(cluster: Cluster, busy: float) -> float:
    """Mean power of one GPU that is busy for a share of the time."""
    gpu = cluster.gpu
    idle = gpu.idle_w or IDLE_SHARE * gpu.tdp_w
    return idle + busy * (gpu.tdp_w - idle)
