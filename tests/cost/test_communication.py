"""Collectives and their groups: nothing alone, more for more bytes, slower over longer ways."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import MOE, NUM_GPUS, SEQ, assert_never_less, case, with_knobs, with_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.cost import communication as comm
from autoparallel.cost.case import Case

POWERS = [1, 2, 4, 8, 16, 32, 64]
SIZES = st.floats(1.0, 1e11)
OF = case(["tp1 mbs1"], model=MOE)
FORWARDING = case(["tp1 mbs1"], model=MOE, forwards_tokens=1.0)


def gather(size: Any, ranks: Any, stride: Any, of: Case = OF) -> Any:
    return comm.all_gather_s(size, comm.group(of, ranks, stride), of)


def reduce(size: Any, ranks: Any, stride: Any, of: Case = OF) -> Any:
    return comm.all_reduce_s(size, comm.group(of, ranks, stride), of)


def exchange(size: Any, ranks: Any, stride: Any, of: Case = OF) -> Any:
    return comm.tokens_s(size, comm.group(of, ranks, stride), of)


def forward(size: Any, ranks: Any, stride: Any, of: Case = FORWARDING) -> Any:
    return exchange(size, ranks, stride, replace(of, traits=FORWARDING.traits))


def swap(size: Any, ranks: Any, stride: Any, of: Case = OF) -> Any:
    return comm.swap_s(size, comm.group(of, ranks, stride), of)


def ring(size: Any, ranks: Any, stride: Any, of: Case = OF) -> Any:
    return comm.ring_s(size, comm.group(of, ranks, stride), of)


Collective = Callable[..., Any]
EACH = pytest.mark.parametrize("op", [gather, reduce, exchange, forward, swap, ring])


@EACH
@given(SIZES, st.sampled_from(POWERS))
@settings(max_examples=30, deadline=None)
def test_one_rank_has_nobody_to_talk_to(op: Collective, size: float, stride: int) -> None:
    assert np.all(np.asarray(op(size, 1.0, float(stride))) == 0)


@EACH
@given(SIZES, st.floats(1.0, 1e3), st.sampled_from(POWERS[1:]), st.sampled_from(POWERS[:4]))
@settings(max_examples=60, deadline=None)
def test_more_bytes_take_no_less(
    op: Collective, size: float, more: float, ranks: int, stride: int
) -> None:
    assert_never_less(op(size * more, float(ranks), stride), op(size, float(ranks), stride))


@EACH
@pytest.mark.parametrize("stride", [1.0, 4.0, 8.0])
def test_more_domains_take_no_less(op: Collective, stride: float) -> None:
    inside = 8 / stride
    times = [np.max(op(1e9, inside * n, stride)) for n in (1, 2, 4, 8, 64)]
    assert times == sorted(times)
    assert times[1] < times[-1]


@EACH
@pytest.mark.parametrize("ranks", [8.0, 64.0])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e9])
@pytest.mark.parametrize(
    "better",
    [
        {"intra_bytes_per_s": 2.0},
        {"inter_bytes_per_s": 2.0},
        {"intra_latency_s": 0.1},
        {"inter_latency_s": 0.1},
    ],
    ids=lambda b: next(iter(b)),
)
def test_a_better_network_is_never_slower(
    op: Collective, ranks: float, size: float, better: dict[str, float]
) -> None:
    for stride in (1.0, 2.0, 8.0):
        slow = op(size, ranks, stride)
        assert_never_less(slow, op(size, ranks, stride, with_machine(OF, **better)))


def test_an_all_reduce_moves_twice_what_an_all_gather_does() -> None:
    for ranks, stride in ((64.0, 1.0), (8.0, 8.0)):
        ratio = reduce(1e12, ranks, stride) / gather(1e12, ranks, stride)
        np.testing.assert_allclose(ratio, 2.0, rtol=1e-3)


def test_no_collective_beats_its_link() -> None:
    """A rank receives all but its own part of an all-gather through its link."""
    size = np.array([1e8, 1e9, 1e10])
    for ranks in (2.0, 8.0):
        assert_never_less(
            gather(size, ranks, 1.0), size * (ranks - 1) / ranks / OF.machine.intra_bytes_per_s
        )
    for stride in (1.0, 2.0, 4.0, 8.0):
        fastest = np.minimum(
            OF.machine.inter_bytes_per_s * 8 / stride, OF.machine.intra_bytes_per_s
        )
        assert_never_less(gather(size, 64.0, stride), size * 63 / 64 / fastest)


# ---- groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_a_group_stays_inside_its_domain_when_it_fits(ranks: int, stride: int) -> None:
    group = comm.group(OF, float(ranks), float(stride))
    assert bool(np.all(group.crosses == (ranks * stride > 8)))


@pytest.mark.parametrize(("stride", "adapters"), [(1, 8), (2, 4), (4, 2), (8, 1), (16, 1), (64, 1)])
def test_a_strided_group_leaves_through_its_members_adapters(stride: int, adapters: int) -> None:
    """Members behind the same fast links each bring their own network adapter, no more."""
    group = comm.group(OF, 64.0, float(stride))
    inter = comm.inter_bytes_per_s(OF) * adapters
    intra = OF.machine.intra_bytes_per_s * OF.constants.intra_bandwidth
    np.testing.assert_allclose(group.bandwidth_bytes_per_s, np.minimum(inter, intra))
    assert np.all(group.crosses == 1)


def test_two_far_ranks_use_two_adapters_only() -> None:
    near, far = comm.group(OF, 2.0, 1.0), comm.group(OF, 2.0, 8.0)
    assert np.all(far.bandwidth_bytes_per_s == comm.inter_bytes_per_s(OF))
    assert np.all(near.bandwidth_bytes_per_s > far.bandwidth_bytes_per_s)


def test_latency_grows_with_the_ring() -> None:
    latency = [float(np.max(comm.group(OF, float(n), 1.0).latency_s)) for n in POWERS]
    assert latency[0] == 0
    assert latency == sorted(latency)
    assert latency[-1] > latency[3]


@pytest.mark.parametrize("stride", [1.0, 8.0])
def test_a_tree_is_as_deep_as_the_logarithm_of_the_domains(stride: float) -> None:
    slow = replace(OF, constants=replace(OF.constants, hop_latency_s=1.0))
    groups = [comm.group(slow, n * 8 / stride, stride) for n in (1.0, 2.0, 4.0, 32.0)]
    depths = [float(np.ravel(g.tree_latency_s)[0]) for g in groups]
    assert depths == pytest.approx([0.0, 2.0, 4.0, 10.0], abs=0.02)


def test_a_tree_inside_a_domain_is_its_ring_and_outside_no_slower() -> None:
    for n in POWERS:
        found = comm.group(OF, float(n), 1.0)
        assert np.all(np.asarray(found.tree_latency_s) <= np.asarray(found.latency_s) + 1e-12)
    inside = comm.group(OF, 8.0, 1.0)
    assert np.ravel(inside.tree_latency_s) == pytest.approx(np.ravel(inside.latency_s))


def test_a_measured_fabric_is_taken_at_its_word() -> None:
    assert comm.inter_bytes_per_s(OF) < OF.machine.inter_bytes_per_s
    measured = replace(OF, machine=replace(OF.machine, inter_is_measured=1.0))
    assert comm.inter_bytes_per_s(measured) == OF.machine.inter_bytes_per_s


@pytest.mark.parametrize(
    ("text", "tp", "cp", "dp", "ep", "expert_dp"),
    [
        ("tp8 pp2 mbs1", (8, 0), (1, 0), (4, 1), (1, 0), (32, 1)),
        ("tp2 cp4 mbs1", (2, 0), (4, 0), (32, 1), (1, 0), (64, 1)),
        ("tp4 cp4 mbs1", (4, 0), (4, 1), (16, 1), (1, 0), (64, 1)),
        ("tp1 ep8 mbs1", (1, 0), (1, 0), (64, 1), (8, 0), (8, 1)),
        ("tp4 ep4 etp4 mbs1", (4, 0), (1, 0), (16, 1), (4, 1), (4, 1)),
        ("tp1 pp8 ep8 mbs1", (1, 0), (1, 0), (8, 0), (8, 0), (1, 0)),
    ],
)
def test_groups_of_a_layout(
    text: str,
    tp: tuple[int, int],
    cp: tuple[int, int],
    dp: tuple[int, int],
    ep: tuple[int, int],
    expert_dp: tuple[int, int],
) -> None:
    """Ranks of each group and whether it leaves the domain of 8."""
    of = case([text], model=MOE)
    names = ("tp_group", "cp_group", "dp_group", "ep_group", "expert_dp_group")
    for name, (ranks, crosses) in zip(names, (tp, cp, dp, ep, expert_dp), strict=True):
        group = getattr(comm, name)(of)
        found = (float(np.max(group.ranks)), float(np.max(group.crosses)))
        assert found == (ranks, crosses), name


def test_dense_and_expert_groups_cover_the_job() -> None:
    of = case(["tp4 ep4 etp1 mbs1", "tp2 cp2 ep8 mbs1", "tp1 pp4 ep16 mbs1"], model=MOE)
    k = of.knobs
    dense = comm.dp_group(of).ranks * k.tp * k.pp
    expert = comm.expert_dp_group(of).ranks * k.ep * k.etp * k.pp
    assert dense.tolist() == expert.tolist() == [NUM_GPUS] * 3


# ---- pipeline transfers and token exchange -------------------------------------------------------


def test_a_transfer_needs_a_pipeline() -> None:
    of = case(["tp8 pp1 mbs1", "tp8 pp8 mbs1", "tp1 pp64 mbs1"])
    seconds = comm.point_to_point_s(1e8, of)
    assert seconds[0] == 0
    assert np.all(seconds[1:] > 0)
    assert np.all(comm.point_to_point_s(2e8, of)[1:] > seconds[1:])


@pytest.mark.parametrize("label", ["tp1 pp64", "tp4 pp16", "tp8 pp8", "tp1 pp2"])
def test_a_pipeline_over_several_nodes_keeps_the_pace_of_the_hop_between_them(label: str) -> None:
    of = case([f"{label} mbs1"])
    faster = with_machine(of, inter_bytes_per_s=2.0)
    assert comm.point_to_point_s(1e9, faster) < 0.6 * comm.point_to_point_s(1e9, of)
    one_node = with_machine(of, domain_gpus=NUM_GPUS / 8)
    near = comm.point_to_point_s(1e9, one_node)
    assert near < comm.point_to_point_s(1e9, of)
    assert comm.point_to_point_s(1e9, with_machine(one_node, inter_bytes_per_s=2.0)) == near


def routed(of: Case, copies: float) -> Case:
    """The case with so many experts a token."""
    return replace(of, model=replace(of.model, K=copies))


def test_forwarded_tokens_cross_the_fabric_once_a_domain() -> None:
    """One copy a token costs the fabric more than its share of two that go the same way."""
    group = comm.group(FORWARDING, 16.0, 1.0)
    one, two = (comm.tokens_s(1e9 * n, group, routed(FORWARDING, n)) for n in (1.0, 2.0))
    assert np.all(two < 2 * one)
    assert np.all(two >= one)


def test_without_forwarding_every_remote_copy_crosses_the_fabric() -> None:
    """Eight experts a token, two nodes: four copies leave where one does when it is forwarded."""
    group = comm.group(OF, 16.0, 1.0)
    every = comm.tokens_s(8e9, group, routed(OF, 8.0)) - group.latency_s
    once = comm.tokens_s(8e9, group, routed(FORWARDING, 8.0)) - group.latency_s
    np.testing.assert_allclose(every, 8e9 / 2 / comm.inter_bytes_per_s(OF))
    sent = 1e9 * (1 - (1 / 2) ** 8)
    np.testing.assert_allclose(once, sent / (comm.FORWARDED_FAR * OF.machine.inter_bytes_per_s))


def test_a_rank_is_sent_a_token_once_for_all_its_experts() -> None:
    """Inside a node: 4 of 8 experts on one of two ranks are one copy, or four."""
    group = comm.group(OF, 2.0, 1.0)
    every = comm.tokens_s(8e9, group, routed(OF, 8.0)) - group.latency_s
    once = comm.tokens_s(8e9, group, routed(FORWARDING, 8.0)) - group.latency_s
    link = OF.machine.intra_bytes_per_s
    np.testing.assert_allclose(every, 4e9 / (link * OF.constants.intra_bandwidth))
    np.testing.assert_allclose(once, 1e9 * (1 - (1 / 2) ** 8) / (link * comm.FORWARDED_NEAR))


@pytest.mark.parametrize("places", [2, 4, 8, 16, 32])
@pytest.mark.parametrize(
    ("groups", "chosen", "copies"), [(0, 0, 8), (8, 4, 8), (8, 3, 6), (4, 1, 2)]
)
def test_places_of_a_token_are_those_of_drawn_experts(
    groups: int, chosen: int, copies: int, places: int
) -> None:
    """Experts drawn of random groups, as a balanced router chooses them."""
    experts, rng = 256, random.Random(groups + places)
    reached = 0
    for _ in range(4000):
        of = rng.sample(range(groups or 1), chosen or 1)
        size = experts // (groups or 1)
        pool = [e for g in of for e in range(g * size, (g + 1) * size)]
        reached += len({e * places // experts for e in rng.sample(pool, copies)})
    shape = replace(MOE.shape(SEQ), K=float(copies), G=float(groups), G_k=float(chosen))
    found = comm.others_reached(shape, float(places))
    assert found == pytest.approx(reached / 4000 * (1 - 1 / places), rel=0.06)


def test_exchange_between_domains_is_slower_than_inside() -> None:
    inside, across = exchange(1e9, 8.0, 1.0), exchange(1e9, 16.0, 1.0)
    assert np.all(across > 2 * np.asarray(inside))


def test_an_exchange_of_ranks_that_lie_apart_leaves_the_domain() -> None:
    """Two neighbours share fast links; two ranks a domain apart share none."""
    near, far = exchange(1e9, 2.0, 1.0), exchange(1e9, 2.0, 8.0)
    half = 1e9 / 2
    assert np.all(far > np.asarray(near))
    np.testing.assert_allclose(
        np.asarray(far) - comm.group(OF, 2.0, 8.0).latency_s, half / comm.inter_bytes_per_s(OF)
    )


def test_experts_split_in_four_exchange_across_nodes() -> None:
    of = case(["tp4 ep4 etp1 mbs1", "tp4 ep4 etp4 mbs1"], model=MOE)
    whole, split = comm.tokens_s(1e9, comm.ep_group(of), of)
    assert split > 2 * whole


# ---- links from GPU to GPU -----------------------------------------------------------------------


def pairwise(of: Case) -> Case:
    return replace(of, machine=replace(of.machine, pairwise=1.0))


@pytest.mark.parametrize("members", [2, 4, 8])
def test_a_group_has_only_the_links_to_its_members(members: int) -> None:
    """Seven links lead to seven others: a pair shares one of them, all eight share all."""
    switched = float(comm.near_bytes_per_s(OF, float(members)))
    direct = float(comm.near_bytes_per_s(pairwise(OF), float(members)))
    assert direct == pytest.approx(switched * (members - 1) / 7)


def test_few_ranks_without_switches_wait_for_few_links() -> None:
    direct, size = pairwise(OF), 1e9
    for op in (gather, reduce, exchange, forward, swap):
        pair, whole = (np.asarray(op(size, n, 1.0, direct)) for n in (2.0, 8.0))
        assert np.all(pair > 4 * np.asarray(op(size, 2.0, 1.0)))
        np.testing.assert_allclose(whole, op(size, 8.0, 1.0))
    assert np.all(np.asarray(ring(size, 8.0, 1.0, direct)) > 4 * np.asarray(ring(size, 8.0, 1.0)))
    near = with_machine(case(["tp1 pp64 mbs1"]), domain_gpus=NUM_GPUS / 8)
    assert comm.point_to_point_s(1e9, pairwise(near)) > 4 * comm.point_to_point_s(1e9, near)


def test_between_domains_the_fabric_still_decides() -> None:
    np.testing.assert_allclose(gather(1e9, 64.0, 1.0, pairwise(OF)), gather(1e9, 64.0, 1.0))


def test_rows_do_not_know_each_other() -> None:
    of = case([f"tp{n} mbs1" for n in (1, 2, 4, 8, 16)])
    columns = comm.all_reduce_s(1e8, comm.tp_group(of), of)
    for row in range(5):
        one = with_knobs(of, tp=of.knobs.tp[row])
        assert np.all(comm.all_reduce_s(1e8, comm.tp_group(one), one) == columns[row])


@pytest.mark.parametrize("stride", [1.0, 64.0])
def test_more_ranks_wait_longer_for_the_slowest_and_one_for_nobody(stride: float) -> None:
    waits = [comm.group(OF, n, stride).latency_s for n in (1.0, 2.0, 8.0, 64.0)]
    assert np.all(waits[0] == 0)
    for fewer, more in itertools.pairwise(waits):
        assert_never_less(more, fewer)
    assert comm.waited(8.0) == 1
