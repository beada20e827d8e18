"""Time of collectives and of the traffic each parallel dimension causes.

Ranks are placed as Megatron places them: tensor parallel fastest, then context, data, pipeline. A
group whose members lie `stride` apart has `domain / stride` of them behind the same fast links and
leaves through as many network adapters at once. Ring forms: NCCL-tests PERFORMANCE.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoparallel.cost.case import Case
from autoparallel.model import Shape
from autoparallel.units import Num

POINT_TO_POINT_LATENCY_S = 25e-6
"""Launch and handshake of one send and its receive (NCCL, microseconds tens)."""
FORWARDED_FAR, FORWARDED_NEAR = 0.9, 0.8
"""Shares of an adapter and of NVLink that kernels which forward tokens reach: on 400 Gb/s 58 and 51
GB/s among 4 and 8 nodes with the quarter and the eighth that stays, on NVLink 153 to 158 of 200 and
726 to 740 of 900 GB/s (deepseek-ai/DeepEP@0297fc8 docs/legacy.md and README.md)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """A communicator.

    Attributes:
        ranks: Members.
        per_domain: Members behind the same fast links.
        bandwidth_bytes_per_s: Bus bandwidth of a ring through all of them, per rank and direction.
        latency_s: Time of one ring collective of no bytes.
        tree_latency_s: The same through a tree, up and down.
        crosses: 1 where the group leaves the fast domain.
    """

    ranks: Num
    per_domain: Num
    bandwidth_bytes_per_s: Num
    latency_s: Num
    tree_latency_s: Num
    crosses: Num


def inter_bytes_per_s(case: Case) -> Num:
    """One GPU's share of the fabric that collectives reach."""
    measured = np.asarray(case.machine.inter_is_measured) > 0
    return case.machine.inter_bytes_per_s * np.where(measured, 1.0, case.constants.inter_bandwidth)


def near_bytes_per_s(case: Case, members: Num) -> Num:
    """What a GPU's fast links carry among `members` of its domain.

    Through switches all of it; where every pair has a link of its own, only the links to members.
    """
    machine = case.machine
    links = np.maximum(members - 1, 1.0) / np.maximum(machine.domain_gpus - 1, 1.0)
    pairwise = np.asarray(machine.pairwise) > 0
    return machine.intra_bytes_per_s * np.where(pairwise, np.minimum(links, 1.0), 1.0)


def group(case: Case, ranks: Num, stride: Num) -> Group:
    """The communicator of `ranks` members lying `stride` global ranks apart."""
    c, machine = case.constants, case.machine
    per_domain = np.clip(np.floor(machine.domain_gpus / stride), 1.0, ranks)
    domains = np.ceil(ranks / per_domain)
    crosses: Num = np.asarray(domains > 1, dtype=np.float64)
    intra = near_bytes_per_s(case, per_domain) * c.intra_bandwidth
    inter = inter_bytes_per_s(case) * per_domain
    several = np.asarray(ranks) > 1
    wait_s = c.collective_latency_s * waited(ranks)
    inside_s = machine.intra_latency_s * (per_domain - 1)
    depth = 2 * np.log2(domains)
    return Group(
        ranks=ranks,
        per_domain=per_domain,
        bandwidth_bytes_per_s=np.where(crosses > 0, np.minimum(inter, intra), intra),
        latency_s=(wait_s + inside_s + c.hop_latency_s * (ranks - 1) * crosses) * several,
        tree_latency_s=(wait_s + inside_s + c.hop_latency_s * depth) * several,
        crosses=crosses,
    )


def waited(ranks: Num) -> Num:
    """Wait for the slowest of `ranks`, in waits among a node's 8.

    The extreme of a sample grows as the logarithm of its size; among few ranks it is the same.
    """
    several = np.asarray(np.asarray(ranks) > 1, dtype=np.float64)
    return np.maximum(np.log2(np.maximum(ranks, 1.0)) / 3.0, 1.0) * several


def all_gather_s(message_bytes: Num, g: Group, case: Case) -> Num:
    """All-gather (or reduce-scatter) of a tensor that is `message_bytes` when whole."""
    ring = g.latency_s + message_bytes * (g.ranks - 1) / g.ranks / g.bandwidth_bytes_per_s
    return np.where(g.crosses > 0, ring, measured_s("all_gather", message_bytes, g, case))


def all_reduce_s(message_bytes: Num, g: Group, case: Case) -> Num:
    """All-reduce of `message_bytes` on every rank."""
    ring = g.latency_s + 2 * message_bytes * (g.ranks - 1) / g.ranks / g.bandwidth_bytes_per_s
    return np.where(g.crosses > 0, ring, measured_s("all_reduce", message_bytes, g, case))


def measured_s(
    op: str, message_bytes: Num, g: Group, case: Case, members: Num | None = None
) -> Num:
    """A collective inside the fast domain: its measured time, slowed by what a step does to it.

    Links faster or slower than those of the measured system change it in proportion; `members` is
    how many of the group a rank speaks to at a time, all of them when None, itself counted.
    """
    isolated = case.look_up(
        lambda o, size, ranks, link: (
            o.collectives.seconds(op, size, ranks) * o.collectives.link_bytes_per_s / link
        ),
        message_bytes,
        g.ranks,
        near_bytes_per_s(case, g.ranks if members is None else members),
    )
    wait_s = case.constants.collective_latency_s * waited(g.ranks)
    return isolated / case.constants.intra_bandwidth + wait_s


def ring_s(message_bytes: Num, g: Group, case: Case) -> Num:
    """A tensor that is `message_bytes` when whole, passed from neighbour to neighbour.

    A collective leaves a domain through the adapters of all its members. Here each send has one:
    only the last member's neighbour is outside, and everybody waits for that one.
    """
    wait_s = case.constants.collective_latency_s * waited(g.ranks)
    hop_s = POINT_TO_POINT_LATENCY_S + message_bytes / g.ranks / inter_bytes_per_s(case)
    near_s = measured_s("all_gather", message_bytes, g, case, members=2.0)
    return np.where(g.crosses > 0, wait_s + (g.ranks - 1) * hop_s, near_s)


def swap_s(message_bytes: Num, g: Group, case: Case) -> Num:
    """An all-to-all of different parts, `message_bytes` on every rank, by NCCL."""
    leaving = message_bytes * (1 - g.per_domain / g.ranks)
    far_s = g.latency_s + leaving / inter_bytes_per_s(case)
    return np.where(g.crosses > 0, far_s, measured_s("all_to_all", message_bytes, g, case))


def tokens_s(message_bytes: Num, g: Group, case: Case) -> Num:
    """Token exchange in which every rank sends `message_bytes`: K copies of each token.

    Where the framework forwards tokens, one copy leaves through the rank's own adapter for every
    remote domain that a token goes to, and fast links carry one to every rank; else each of its
    experts is sent its own.
    """
    m, c, machine = case.model, case.constants, case.machine
    forwards = np.asarray(case.traits.forwards_tokens) > 0
    domains, one = np.ceil(g.ranks / g.per_domain), message_bytes / np.maximum(m.K, 1.0)
    local = one * np.where(forwards, others_reached(m, g.ranks), m.K * (1 - 1 / g.ranks))
    remote = one * np.where(forwards, others_reached(m, domains), m.K * (1 - 1 / domains))
    known = np.asarray(machine.inter_is_measured) > 0
    share = np.where(known, 1.0, np.where(forwards, FORWARDED_FAR, c.inter_bandwidth))
    near = np.where(forwards, FORWARDED_NEAR, c.intra_bandwidth)
    near = near * near_bytes_per_s(case, g.per_domain)
    wire = np.maximum(local / near, remote / (machine.inter_bytes_per_s * share))
    return g.latency_s + wire


def others_reached(m: Shape, places: Num) -> Num:
    """Other places (ranks or domains) that a token reaches, of which each has as many experts.

    Its K experts lie anywhere or in G_k of G groups. A chosen group is one of those that are left,
    and counts where it has one of the K; groups lie in order, several in a place or one over many.
    """
    limited = np.asarray(m.G) > 0
    per_place, over = np.maximum(m.G / places, 1.0), np.maximum(places / np.maximum(m.G, 1), 1.0)
    chosen = np.maximum(m.G_k, 1.0)
    missed: Num = np.ones(np.shape(places))
    for group in range(int(np.max(m.G_k))):
        left = np.maximum(m.G - group, 1.0)
        used = (1 - (1 - 1 / chosen) ** m.K) * (group < np.asarray(m.G_k))
        missed = missed * (1 - np.minimum(per_place / left, 1.0) * used)
    spread = over * (1 - (1 - 1 / over) ** (m.K / chosen))
    anywhere = places * (1 - (1 - 1 / places) ** m.K)
    reached = np.where(limited, places / over * (1 - missed) * spread, anywhere)
    return reached * (1 - 1 / places)


def tp_group(case: Case) -> Group:
    """Tensor-parallel neighbours."""
    return group(case, case.knobs.tp, 1.0)


def cp_group(case: Case) -> Group:
    """Context-parallel ring."""
    return group(case, case.knobs.cp, case.knobs.tp)


def dp_group(case: Case) -> Group:
    """Replicas that reduce gradients together: data and context parallel."""
    return group(case, case.knobs.dp * case.knobs.cp, case.knobs.tp)


def expert_dp_group(case: Case) -> Group:
    """Replicas of one expert shard."""
    k = case.knobs
    ranks = np.maximum(1.0, k.dp * k.cp * k.tp / (k.ep * k.etp))
    return group(case, ranks, k.ep * k.etp)


def ep_group(case: Case) -> Group:
    """Ranks that exchange tokens between experts."""
    return group(case, case.knobs.ep, case.knobs.etp)


def point_to_point_s(message_bytes: Num, case: Case) -> Num:
    """One send to the next pipeline stage, which lies tp x cp x dp ranks away.

    The stages of a pipeline fill the machine in order, so where there are several fast domains some
    stage has its next one in another; the pipeline keeps the pace of that hop. Ignored: the hops
    that stay inside fill and drain it faster.
    """
    k, machine, c = case.knobs, case.machine, case.constants
    crosses = k.num_gpus > machine.domain_gpus
    intra = near_bytes_per_s(case, 2.0) * c.intra_bandwidth
    bandwidth = np.where(crosses, inter_bytes_per_s(case), intra)
    return (POINT_TO_POINT_LATENCY_S + message_bytes / bandwidth) * (k.pp > 1)
