"""What is served, on what and by which engine: everything about a case but the instance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.hardware import Cluster, Machine, machine
from autoparallel.inference.backend import Backend
from autoparallel.inference.calibrated import ServingCalibration, serving_calibration
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


def activation_bytes(precision: str) -> float:
    """Bytes of one activation that a GEMM with weights in `precision` reads."""
    return ACTIVATION_BYTES.get(precision, 1.0)


FOUR_BIT = ("nvfp4", "mxfp4")
SM_FLOPS_PER_S = 40e12
"""Rate at which one multiprocessor would work through products if its tensor cores took no time:
feeding them and writing results. Read with 84 % for slow cores off the share of the peak that large
isolated products reach against the peak of a multiprocessor in TFLOP/s: 80 % at 2.9 (A100), 78 at
7.5 (H100), 62 at 15 (H100 fp8), 67 at 15 (B200), 54 at 30 (B200 fp8), 37 at 61 (B200 nvfp4)
(`benchmarks/measured/microbench.csv`; nvfp4: aiconfigurator's tables, Apache-2.0)."""
GRACE_HOSTED = ("gh200-96gb", "gb200-nvl72", "gb300-nvl72")
"""GPUs whose host is an NVIDIA Grace CPU (Arm)."""
NATIVE_EXPERTS = ("gpt-oss",)
"""Models published with 4-bit experts and bf16 attention (arXiv 2508.10925, section 2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """A model in one precision on one cluster under one backend.

    Attributes:
        shape: The model in the papers' letters; its `s` is not used here.
        precision: Of the quantised linear layers: a key of `WEIGHT_BYTES`.
        attention_precision: Of the attention projections, which some checkpoints leave in bf16.
        calibration: Where the constants come from, and how far predictions with them are off.
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
    calibration: ServingCalibration

    def gemm_flops_per_s(self, precision: str) -> Num:
        """Rate of a large GEMM with weights in `precision`, its activations as the engine has them.

        A 4-bit format with 16- or 8-bit activations (mxfp4) runs at the 8-bit rate; a format that
        the GPU lacks is widened on the way and runs at a share of the bf16 rate.
        """
        c, peaks = self.constants, self.cluster.gpu.peak_flops_per_s
        if precision == "nvfp4" and "nvfp4" in peaks:
            return self._reached_flops_per_s(peaks["nvfp4"]) * c.fp4_efficiency
        wide = self._reached_flops_per_s(self.machine.bf16_flops_per_s)
        if precision in ("bf16", "fp16"):
            return wide
        if "fp8" not in peaks or (precision in FOUR_BIT and "nvfp4" not in peaks):
            return wide * c.upcast_efficiency
        return self._reached_flops_per_s(peaks["fp8"]) * c.fp8_efficiency

    def _reached_flops_per_s(self, peak_flops_per_s: Num) -> Num:
        """Rate that a large product reaches of a peak: the faster the cores, the smaller a share.

        What a multiprocessor does beside its tensor cores adds to their time.
        """
        cores = peak_flops_per_s * self.constants.gemm_efficiency
        rate: Num = 1.0 / (1.0 / cores + 1.0 / (SM_FLOPS_PER_S * self.machine.sms))
        return rate

    @property
    def host_slowdown(self) -> Num:
        """Host time of this machine over that of an x86 host."""
        slow = self.backend.slow_on_grace and self.cluster.gpu.name in GRACE_HOSTED
        return self.constants.arm_host if slow else 1.0


def setting(
    model: Model,
    cluster: Cluster,
    backend: Backend,
    precision: str,
    *,
    profiles_dir: Path | None = None,
) -> Setting:
    """The setting of a request, with the constants calibrated for its backend and GPU.

    Args:
        model: What is served.
        cluster: What it is served on.
        backend: The engine.
        precision: Of the quantised linear layers.
        profiles_dir: A folder of profiles in front of the shipped ones.

    Raises:
        ConfigError: a precision that is not one of `WEIGHT_BYTES`.
        ProfileError: a profile or operator table that cannot be used.
    """
    if precision not in WEIGHT_BYTES:
        raise ConfigError(f"precision: {precision!r} is not one of {', '.join(WEIGHT_BYTES)}")
    shipped, gpu = catalog.data_dir() / "profiles", cluster.gpu
    folders = (profiles_dir, shipped) if profiles_dir else (shipped,)
    found = serving_calibration(backend.name, gpu.name, gpu.generation, folders)
    return Setting(
        model=model,
        shape=model.shape(1),
        cluster=cluster,
        machine=machine(cluster, "bf16"),
        operators=operators_for(gpu.name, gpu.generation, shipped / "operators"),
        backend=backend,
        precision=precision,
        attention_precision=attention_precision(model, precision),
        constants=found.constants,
        calibration=found,
    )


def attention_precision(model: Model, precision: str) -> str:
    """Precision of the attention projections in the usual checkpoint of `model`.

    GPT-OSS keeps them in bf16, and so do NVIDIA's 4-bit checkpoints of models with latent
    attention (hf_quant_config.json of nvidia/DeepSeek-R1-0528-FP4, `exclude_modules`).
    """
    wide = model.name.startswith(NATIVE_EXPERTS) or (model.kv_lora_rank and precision == "nvfp4")
    return "bf16" if wide else precision
