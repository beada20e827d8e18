"""Collectives among the ranks of an errand, timed. A size takes what its slowest rank takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

REPEATS, WARM_UP, IN_A_ROW = 7, 2, 10


@contextmanager
def joined_group(device: str, local_rank: int, timeout_s: float) -> Iterator[Group]:
    """All ranks as one group, by torchrun's variables; parted in order at the end."""
    if device == "cuda":
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    else:
        torch.set_num_threads(1)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    yield Group(device)
    dist.barrier()
    dist.destroy_process_group()


class Group:
    """The ranks that time together.

    Args:
        device: `cuda` (NCCL) or `cpu` (gloo).
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._begin = time.monotonic()

    def goes_on(self, budget_s: float) -> bool:
        """Whether there is time for another sample; rank 0 decides for all."""
        left = budget_s - (time.monotonic() - self._begin)
        said = torch.tensor([left], device=self._device)
        dist.broadcast(said, 0)
        return float(said.item()) >= 0

    def seconds(self, op: str, size_bytes: int) -> float:
        """Of one operation on a full buffer of `size_bytes` a rank."""
        call = _call(op, size_bytes, self._device)
        times = [_once(call, self._device) for _ in range(WARM_UP + REPEATS)][WARM_UP:]
        slowest = torch.tensor([statistics.median(times)], device=self._device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest.item())


def _call(op: str, size_bytes: int, device: str) -> Callable[[], Any]:
    """The operation on a full buffer of `size_bytes` a rank (see `CollectiveTable.seconds`)."""
    world = dist.get_world_size()
    count = max(size_bytes // 2 // world, 1) * world
    full = torch.ones(count, device=device, dtype=torch.bfloat16)
    if op == "all_reduce":
        return lambda: dist.all_reduce(full)
    if op == "all_to_all":
        other = torch.empty_like(full)
        return lambda: dist.all_to_all_single(other, full)
    shard = torch.ones(count // world, device=device, dtype=torch.bfloat16)
    if op == "all_gather":
        return lambda: dist.all_gather_into_tensor(full, shard)
    return lambda: dist.reduce_scatter_tensor(shard, full)


def _once(call: Callable[[], Any], device: str) -> float:
    """One measurement; on CUDA ten in a row between events, so that launches do not show."""
    dist.barrier()
    if device != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    for _ in range(IN_A_ROW):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / IN_A_ROW
