"""Context parallelism: pieces, copies, and a ring that attention hides only while it is longer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import DENSE, SEQ, assert_never_less, case, with_constants

from autoparallel.cost import communication as comm
from autoparallel.cost.case import Case
from autoparallel.cost.compute import attention_core_s, dense_layer
from autoparallel.cost.context import (
    PARTIAL_BYTES,
    keys_and_values,
    more_steps,
    rearranged_s,
    ring_ranks,
)
from autoparallel.cost.layer import cp_s, layer_time

WORDS = {
    "p2p": "",
    "all_gather": "cpcomm=all_gather",
    "a2a": "cpcomm=a2a",
    "both": "cpcomm=a2a+p2p",
}
SIZES = (2, 4, 8, 16)


def sizes(kind: str = "p2p", *, tp: int = 1, seq: int = 16384) -> Case:
    """The sizes of a context-parallel group, one a row; it leaves the domain beyond 8 / tp."""
    return case([f"tp{tp} cp{n} mbs1 zero1 {WORDS[kind]}" for n in SIZES], seq=seq)


def alone(seq: int) -> Case:
    return case(["tp1 mbs1 zero1"], seq=seq)


@pytest.mark.parametrize(
    ("kind", "ring", "more"),
    [
        ("p2p", [2, 4, 8, 16], [1, 3, 7, 15]),
        ("all_gather", [1, 1, 1, 1], [1, 1, 1, 1]),
        ("a2a", [1, 1, 1, 1], [1, 1, 1, 1]),
        ("both", [1, 1, 1, 2], [1, 1, 1, 2]),
    ],
)
def test_a_ring_has_a_step_a_rank(kind: str, ring: list[int], more: list[int]) -> None:
    of = sizes(kind)
    assert ring_ranks(of).tolist() == ring
    assert more_steps(of).tolist() == more


def test_one_rank_has_nothing_to_rearrange() -> None:
    of = alone(SEQ)
    assert np.all(np.asarray(rearranged_s(of)) == 0)
    assert np.all(np.asarray(more_steps(of)) == 0)
    assert np.all(np.asarray(ring_ranks(of)) == 1)


def test_a_longer_ring_adds_up_no_less_on_every_rank() -> None:
    """As many partial results of fewer tokens each: the same bytes, of ever less work."""
    of = sizes()
    forward, backward = rearranged_s(of)
    elements = SEQ * 8 * DENSE.num_attention_heads * DENSE.kv_channels
    rate = of.machine.memory_bandwidth_bytes_per_s / of.constants.memory_traffic
    np.testing.assert_allclose(forward, PARTIAL_BYTES * elements / rate)
    np.testing.assert_allclose(backward, backward[0])
    share = forward / dense_layer(of).forward_s
    assert np.all(np.diff(share) > 0)


@pytest.mark.parametrize("kind", ["a2a", "p2p"])
def test_tensor_parallel_ranks_share_the_copies(kind: str) -> None:
    one, four = (np.asarray(rearranged_s(sizes(kind, tp=tp))) for tp in (1, 4))
    np.testing.assert_allclose(one, 4 * four)


def test_swapped_sequences_are_copied_ever_less() -> None:
    forward, backward = rearranged_s(sizes("a2a"))
    np.testing.assert_allclose(forward, forward[0] * 2 / np.array(SIZES))
    np.testing.assert_allclose(forward, backward)


def test_a_piece_is_as_efficient_as_a_sequence_of_its_length() -> None:
    """Eight ranks share the 64 times longer attention of an 8 times longer sequence."""
    of = case(["tp1 cp8 mbs1 zero1"], seq=16384)
    short = attention_core_s(alone(2048))[0]
    np.testing.assert_allclose(attention_core_s(of)[0] - rearranged_s(of)[0], 8 * short)
    swapped = case(["tp1 cp8 mbs1 zero1 cpcomm=a2a"], seq=16384)
    assert np.all(attention_core_s(swapped)[0] - rearranged_s(swapped)[0] < 8 * short)


# ---- the ring on the wire ------------------------------------------------------------------------


def test_a_ring_across_domains_has_one_adapter() -> None:
    """A collective leaves through its members' adapters, a ring through its last member's."""
    of, size = alone(SEQ), 1e9
    one_each, together = (comm.group(of, 16.0, stride) for stride in (8.0, 1.0))
    hop = comm.POINT_TO_POINT_LATENCY_S + size / 16 / comm.inter_bytes_per_s(of)
    for group in (one_each, together):
        assert comm.ring_s(size, group, of) > 15 * hop
        assert comm.ring_s(size, group, of) == comm.ring_s(size, one_each, of)
    far = comm.all_gather_s(size, together, of)
    assert 6 * far < comm.ring_s(size, together, of) < 9 * far


def test_a_ring_or_a_swap_inside_a_domain_takes_its_measured_time() -> None:
    of = alone(SEQ)
    near = comm.group(of, 8.0, 1.0)
    assert comm.ring_s(1e8, near, of) == comm.measured_s("all_gather", 1e8, near, of)
    assert comm.swap_s(1e8, near, of) == comm.measured_s("all_to_all", 1e8, near, of)


def ring_and_shown(seq: int, share: float) -> tuple[float, float]:
    """One pass of the ring of 16 ranks on two nodes, and what shows of its three."""
    of = with_constants(case(["tp1 cp16 mbs1 zero1"], seq=seq), cp_exposed=share)
    once = comm.ring_s(2 * keys_and_values(of), comm.cp_group(of), of)
    return float(once[0]), float(cp_s(of)[0])


def test_attention_hides_a_ring_as_far_as_it_takes_longer() -> None:
    """Attention grows with the square of the sequence, keys and values grow with it."""
    shares = [
        shown / (3 * once) for once, shown in map(ring_and_shown, (4096, 1048576), (0.0, 0.0))
    ]
    assert shares[0] > 0.7
    assert shares[1] < 0.01
    once, shown = ring_and_shown(1048576, 0.2)
    assert shown == pytest.approx(0.2 * 3 * once, rel=0.05)
    assert ring_and_shown(4096, 1.0)[1] == pytest.approx(3 * ring_and_shown(4096, 1.0)[0])


@pytest.mark.parametrize("recompute", ["core_attn", "full"])
def test_repeated_attention_repeats_its_traffic(recompute: str) -> None:
    texts = [f"tp1 cp16 mbs1 zero1 {w}" for w in ("", f"recompute={recompute}")]
    plain, again = cp_s(with_constants(case(texts, seq=4096), cp_exposed=1.0))
    assert again == pytest.approx(4 / 3 * plain)


def test_a_longer_ring_keeps_the_host_longer() -> None:
    """Every step is launched anew: a layer that is bound by the host takes longer with each."""
    of = with_constants(sizes(seq=2048), launch_s_per_layer=0.05)
    layer = layer_time(of)
    assert np.all(np.diff(layer.total_s) > 0.01)
    swapped = layer_time(replace(with_constants(sizes("a2a", seq=2048), launch_s_per_layer=0.05)))
    assert_never_less(layer.total_s, swapped.total_s)
