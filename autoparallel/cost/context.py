"""Context parallelism: the attention of one sequence over several ranks.

Under `p2p` every rank keeps its queries, keys and values go round a ring, a rank attends to one
piece a step and adds the partial results up. Under `a2a+p2p` only domains form the ring.
`all_gather` brings all keys and values to a rank, `a2a` whole sequences of a share of the heads.
Steps, copies and messages as Transformer Engine has them
(`attention/dot_product_attention/context_parallel.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoparallel.cost.case import Case
from autoparallel.units import Num

PARTIAL_BYTES = 6.0
"""Traffic of an element of a partial result, 16 bit: read, and added to a sum, read and written."""
SWAP_BYTES = 8.0
"""Traffic of an element whose sequence is swapped for heads, or back: copied into the order of the
ranks before the message and out of it after."""
GATHER_BYTES, SCATTER_BYTES = 4.0, 8.0
"""Traffic of an element of the gathered keys and values: put in order, forward; backward that again
and their gradients."""
STEP_LAUNCH = 0.25
"""Assumed: host time of one more step of the attention, forward and backward, in plain layers: two
attention calls, four messages, and seven to ten small kernels where a layer has some forty."""


def inside(case: Case) -> Num:
    """Context-parallel ranks behind the same fast links."""
    k = case.knobs
    return np.clip(np.floor(case.machine.domain_gpus / k.tp), 1.0, k.cp)


def by_type(case: Case, values: Sequence[Num]) -> Num:
    """The entry of `values` of every row's `cp_comm_type`; 0 without context parallelism."""
    k = case.knobs
    chosen = np.select([np.asarray(k.cp_comm) == i for i in range(len(values))], list(values))
    return np.where(np.asarray(k.cp) > 1, chosen, 0.0)


def ring_ranks(case: Case) -> Num:
    """Ranks of the ring that keys and values go round; 1 where there is none."""
    k = case.knobs
    if not np.any(k.cp > 1):
        return np.ones(np.shape(k.cp))
    return np.maximum(by_type(case, [k.cp, 1.0, 1.0, np.ceil(k.cp / inside(case))]), 1.0)


def more_steps(case: Case) -> Num:
    """Steps that attention takes beyond one.

    A ring has one a rank, gathered keys are met by two halves of the queries, and the copies and
    messages of a swap are as many launches as a step.
    """
    if not np.any(case.knobs.cp > 1):
        return np.zeros(np.shape(case.knobs.cp))
    ring = ring_ranks(case)
    return by_type(case, [ring - 1, 1.0, 1.0, ring])


def keys_and_values(case: Case) -> Num:
    """Elements of keys and values of a whole sequence on a tensor-parallel rank."""
    m, k = case.model, case.knobs
    return np.maximum(m.g / k.tp, 1.0) * (m.d_qk + m.d_v) * k.mbs * m.s


def swapped(case: Case) -> Num:
    """Elements of queries, keys, values and outputs on one rank."""
    m, k = case.model, case.knobs
    return (m.a + m.g) / k.tp * (m.d_qk + m.d_v) * k.mbs * m.s / k.cp


def rearranged_s(case: Case) -> tuple[Num, Num]:
    """Copies that attention makes of what it is sent, and the sums of a ring: (forward, backward).

    A rank has as many partial results of its tokens as the ring has ranks. Therefore a longer ring
    adds up no less on every rank, while the rest of a layer shrinks.
    """
    m, k = case.model, case.knobs
    if not np.any(k.cp > 1):
        return np.zeros(np.shape(k.cp)), np.zeros(np.shape(k.cp))
    ring = ring_ranks(case)
    partial = PARTIAL_BYTES * np.where(ring > 1, ring, 0.0) * k.mbs * m.s / k.cp / k.tp
    outputs, gradients = m.a * m.d_v, m.a * m.d_qk + m.g * (m.d_qk + m.d_v)
    swap, kv = SWAP_BYTES * swapped(case), keys_and_values(case)
    forward = [partial * outputs, GATHER_BYTES * kv, swap, swap + partial * outputs]
    backward = [partial * gradients, SCATTER_BYTES * kv, swap, swap + partial * gradients]
    rate = case.machine.memory_bandwidth_bytes_per_s / case.constants.memory_traffic
    return by_type(case, forward) / rate, by_type(case, backward) / rate
