"""The step: where compute, communication and schedule meet.

The pipeline turns layers (`layer`) into a step; gradient reduction and the optimizer come on top.
Every part is kept, and the parts sum to the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from autoparallel.constants import NORMAL_90
from autoparallel.cost import communication as comm
from autoparallel.cost.case import Case
from autoparallel.cost.compute import (
    HALF_BYTES,
    head,
    tokens,
)
from autoparallel.cost.layer import LayerTime, layer_time
from autoparallel.cost.neighbours import slower
from autoparallel.cost.partition import (
    RankParameters,
    chunks,
    rank_layers,
    rank_parameters,
    single_stage,
)
from autoparallel.cost.schedule import Stages, pipeline_time
from autoparallel.cost.unique import kept_per_combination, per_combination
from autoparallel.profiles import Spread
from autoparallel.units import Num


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTime:
    """Seconds of one optimizer step, by cause; scalars or [N]."""

    compute_s: Num
    recompute_s: Num
    tp_comm_s: Num
    cp_comm_s: Num
    ep_comm_s: Num
    dp_comm_s: Num
    pp_comm_s: Num
    bubble_s: Num
    optimizer_s: Num
    launch_s: Num

    @property
    def iteration_s(self) -> Num:
        """The whole step."""
        parts: list[Num] = [getattr(self, f.name) for f in fields(self)]
        return sum(parts, start=0.0)


def part_shares(step: StepTime) -> dict[str, Num]:
    """Shares of the step by the kind of error they carry: `compute`, `bubble`, ...; sum to 1."""
    total = step.iteration_s
    communication = (
        step.tp_comm_s + step.cp_comm_s + step.ep_comm_s + step.dp_comm_s + step.pp_comm_s
    )
    return {
        "compute": (step.compute_s + step.recompute_s + step.optimizer_s) / total,
        "communication": communication / total,
        "bubble": step.bubble_s / total,
        "launch": step.launch_s / total,
    }


def interval_s(step: StepTime, spread: Spread, doubt: Num = 1.0) -> tuple[Num, Num]:
    """5th and 95th percentile of the step time: each part is wrong on its own, log-normally.

    `doubt` is the share of that variance which measured runs nearby leave.
    """
    factor = np.exp(NORMAL_90 * np.sqrt(log_variance(part_shares(step), spread, doubt)))
    return step.iteration_s / factor, step.iteration_s * factor


def log_variance(shares: Mapping[str, Num], spread: Spread, doubt: Num) -> Num:
    """Variance of the log of a step time whose parts have `shares` of it."""
    parts = sum((share * getattr(spread, name)) ** 2 for name, share in shares.items())
    found: Num = spread.layout**2 + doubt * parts
    return found


def gradient_exposed(case: Case) -> Num:
    """Share of gradient traffic exposed: calibrated with Megatron's overlap, all of it without."""
    k, c = case.knobs, case.constants
    hidden = np.where(np.asarray(k.zero) == 0, c.dp_exposed, c.shard_exposed)
    return np.where(k.overlaps("grad") > 0, hidden, np.maximum(hidden, 1.0))


def pacing_rank(case: Case) -> RankParameters:
    """Parameters of the rank whose optimizer step is waited for: with a vocabulary matrix."""
    vocabularies = 1.0 + single_stage(case) * (1 - case.model.tied)
    return rank_parameters(case, rank_layers(case), vocabularies)


@per_combination
def gradient_s(case: Case) -> Num:
    """Gradient reduction (and parameter gathering) of one step, before overlap.

    It goes bucket by bucket, each with the latency of a collective.
    """
    k = case.knobs
    params = pacing_rank(case)
    per_parameter = np.where(np.asarray(k.zero) == 0, 2 * k.grad_bytes, k.grad_bytes + HALF_BYTES)
    seconds = bucketed_s(case, params.dense * per_parameter, comm.dp_group(case))
    if np.any(case.model.E):
        expert = bucketed_s(case, params.expert * per_parameter, comm.expert_dp_group(case))
        seconds = seconds + expert * np.where(np.asarray(case.model.E) > 0, 1.0, 0.0)
    return seconds * np.where(np.asarray(k.zero) < 3, 1.0, 0.0)


def bucketed_s(case: Case, message_bytes: Num, group: comm.Group) -> Num:
    """A reduction that is sent in buckets of the framework's size."""
    more = np.maximum(message_bytes / case.traits.bucket_bytes - 1, 0.0)
    return comm.all_gather_s(message_bytes, group, case) + more * group.tree_latency_s


HOST_LINK_BYTES_PER_S = 25e9
"""Assumed: what a PCIe 4 x16 link carries each way for one GPU."""
HOST_MEMORY_BYTES_PER_S = 20e9
"""Assumed: one GPU's eighth of a two-socket host's memory bandwidth under CPU Adam."""


@per_combination
def optimizer_s(case: Case) -> Num:
    """Adam: 16 bytes read and 14 written a parameter, sharded from ZeRO-1; gradients read again.

    An offloaded share goes down and up the host link and through the host's memory instead.
    """
    k = case.knobs
    params = pacing_rank(case).total
    sharded = np.where(np.asarray(k.zero) >= 1, k.dp * k.cp, 1.0)
    own = params / sharded
    again = 2 * k.grad_bytes * params * np.where(np.asarray(k.zero) == 3, 0, 1)
    moved = 30.0 * own * (1 - k.offload) + again
    on_host = (
        k.offload
        * own
        * ((k.grad_bytes + HALF_BYTES) / HOST_LINK_BYTES_PER_S + 30.0 / HOST_MEMORY_BYTES_PER_S)
    )
    return moved / (0.8 * case.machine.memory_bandwidth_bytes_per_s) + on_host


def stages(case: Case, layer: LayerTime) -> Stages:
    """The pipeline that `layer` makes: chunks, embedding and loss at its ends, transfers."""
    k, c, split, out = case.knobs, case.constants, chunks(case), head(case)
    forward = split.middle * layer.forward_s
    weight = split.middle * layer.weight_s
    first, last = split.first - split.middle, split.last - split.middle
    backward_layer = layer.total_s - layer.forward_s
    message = tokens(case) * case.model.h * HALF_BYTES / np.where(np.asarray(k.sp) > 0, k.tp, 1.0)
    return Stages(
        pp=k.pp,
        vpp=k.vpp,
        micro_batches=k.micro_batches,
        group=k.group,
        schedule=k.schedule,
        forward_s=forward,
        backward_s=split.middle * backward_layer - weight,
        weight_s=weight,
        first_extra_forward_s=first * layer.forward_s,
        first_extra_backward_s=first * backward_layer,
        last_extra_forward_s=last * layer.forward_s + out.forward_s,
        last_extra_backward_s=last * backward_layer + out.backward_s,
        p2p_s=comm.point_to_point_s(message, case),
        p2p_overlapped=(1 - np.minimum(c.pp_exposed, 1.0)) * k.overlaps("p2p"),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Running:
    """Seconds that the micro-batches of a step take on the slowest node, by cause."""

    compute_s: Num
    recompute_s: Num
    tp_comm_s: Num
    cp_comm_s: Num
    ep_comm_s: Num
    gathered_s: Num
    pp_comm_s: Num
    bubble_s: Num
    launch_s: Num

    @property
    def total_s(self) -> Num:
        """All causes."""
        parts: list[Num] = [getattr(self, f.name) for f in fields(self)]
        return sum(parts, start=0.0)


def straggling(case: Case) -> Num:
    """How much longer the slowest node takes than one: nodes are unlike by chance.

    The extreme of a sample grows as the logarithm of its size. However a layout cuts the job, a
    pipeline keeps the pace of its slowest stage and a reduction waits for the slowest replica.
    NVIDIA's runs of one layout on 16 to 2,048 GPUs (`dgxc-Nemotron4-15B` in training.csv) take 3 to
    5 % longer in the end than their traffic explains, with fp8 and bf16 alike.
    """
    nodes = case.knobs.num_gpus / case.machine.domain_gpus
    return case.constants.straggling * np.log2(np.maximum(nodes, 1.0))


@kept_per_combination
def running(case: Case) -> Running:
    """Forward and backward of all micro-batches through the pipeline."""
    layer = layer_time(case)
    pipeline = pipeline_time(stages(case, layer))
    layers_done = case.knobs.micro_batches * rank_layers(case)
    ends_s = pipeline.busy_s - layers_done * layer.total_s
    one_node = Running(
        compute_s=layers_done * layer.compute_s + ends_s,
        recompute_s=layers_done * layer.recompute_s,
        tp_comm_s=layers_done * layer.tp_comm_s,
        cp_comm_s=layers_done * layer.cp_comm_s,
        ep_comm_s=layers_done * layer.ep_comm_s,
        gathered_s=layers_done * layer.dp_comm_s,
        pp_comm_s=pipeline.p2p_s,
        bubble_s=pipeline.bubble_s * case.constants.bubble,
        launch_s=layers_done * layer.launch_s,
    )
    slowest = 1 + straggling(case)
    return Running(**{f.name: getattr(one_node, f.name) * slowest for f in fields(one_node)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update:
    """Seconds of what follows the micro-batches: gradients that are waited for, the optimizer."""

    reduced_s: Num
    optimizer_s: Num

    @property
    def total_s(self) -> Num:
        """Both."""
        return self.reduced_s + self.optimizer_s


@kept_per_combination
def update(case: Case) -> Update:
    """Exposed gradient reduction and optimizer step."""
    return Update(
        reduced_s=gradient_s(case) * gradient_exposed(case),
        optimizer_s=optimizer_s(case) + case.constants.step_overhead_s,
    )


def step_of(ran: Running, then: Update, slower: Num = 1.0) -> StepTime:
    """The step that micro-batches and update make, every part `slower` times as long."""
    step = StepTime(
        compute_s=ran.compute_s,
        recompute_s=ran.recompute_s,
        tp_comm_s=ran.tp_comm_s,
        cp_comm_s=ran.cp_comm_s,
        ep_comm_s=ran.ep_comm_s,
        dp_comm_s=ran.gathered_s + then.reduced_s,
        pp_comm_s=ran.pp_comm_s,
        bubble_s=ran.bubble_s,
        optimizer_s=then.optimizer_s,
        launch_s=ran.launch_s,
    )
    return StepTime(**{f.name: getattr(step, f.name) * slower for f in fields(step)})


def step_time(case: Case) -> StepTime:
    """Seconds of one step with their parts."""
    return step_of(running(case), update(case), slower(case))
