"""The training steps of one rank, timed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_batch_on_this_cp_rank

from autoparallel.profiling.job import Job
from autoparallel.profiling.worker.network import Network


@dataclass(slots=True, kw_only=True)
class Steps:
    """What the steps of one rank took; the warm-up is in front and kept apart."""

    warmup: int
    forward_backward_s: list[float] = field(default_factory=list)
    optimizer_s: list[float] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)

    @property
    def step_s(self) -> tuple[float, ...]:
        """Timed steps."""
        return self._whole[self.warmup :]

    @property
    def warmup_step_s(self) -> tuple[float, ...]:
        """Steps before those."""
        return self._whole[: self.warmup]

    @property
    def _whole(self) -> tuple[float, ...]:
        pairs = zip(self.forward_backward_s, self.optimizer_s, strict=True)
        return tuple(a + b for a, b in pairs)

    def medians(self) -> dict[str, float]:
        """Medians of a timed step's two phases."""
        names = ("forward_backward_s", "optimizer_s")
        return {name: statistics.median(getattr(self, name)[self.warmup :]) for name in names}


def train(job: Job, net: Network, device: Any, seen: Callable[[float, bool], None]) -> Steps:
    """Run the job's steps.

    Args:
        job: How many, and of what.
        net: What is trained.
        device: Where.
        seen: Called after every step with its seconds and whether it is still warm-up.
    """
    steps = Steps(warmup=job.warmup_steps)
    run = _step_of(job, net, device)
    wait: Any = torch.cuda.synchronize if device.type == "cuda" else _nothing
    for number in range(job.warmup_steps + job.steps):
        wait()
        start = time.perf_counter()
        reported = run()
        wait()
        middle = time.perf_counter()
        net.optimizer.step()
        wait()
        end = time.perf_counter()
        steps.forward_backward_s.append(middle - start)
        steps.optimizer_s.append(end - middle)
        if reported:
            steps.losses.append(_mean_loss(reported))
        seen(end - start, number < job.warmup_steps)
    return steps


def _nothing() -> None: ...


def _step_of(job: Job, net: Network, device: Any) -> Callable[[], list[dict[str, Any]]]:
    """Forward and backward of one step; returns the losses of its micro-batches, if any."""
    schedule = get_forward_backward_func()
    several = len(net.chunks) > 1
    # One iterator a chunk: interleaved chunks must all see the same micro-batches.
    data = [batches(job, device) for _ in net.chunks]

    def run() -> list[dict[str, Any]]:
        for chunk in net.chunks:
            chunk.zero_grad_buffer()
        net.optimizer.zero_grad()
        found: list[dict[str, Any]] = schedule(
            forward_step_func=_forward_step,
            data_iterator=data if several else data[0],
            model=net.chunks if several else net.chunks[0],
            num_microbatches=job.global_batch_size
            // (job.layout.micro_batch_size * job.data_parallel_size),
            seq_length=job.seq_length,
            micro_batch_size=job.layout.micro_batch_size,
            forward_only=False,
        )
        return found

    return run


def batches(job: Job, device: Any) -> Iterator[dict[str, Any]]:
    """Micro-batches of made-up text, the same sequences in a step whatever the layout."""
    size, seq = job.layout.micro_batch_size, job.seq_length
    replica, replicas = parallel_state.get_data_parallel_rank(), job.data_parallel_size
    first = replica * size
    positions = torch.arange(seq).repeat(size, 1)
    while True:
        rows = [_sequence(job, first + i) for i in range(size)]
        tokens = torch.stack(rows)
        batch = {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "position_ids": positions,
        }
        moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        yield get_batch_on_this_cp_rank(moved)
        first += size * replicas


def _sequence(job: Job, number: int) -> Any:
    """One sequence of random tokens, each said twice: there is something to learn."""
    generator = torch.Generator().manual_seed(job.seed + number)
    pairs = job.seq_length // 2 + 1
    tokens = torch.randint(0, job.model.vocab_size, (pairs,), generator=generator)
    return tokens.repeat_interleave(2)[: job.seq_length + 1]


def _forward_step(data: Iterator[dict[str, Any]], model: Any) -> tuple[Any, Callable[..., Any]]:
    batch = next(data)
    losses = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return losses, _loss


def _loss(per_token: Any) -> tuple[Any, dict[str, Any]]:
    """Mean over the sequence, of which a context-parallel rank holds a part."""
    loss = per_token.float().mean()
    reported = loss.detach().clone()
    size = parallel_state.get_context_parallel_world_size()
    if size > 1:
        dist.all_reduce(reported, group=parallel_state.get_context_parallel_group())
        reported /= size
        loss = loss / size  # the schedule multiplies by the size, the gradient mean divides
    return loss, {"loss": reported}


def _mean_loss(reported: list[dict[str, Any]]) -> float | None:
    mean = float(sum(float(each["loss"]) for each in reported)) / len(reported)
    return mean if math.isfinite(mean) else None
