"""How much memory a rank took at most."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Where counting starts: resident bytes before the model is built (0 on CUDA)."""

    device: Any
    rss_bytes: int


def baseline(device: Any) -> Baseline:
    """Start counting."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return Baseline(device=device, rss_bytes=0)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # the high-water mark becomes what is resident now
    return Baseline(device=device, rss_bytes=_peak_rss_bytes())


def peaks(since: Baseline) -> dict[str, int]:
    """The fields of a `RankReport` that say how full it got."""
    if since.device.type == "cuda":
        return {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    return {"peak_rss_bytes": max(_peak_rss_bytes() - since.rss_bytes, 0)}


def _peak_rss_bytes() -> int:
    """The high-water mark; where /proc is missing, the one that cannot be set back."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = _STATUS.read_text().splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
