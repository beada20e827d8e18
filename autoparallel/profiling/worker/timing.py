"""Timing one operation: warmed up, repeated, the median kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 3
LEAST_REPEATS, MOST_REPEATS = 5, 50
ENOUGH_S = 0.05
BATCH_S = 200e-6


def seconds_of(make: Callable[[], Callable[[], Any]], device: str) -> float:
    """Median time of the call that `make` prepares, repeated at least five times.

    On CUDA between events on the stream; calls shorter than 200 us are put in a row and divided,
    so that the host does not show.
    """
    if device == "cuda":
        torch.cuda.empty_cache()
    call = make()
    for _ in range(WARM_UP):
        call()
    once = _timed(call, 1, device)
    in_row = max(1, min(100, int(BATCH_S / max(once, 1e-9))))
    repeats = int(ENOUGH_S / max(once * in_row, 1e-9))
    repeats = min(max(repeats, LEAST_REPEATS), MOST_REPEATS)
    return statistics.median(_timed(call, in_row, device) for _ in range(repeats))


def _timed(call: Callable[[], Any], in_row: int, device: str) -> float:
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(in_row):
            call()
        return (time.perf_counter() - start) / in_row
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    for _ in range(in_row):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / in_row
