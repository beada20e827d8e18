"""What is served, on what and by which engine: everything about a case but the instance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.hardware import Cluster, Machine, machine
from autoparallel.inference.backend import Backend
from autoparallel.inference.constants import ServingConstants
from autoparallel.model import Model, Shape
from autoparallel.operators import Operators, operators_for
from autoparallel.units import Num

WEIGHT_BYTES = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8-blockwise": 1.0 + 4.0 / 128**2,
    "mxfp8": 1.0 + 1.0 / 32,
    "nvfp4": 0.5 + 1.0 / 16,
    "mxfp4": 0.5 + 1.0 / 32,
}
"""Bytes of one quantised weight with its scales."""
ACTIVATION_BYTES = {"bf16": 2.0, "fp16": 2.0, "nvfp4": 0.5625}
"""Bytes of one activation that a GEMM reads; 1 where not named."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """A model in one precision on one cluster under one backend.

    Attributes:
        shape: The model in the papers' letters; its `s` is not used here.
        precision: Of the quantised linear layers: a key of `WEIGHT_BYTES`.
        attention_precision: Of the attention projections, which some checkpoints leave in bf16.
        state, borrowed_from: Whether the constants were `measured` on this backend and GPU
            generation or `assumed`, and from whom they were borrowed.
    """

    model: Model
    shape: Shape
    cluster: Cluster
    machine: Machine
    operators: Operators
    backend: Backend
    precision: str
    attention_precision: str
    constants: ServingConstants
    state: str = "assumed"
    borrowed_from: str = ""

    def peak_flops_per_s(self, precision: str) -> Num:
        """Peak of the GPU for linear layers in `precision`."""
        return machine(self.cluster, _compute_precision(precision)).peak_flops_per_s

    def gemm_efficiency(self, precision: str) -> Num:
        """Share of that peak that a large GEMM reaches."""
        c = self.constants
        peak = self.cluster.gpu.peak_flops_per_s
        if precision in ("nvfp4", "mxfp4") and "nvfp4" in peak:
            return c.gemm_efficiency * c.fp4_efficiency
        if precision.startswith(("fp8", "mxfp8")) and "fp8" in peak:
            return c.gemm_efficiency * c.fp8_efficiency
        return c.gemm_efficiency


def _compute_precision(precision: str) -> str:
    return {"mxfp4": "nvfp4", "fp8-blockwise": "fp8"}.get(precision, precision)


def setting(
    model: Model,
    cluster: Cluster,
    backend: Backend,
    precision: str,
    *,
    profiles_dir: Path | None = None,
    constants: ServingConstants | None = None,
) -> Setting:
    """The setting of a request, with the constants calibrated for its backend and GPU.

    Raises:
        ConfigError: a precision that is not one of `WEIGHT_BYTES`.
        ProfileError: a profile or operator table that cannot be used.
    """
    if precision not in WEIGHT_BYTES:
        raise ConfigError(f"precision: {precision!r} is not one of {', '.join(WEIGHT_BYTES)}")
    folder = catalog.data_dir() / "profiles" / "operators"
    return Setting(
        model=model,
        shape=model.shape(1),
        cluster=cluster,
        machine=machine(cluster, _compute_precision(precision)),
        operators=operators_for(cluster.gpu.name, cluster.gpu.generation, folder),
        backend=backend,
        precision=precision,
        attention_precision=precision,
        constants=constants or ServingConstants(),
    )
