"""The step: where compute, communication and schedule meet.

A layer's forward and backward are its operators plus the communication that stays exposed; host
launch time hides behind them or shows when it is longer. The pipeline turns layers into a step;
gradient reduction and the optimizer come on top. Every part is kept, and the parts sum to the step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from autoparallel.constants import NORMAL_90
from autoparallel.cost import communication as comm
from autoparallel.cost.case import Case
from autoparallel.cost.compute import (
    HALF_BYTES,
    Operators,
    dense_layer,
    head,
    moe_layer,
    tokens,
    torch_softmax,
)
from autoparallel.cost.partition import (
    RankParameters,
    chunks,
    layer_parameters,
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


def interval_s(step: StepTime, spread: Spread) -> tuple[Num, Num]:
    """5th and 95th percentile of the step time: each part is wrong on its own, log-normally."""
    shares = part_shares(step)
    variance = spread.layout**2 + sum(
        (share * getattr(spread, name)) ** 2 for name, share in shares.items()
    )
    factor = np.exp(NORMAL_90 * np.sqrt(variance))
    return step.iteration_s / factor, step.iteration_s * factor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTime:
    """One average layer of one micro-batch on one rank, forward and backward together, by cause.

    `forward_s` is the forward's share of the total, `weight_s` the weight gradients'.
    """

    compute_s: Num
    recompute_s: Num
    tp_comm_s: Num
    cp_comm_s: Num
    ep_comm_s: Num
    dp_comm_s: Num
    launch_s: Num
    forward_s: Num
    weight_s: Num

    @property
    def total_s(self) -> Num:
        """All causes."""
        return (
            self.compute_s
            + self.recompute_s
            + self.tp_comm_s
            + self.cp_comm_s
            + self.ep_comm_s
            + self.dp_comm_s
            + self.launch_s
        )


def smooth_max(a: Num, b: Num, squarings: int = 2) -> Num:
    """A maximum without the corner: two overlapped activities rarely hide each other perfectly.

    The norm of the two of order 2^squarings: 19 % over the maximum where they are equal at order 4
    (a gather behind compute), 9 % at order 8 (a queue of launches that runs ahead of the GPU).
    """
    top = np.maximum(np.maximum(a, b), 1e-12)
    share = np.minimum(a, b) / top
    for _ in range(squarings):
        share = share * share
    root = 1 + share
    for _ in range(squarings):
        root = np.sqrt(root)
    return top * root


@per_combination
def mixed_layer(case: Case) -> Operators:
    """The average layer of a model that may mix dense and MoE layers."""
    dense = dense_layer(case)
    if not np.any(case.model.E):
        return dense
    moe, share = moe_layer(case), case.model.L_moe / case.model.L
    return Operators(
        **{
            f.name: getattr(dense, f.name) * (1 - share) + getattr(moe, f.name) * share
            for f in fields(Operators)
        }
    )


@per_combination
def recomputed_share(case: Case) -> Num:
    """Share of layers that are recomputed whole: all under `uniform`, the first n under `block`."""
    k = case.knobs
    per_chunk = chunks(case).middle
    block = np.minimum(k.recompute_layers / np.maximum(per_chunk, 1.0), 1.0)
    covered = np.where(np.asarray(k.method) == 0, 1.0, block)
    return np.where(np.asarray(k.granularity) == 2, covered, 0.0)


def recompute_s(case: Case, ops: Operators) -> Num:
    """Forward work that one average layer repeats in its backward pass."""
    k = case.knobs
    attention = k.module("core_attn") * ops.attention_forward_s
    cheap = np.maximum(k.module("layernorm"), k.module("moe_act")) * 0.4 * ops.memory_forward_s
    mlp = np.maximum(k.module("mlp"), k.module("moe")) * (
        0.66 * ops.gemm_forward_s + 0.5 * ops.memory_forward_s
    )
    per_op = case.traits.per_op_recompute * (np.asarray(k.granularity) == 1)
    selective = np.where(
        np.asarray(per_op) > 0,
        0.45 * (ops.gemm_forward_s + ops.memory_forward_s),
        attention + cheap + mlp,
    )
    return selective + recomputed_share(case) * ops.forward_s


@per_combination
def tp_forward_s(case: Case) -> Num:
    """Tensor-parallel traffic of one layer's forward.

    Attention and a dense MLP reduce once each, as an all-reduce or its two halves. Experts take the
    MLP's place: their tokens stay split by sequence, gathered and reduced only over the
    expert-tensor group; a shared expert reduces as a dense MLP does.
    """
    m, k = case.model, case.knobs
    message = tokens(case) * m.h * HALF_BYTES
    once = reduced_s(case, message, comm.tp_group(case))
    if not np.any(m.E):
        return 2 * once
    moe, shared = m.L_moe / m.L, np.where(np.asarray(m.f_s) > 0, 1.0, 0.0)
    routed = message / k.tp * m.K * k.etp
    experts = 2 * comm.all_gather_s(routed, comm.group(case, k.etp, 1.0), case)
    return once * (2 - moe * (1 - shared)) + experts * moe * (k.etp > 1)


def reduced_s(case: Case, message_bytes: Num, group: comm.Group) -> Num:
    """A sum over tensor-parallel ranks; with sequence parallelism as scatter and gather."""
    whole = comm.all_reduce_s(message_bytes, group, case)
    halves = 2 * comm.all_gather_s(message_bytes, group, case)
    return np.where(np.asarray(case.knobs.sp) > 0, halves, whole)


@per_combination
def cp_s(case: Case) -> Num:
    """Exposed context-parallel traffic of one layer, forward and backward, by `cp_comm_type`.

    `p2p` and `all_gather` pass keys and values around (once forward, twice backward), the ring
    behind attention, the gather in front of it. `a2a` swaps sequence for heads on q, k, v and the
    output, each way. `a2a+p2p` swaps inside the fast domain and rings the rest.
    """
    m, k, c = case.model, case.knobs, case.constants
    if not np.any(k.cp > 1):
        return np.zeros(np.shape(k.cp))
    group, whole = comm.cp_group(case), recomputed_share(case)
    kv = m.g / k.tp * (m.d_qk + m.d_v) * HALF_BYTES * k.mbs * m.s
    swapped = (m.a + m.g) / k.tp * (m.d_qk + m.d_v) * HALF_BYTES * tokens(case)
    inside = np.clip(np.floor(case.machine.domain_gpus / k.tp), 1.0, k.cp)
    ring = comm.all_gather_s(kv, group, case) * (3 + whole)
    swap = comm.all_to_all_s(swapped, 1.0, group, case) * (2 + whole)
    inner = comm.all_to_all_s(swapped, 1.0, comm.group(case, inside, k.tp), case) * (2 + whole)
    outer = comm.group(case, k.cp / inside, k.tp * inside)
    across = comm.all_gather_s(kv / inside, outer, case) * (3 + whole)
    by_type = [ring * c.cp_exposed, ring, swap, inner + across * c.cp_exposed]
    return np.select([np.asarray(k.cp_comm) == i for i in range(4)], by_type) * (k.cp > 1)


@per_combination
def ep_forward_s(case: Case) -> Num:
    """Dispatch and combine in one layer's forward, on the share of layers with experts."""
    m, k = case.model, case.knobs
    if not np.any(m.E):
        return np.zeros(np.shape(k.ep))
    sent = tokens(case) / k.tp * m.K * m.h * HALF_BYTES * case.constants.expert_imbalance
    once = comm.all_to_all_s(sent, m.K, comm.ep_group(case), case)
    return 2 * once * np.where(np.asarray(k.ep) > 1, 1.0, 0.0) * m.L_moe / m.L


@per_combination
def fsdp_s(case: Case) -> Num:
    """ZeRO-3 traffic of one layer and micro-batch: weights gathered twice, gradients scattered."""
    params = layer_parameters(case)
    dense, expert = comm.dp_group(case), comm.expert_dp_group(case)
    grads = case.knobs.grad_bytes
    total = comm.all_gather_s(params.dense * (2 * HALF_BYTES + grads), dense, case)
    if np.any(case.model.E):
        gathered = comm.all_gather_s(params.expert * (2 * HALF_BYTES + grads), expert, case)
        total = total + gathered * np.where(np.asarray(case.model.E) > 0, 1.0, 0.0)
    return total * case.knobs.sharded(3)


LAUNCHED = np.array([1.0, 0.6, 0.7, 0.7, 0.1])
"""Assumed: share of a layer's launches that stays with the host, by entry of `GRAPH_SCOPES`."""


@per_combination
def layer_time(case: Case) -> LayerTime:
    """One average layer."""
    c, k = case.constants, case.knobs
    ops = mixed_layer(case)
    again = recompute_s(case, ops)
    whole = recomputed_share(case)
    tp = tp_forward_s(case) * (2 + whole) * c.tp_exposed * split_share(case, "tp")
    cp = cp_s(case)
    ep = ep_forward_s(case) * (2 + whole) * c.ep_exposed * split_share(case, "moe")
    work = ops.forward_s + ops.backward_s + again
    gpu = work + tp + cp + ep
    moe = 1 + c.moe_launch * case.model.L_moe / case.model.L
    host = c.launch_s_per_layer * (1 + c.launch_tp_factor * (k.tp - 1)) * moe
    host = host * (1 + whole / 3) * np.take(LAUNCHED, np.asarray(k.graph, dtype=np.intp))
    host = host * (1 + TORCH_SOFTMAX_LAUNCH * torch_softmax(case))
    busy = smooth_max(gpu, host, squarings=3)
    gather = fsdp_s(case)
    exposed = c.gather_exposed * gather + (1 - np.minimum(c.gather_exposed, 1)) * (
        smooth_max(busy, gather) - busy
    )
    forward = ops.forward_s + tp / 2 + cp / 3 + ep / 2
    stretch = (busy + exposed) / gpu
    return LayerTime(
        compute_s=ops.forward_s + ops.backward_s,
        recompute_s=again,
        tp_comm_s=tp,
        cp_comm_s=cp,
        ep_comm_s=ep,
        dp_comm_s=exposed,
        launch_s=busy - gpu,
        forward_s=forward * stretch,
        weight_s=ops.gemm_backward_s / 2 * stretch,
    )


TORCH_SOFTMAX_LAUNCH = 0.2
"""More host time of a layer whose softmax is torch's: vTrain's launch-bound layers of 2 heads a GPU
take 5.1 ms, of 4 heads 4.2 ms, at every width and depth."""
SPLIT_EXPOSED = 0.7
"""Assumed: what splitting a layer's collective against its GEMM (`tp`) or another micro-batch's
compute (`moe`) leaves exposed of the rest; torchtitan's asynchronous tensor parallelism gained 9 %
of a step."""


def split_share(case: Case, switch: str) -> Num:
    """Share of exposed traffic that remains when an overlap `switch`, off by default, is on."""
    return 1 - (1 - SPLIT_EXPOSED) * case.knobs.overlaps(switch)


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
    """Seconds that the micro-batches of a step take, by cause, with nothing after them."""

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


@kept_per_combination
def running(case: Case) -> Running:
    """Forward and backward of all micro-batches through the pipeline."""
    layer = layer_time(case)
    pipeline = pipeline_time(stages(case, layer))
    layers_done = case.knobs.micro_batches * rank_layers(case)
    ends_s = pipeline.busy_s - layers_done * layer.total_s
    return Running(
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


def step_of(ran: Running, then: Update) -> StepTime:
    """The step that micro-batches and update make."""
    return StepTime(
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


def step_time(case: Case) -> StepTime:
    """Seconds of one step with their parts."""
    return step_of(running(case), update(case))
