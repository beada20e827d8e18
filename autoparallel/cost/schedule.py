"""How long a pipeline takes, in closed form: one formula for one layout or a million.

Letters: p ranks, v chunks a rank, m micro-batches, N micro-batch group, F forward, B backward,
W weight gradient, c one transfer.

The idea: the first rank, a middle rank or the last rank is the slowest. Each gives a path through
the step: reach it, let it run its m micro-batches, wait where the ranks after it make it wait (once
filling, once draining), leave. The longest of the three is the step. Balanced stages give the
textbook bubbles: (p-1)(F+B) for 1F1B, divided by v for interleaved (both arXiv 2104.04473) and
breadth-first (arXiv 2211.05953), (p-1)(F+B-W) and max(0, (p-1)(F+B-2W)) for zero-bubble with B the
input gradient alone (arXiv 2401.10241 section 2). `simulator.py` is the exact model that these are
tested against.

Ignored: differences between middle ranks, and jitter.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoparallel.layout import SCHEDULES
from autoparallel.units import Num

_1F1B, _INTERLEAVED, _BFS, _ZB1P, _ZB2P = (
    SCHEDULES.index(name) for name in ("1f1b", "interleaved", "bfs", "zb1p", "zb2p")
)


ROWS = 8192
"""Rows worked on at a time: the dozens of columns that a formula makes stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stages:
    """A pipeline's shape and the times of its parts, each scalar or [N].

    Times are for one micro-batch on one virtual stage. `backward_s` is the input gradient with its
    recomputation, `weight_s` the weight gradient, which only zero-bubble schedules run apart. The
    `first_extra_*` (embedding) and `last_extra_*` (logits and loss) come on top on the first and
    last virtual stage and are negative where it has fewer layers. `group` 0 is pp. `schedule` is an
    index into `layout.SCHEDULES`. `p2p_s` is one transfer of one micro-batch to a neighbour,
    `p2p_overlapped` the fraction of it that runs beside the work of both ranks, from 0 (sender and
    receiver meet and wait) to 1; zero-bubble runtimes never make a sender wait and ignore it.
    """

    pp: Num
    vpp: Num
    micro_batches: Num
    group: Num
    schedule: Num
    forward_s: Num
    backward_s: Num
    weight_s: Num
    first_extra_forward_s: Num = 0.0
    first_extra_backward_s: Num = 0.0
    last_extra_forward_s: Num = 0.0
    last_extra_backward_s: Num = 0.0
    p2p_s: Num = 0.0
    p2p_overlapped: Num = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PipelineTime:
    """What a pipeline adds to a step, in parts, each scalar or [N].

    `busy_s`: the work of the slowest rank, m micro-batches on all its chunks. `bubble_s`: what the
    step takes beyond it with free transfers (fill, drain, waits of and for the slowest rank).
    `p2p_s`: what transfers add to that.
    """

    busy_s: Num
    bubble_s: Num
    p2p_s: Num

    @property
    def total_s(self) -> Num:
        """Sum of the parts."""
        return self.busy_s + self.bubble_s + self.p2p_s


def pipeline_time(stages: Stages) -> PipelineTime:
    """Time of one step's pipeline; one rank gives m (F + B + W) and no more."""
    codes = np.unique(stages.schedule)
    size = max(np.size(getattr(stages, f.name)) for f in fields(stages))
    if codes.size == 1 and size <= ROWS:
        return _family_time(stages, int(codes[0]))
    parts = np.empty((3, size))
    for code in codes:
        own = np.flatnonzero(np.broadcast_to(stages.schedule == code, size))
        for start in range(0, len(own), ROWS):
            rows = own[start : start + ROWS]
            time = _family_time(_take(stages, rows), int(code))
            for part, value in zip(parts, (time.busy_s, time.bubble_s, time.p2p_s), strict=True):
                part[rows] = value
    return PipelineTime(busy_s=parts[0], bubble_s=parts[1], p2p_s=parts[2])


def in_flight(
    pp: Num, vpp: Num, micro_batches: Num, group: Num, schedule: Num, stage_position: Num
) -> Num:
    """Peak number of chunk activations alive on rank `stage_position` (0 first, pp - 1 last).

    In units of one micro-batch on one chunk, each alive from its forward until its last gradient.
    1F1B: arXiv 2104.04473 section 2.2; interleaved: warm-up of `get_pp_rank_microbatches` in
    Megatron-Core 0.16.1; zero-bubble: arXiv 2401.10241 section 2, which gives rank i (p - i) M_B +
    i M_W for ZB-H1 and (2p - 2i - 1) M_B + 2i M_W for ZB-H2. What waits for its weight gradient
    alone, M_W, is counted as a whole one here (32 to 34 without attention scores, table 1 there).
    """
    m, after = micro_batches, pp - stage_position - 1
    n = np.where(group > 0, group, pp)
    codes = [schedule == code for code in (_1F1B, _INTERLEAVED, _BFS, _ZB1P)]
    ahead = np.select(codes, [after + 1, 2 * after + (vpp - 1) * n + 1, m * vpp, pp], 2 * pp - 1)
    alive: Num = np.minimum(m * vpp, ahead)
    return alive


class _Rank(NamedTuple):
    """A rank that may be the slowest: its work on one micro-batch, and its surroundings."""

    before: Num  # ranks before it
    after: Num  # ranks after it
    forward: Num  # all its chunks
    backward: Num
    weight: Num
    up_forward: Num  # one chunk on every rank before it
    up_backward: Num
    down_forward: Num  # one chunk on every rank after it
    down_backward: Num

    @property
    def work(self) -> Num:
        return self.forward + self.backward + self.weight


def _family_time(x: Stages, code: int) -> PipelineTime:
    """`pipeline_time` for rows of one schedule."""
    one_chunk = partial(_one_chunk, plain=code == _1F1B, slides=code == _ZB2P)
    span = {_INTERLEAVED: _interleaved, _BFS: _breadth_first}.get(code, one_chunk)
    ranks = _ranks(x, code in (_ZB1P, _ZB2P))
    busy = x.micro_batches * _longest([rank.work for rank in ranks])
    plain = span(x, ranks, 0.0, 0.0)
    hop = x.p2p_s * _flag(x.pp > 1)
    met = hop * (1 - x.p2p_overlapped) * (code not in (_ZB1P, _ZB2P))
    return PipelineTime(busy_s=busy, bubble_s=plain - busy, p2p_s=span(x, ranks, hop, met) - plain)


def _take(x: Stages, rows: NDArray[np.intp]) -> Stages:
    """The chosen rows; scalars stay scalars."""
    values = {f.name: getattr(x, f.name) for f in fields(x)}
    return Stages(**{name: v[rows] if np.ndim(v) else v for name, v in values.items()})


def _flag(condition: bool | NDArray[np.bool_]) -> Num:
    """1 where true, 0 elsewhere."""
    return np.asarray(condition, dtype=np.float64)[()]


def _longest(values: list[Num]) -> Num:
    first, middle, last = values
    longest: Num = np.maximum(np.maximum(first, middle), last)
    return longest


def _positive(value: Num) -> Num:
    positive: Num = np.maximum(0.0, value)
    return positive


def _ranks(x: Stages, split: bool) -> list[_Rank]:
    """The first, a middle and the last rank. Two ranks have no middle, one is first and last."""
    f, b = x.forward_s, x.backward_s + (0.0 if split else x.weight_s)
    weight = x.vpp * x.weight_s if split else 0.0
    f0, b0 = x.first_extra_forward_s, x.first_extra_backward_s
    f1, b1 = x.last_extra_forward_s, x.last_extra_backward_s
    p, alone, inner = x.pp, _flag(x.pp == 1), _flag(x.pp > 2)

    def rank(before: Num, after: Num, is_first: Num, is_last: Num) -> _Rank:
        return _Rank(
            before=before,
            after=after,
            forward=x.vpp * f + is_first * f0 + is_last * f1,
            backward=x.vpp * b + is_first * b0 + is_last * b1,
            weight=weight,
            up_forward=before * f + (1 - is_first) * f0,
            up_backward=before * b + (1 - is_first) * b0,
            down_forward=after * f + (1 - is_last) * f1,
            down_backward=after * b + (1 - is_last) * b1,
        )

    return [
        rank(0.0, p - 1, 1.0, alone),
        rank(p - 1 - inner, inner, alone, 1 - inner),
        rank(p - 1, 0.0, alone, 1.0),
    ]


def _one_chunk(x: Stages, ranks: list[_Rank], c: Num, met: Num, plain: bool, slides: bool) -> Num:
    """1F1B and zero-bubble: reach the rank, m micro-batches with their stalls, the waits, leave.

    Waits: its first backward needs all ranks after it, and so does its last, while it has `ahead`
    forwards (then backwards) of its own to do. Stalls: transfers of every micro-batch, either met,
    or because the micro-batches in flight (p, or 2p - 1) do not cover a whole turn down and up:
    then the step is a path of such turns, each of fewer ranks when fewer micro-batches are left.

    Args:
        x: The stages.
        ranks: The three ranks of `_ranks`.
        c: Time of a transfer.
        met: The part of `c` that sender and receiver wait for.
        plain: Whether the schedule is 1F1B.
        slides: Whether it is ZB-H2, whose ranks start the next step before the slowest is done.
    """
    m, p, first = x.micro_batches, x.pp, ranks[0]
    cover, again = p + slides * (p - 1), m - 1
    whole = first.work + first.down_forward + first.down_backward
    hops = c * (2 - slides) * (again - np.ceil(again / cover))
    paths = []
    for r in ranks:
        ahead, back = r.after * (1 + slides), r.backward + r.weight
        down = r.down_forward + r.down_backward + c * (2 - plain) * r.after
        many = _positive(down - ahead * r.forward) + _positive(down - ahead * back)
        few = _positive(down - again * np.minimum(r.forward, back))
        waits = np.where(m > ahead, many, few)
        reach = r.up_forward + c * r.before
        left = np.minimum(again, r.before * (1 + slides)) * r.weight
        leave = r.up_backward + c * r.before - left
        around = np.maximum(leave, -slides * reach) + reach
        around = np.maximum(around, reach * (1 - slides))
        meets = met * (_flag(r.before > 0) + _flag(r.after > 0))
        late = again * (whole / cover - r.work) + hops
        stalls = np.maximum(again * meets, np.minimum(late, hops))
        paths.append(around + m * r.work + waits + _positive(stalls))
    return _longest(paths)


def _interleaved(x: Stages, ranks: list[_Rank], c: Num, met: Num) -> Num:
    """Interleaved 1F1B: as 1F1B with one chunk to reach and leave, and twice the forwards ahead.

    A chunk's micro-batches come back after a ring of p ranks, so a group of N must cover it, in the
    fill with forwards, in the drain with backwards. Where ranks meet after every turn, the extras
    of the first and of the last rank fall in different turns and everybody waits for both.
    """
    m, p, v, several = x.micro_batches, x.pp, x.vpp, _flag(x.pp > 1)
    n = np.minimum(m, np.where(x.group > 0, x.group, p))
    last = m - n * (np.ceil(m / n) - 1)
    f, b = x.forward_s, x.backward_s + x.weight_s
    paths = []
    for r in ranks:
        forward, backward = r.forward / v, r.backward / v
        down = r.down_forward + r.down_backward + c * r.after
        waits = _positive(down - 2 * r.after * forward) + _positive(down - 2 * r.after * backward)
        fill = _positive(p * (f + c) - n * (forward + met))
        drain = _positive(p * (b + c) - last * (backward + met))
        stall = m * v * _positive(c - met - np.minimum(forward, backward))
        around = r.up_forward + r.up_backward + 2 * c * r.before
        paths.append(around + m * r.work + waits + ((v - 1) * (fill + drain) + stall) * several)
    in_turn = (m * v + p - 1) * (f + b) + m * (_extras(x, 0) + _extras(x, 1)) + 2 * c * (p - 1)
    meets = several * _flag(met > 0)
    turns = np.minimum(m * v + (v - 1) * n, 2 * m * v) - 1
    return np.maximum(_longest(paths), in_turn * meets) + met * turns


def _breadth_first(x: Stages, ranks: list[_Rank], c: Num, met: Num) -> Num:
    """All forwards, then all backwards: twice a flow of m v pieces through p ranks, chunk by chunk.

    With several chunks the first and the last rank may each set the pace, one after the other.
    """
    m, p, v, several = x.micro_batches, x.pp, x.vpp, _flag(x.pp > 1)
    flows = []
    for way, one in enumerate((x.forward_s, x.backward_s + x.weight_s)):
        paths = []
        for r in ranks:
            own = (r.forward, r.backward)[way]
            around = (r.up_forward + r.down_forward, r.up_backward + r.down_backward)[way]
            ring = _positive(p * (one + c) - m * (own / v + met)) * several
            paths.append(around + m * own + (v - 1) * ring)
        in_turn = (v * m + p - 1) * one + m * _extras(x, way)
        flows.append(np.maximum(_longest(paths), in_turn * _flag(v > 1) * several))
    return flows[0] + flows[1] + 2 * c * (p - 1) + 2 * met * (m * v - 1)


def _extras(x: Stages, way: int) -> Num:
    """What first and last virtual stage add when each is the slowest in its turn."""
    first = (x.first_extra_forward_s, x.first_extra_backward_s)[way]
    last = (x.last_extra_forward_s, x.last_extra_backward_s)[way]
    return _positive(first) + _positive(last)
