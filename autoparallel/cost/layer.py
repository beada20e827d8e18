"""One layer: its operators, what is recomputed, and the communication that stays exposed.

Host launch time hides behind them or shows when it is longer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from autoparallel.cost import communication as comm
from autoparallel.cost.case import Case
from autoparallel.cost.compute import (
    HALF_BYTES,
    Operators,
    attention_core_s,
    dense_layer,
    moe_layer,
    tokens,
    torch_softmax,
)
from autoparallel.cost.context import (
    STEP_LAUNCH,
    by_type,
    inside,
    keys_and_values,
    more_steps,
    swapped,
)
from autoparallel.cost.partition import chunks, layer_parameters
from autoparallel.cost.unique import per_combination
from autoparallel.units import Num


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


def shown_s(share: Num, traffic: Num, work: Num) -> Num:
    """Traffic beside `work`: a share always shows, of the rest what the work is too short for."""
    return share * traffic + (1 - np.minimum(share, 1)) * (smooth_max(work, traffic) - work)


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
    k = case.knobs
    if not np.any(k.cp > 1):
        return np.zeros(np.shape(k.cp))
    group, again, near = comm.cp_group(case), attention_again(case), inside(case)
    kv, swap = HALF_BYTES * keys_and_values(case), HALF_BYTES * swapped(case)
    gathered = comm.all_gather_s(kv, group, case) * (3 + again)
    whole = comm.swap_s(swap, group, case) * (2 + again)
    inner = comm.swap_s(swap, comm.group(case, near, k.tp), case) * (2 + again)
    outer = comm.group(case, k.cp / near, k.tp * near)
    attention = attention_core_s(case)
    ring = ring_shown_s(case, comm.ring_s(kv, group, case), attention)
    across = ring_shown_s(case, comm.ring_s(kv / near, outer, case), attention)
    return by_type(case, [ring, gathered, whole, inner + across])


def attention_again(case: Case) -> Num:
    """Share of layers whose attention is repeated in the backward pass, and its traffic with it."""
    return np.maximum(recomputed_share(case), case.knobs.module("core_attn"))


def ring_shown_s(case: Case, once: Num, attention: tuple[Num, Num]) -> Num:
    """What attention does not hide of a ring that takes `once` forward and twice that backward."""
    share = case.constants.cp_exposed
    forward = shown_s(share, once, attention[0])
    return forward * (1 + attention_again(case)) + shown_s(share, 2 * once, attention[1])


@per_combination
def ep_forward_s(case: Case) -> Num:
    """Dispatch and combine in one layer's forward, on the share of layers with experts."""
    m, k = case.model, case.knobs
    if not np.any(m.E):
        return np.zeros(np.shape(k.ep))
    sent = tokens(case) / k.tp * m.K * m.h * HALF_BYTES * case.constants.expert_imbalance
    once = comm.tokens_s(sent, comm.ep_group(case), case)
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
    host = (1 + c.launch_tp_factor * (k.tp - 1)) * moe + STEP_LAUNCH * more_steps(case)
    host = c.launch_s_per_layer * host
    host = host * (1 + whole / 3) * np.take(LAUNCHED, np.asarray(k.graph, dtype=np.intp))
    host = host * (1 + TORCH_SOFTMAX_LAUNCH * torch_softmax(case))
    busy = smooth_max(gpu, host, squarings=3)
    exposed = shown_s(c.gather_exposed, fsdp_s(case), busy)
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
