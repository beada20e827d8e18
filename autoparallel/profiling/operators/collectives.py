"""One rank of the collective benchmark: `python -m autoparallel.profiling.operators.collectives`.

Started once a rank with torchrun's variables; rank 0 prints a JSON line a size. The time of a size
is the slowest rank's median.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
REPEATS, WARM_UP, IN_A_ROW = 7, 2, 10


def main(device: str, first_log2: int, last_log2: int) -> None:
    """Time every operation at every size and print what rank 0 knows."""
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(local)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    for op in OPS:
        for log2 in range(first_log2, last_log2 + 1):
            found = _seconds(op, 2**log2, device)
            if dist.get_rank() == 0:
                sample = {"op": op, "log2": log2, "seconds": found}
                print(json.dumps(sample), flush=True)
    dist.destroy_process_group()


def _seconds(op: str, size_bytes: int, device: str) -> float:
    call = _call(op, size_bytes, device)
    times = [_once(call, device) for _ in range(WARM_UP + REPEATS)][WARM_UP:]
    slowest = torch.tensor([statistics.median(times)], device=device)
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


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
