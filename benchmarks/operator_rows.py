"""The GPUs that `benchmarks/measured/` has operator rows of, and how to read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "benchmarks" / "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Datasheet figures of one GPU and its name in each measured file."""

    stem: str
    gpu: str
    peak_flops_per_s: float
    memory_bytes_per_s: float
    sms: int
    custom: str = ""
    training: str = ""

    def peak(self, precision: str) -> float:
        """Dense peak; fp8 runs at twice the 16-bit rate on every GPU that has it."""
        return self.peak_flops_per_s * (2.0 if precision == "fp8" else 1.0)


BOARDS = (
    Board(
        stem="v100",
        gpu="V100-SXM2-32GB",
        peak_flops_per_s=125e12,
        memory_bytes_per_s=0.9e12,
        sms=80,
    ),
    Board(
        stem="a100",
        gpu="A100-SXM4-80GB",
        peak_flops_per_s=312e12,
        memory_bytes_per_s=2.039e12,
        sms=108,
        custom="a100_sxm",
        training="A100-PCIe-80GB",
    ),
    Board(
        stem="h100",
        gpu="H100-SXM5-80GB",
        peak_flops_per_s=989.4e12,
        memory_bytes_per_s=3.35e12,
        sms=132,
        custom="h100_sxm",
    ),
    Board(
        stem="h200",
        gpu="H200-SXM",
        peak_flops_per_s=989.4e12,
        memory_bytes_per_s=4.8e12,
        sms=132,
        custom="h200_sxm",
    ),
    Board(
        stem="b200",
        gpu="B200-SXM",
        peak_flops_per_s=2250e12,
        memory_bytes_per_s=8e12,
        sms=148,
        custom="b200_sxm",
        training="B200-SXM",
    ),
)
GB200 = Board(
    stem="gb200",
    gpu="GB200",
    peak_flops_per_s=2500e12,
    memory_bytes_per_s=8e12,
    sms=148,
    custom="b200_sxm",
)


def microbench() -> pd.DataFrame:
    """Rows of microbench.csv."""
    return pd.read_csv(MEASURED / "microbench.csv", low_memory=False)
