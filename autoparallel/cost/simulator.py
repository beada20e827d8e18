"""One layout's pipeline, event by event: what each rank does, when, and what it holds meanwhile.

`rank_order` writes each rank's instruction list as the framework does; `simulate` runs the lists
against each other. Exact for the given times; `schedule.py` is the closed form for many layouts at
once, and the tests hold the two together.

Letters: p ranks, v chunks a rank, m micro-batches, N micro-batch group; virtual stage =
chunk * p + rank. Forward F, backward B (input gradient), weight gradient W; only zero-bubble
schedules run W on its own.

Sources: 1F1B and interleaved orders and how sends and receives pair up: NVIDIA/Megatron-LM
megatron/core/pipeline_parallel/schedules.py (core 0.16.1), functions named below; breadth-first:
arXiv 2211.05953 section 4; zero-bubble ZB-H1 (`zb1p`) and ZB-H2 (`zb2p`): arXiv 2401.10241
section 2, the handcrafted orders (the automatic scheduler of the same paper may do a bit better).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autoparallel.cost.schedule import Stages
from autoparallel.errors import bad_value, nearest
from autoparallel.layout import SCHEDULES


class Instruction(NamedTuple):
    """One piece of work in a rank's order: `kind` is "F", "B" or "W"."""

    kind: str
    micro_batch: int
    chunk: int


class Event(NamedTuple):
    """One piece of work as it ran."""

    start_s: float
    end_s: float
    kind: str
    micro_batch: int
    chunk: int


class Work(NamedTuple):
    """Time of one micro-batch on one virtual stage: forward, input gradient, weight gradient."""

    forward_s: float
    backward_s: float
    weight_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What happened: one list of events a rank, in order.

    `total_s` is the time the pipeline adds to a step: first start to last end, except for `zb2p`,
    where it is the longest single rank (with optimizer post-validation ranks enter the next step
    without waiting for each other, arXiv 2401.10241 section 4).
    """

    ranks: tuple[tuple[Event, ...], ...]
    total_s: float
    busy_s: tuple[float, ...]

    @property
    def idle_s(self) -> tuple[float, ...]:
        """Time each rank waits for others or for transfers."""
        return tuple(self.total_s - busy for busy in self.busy_s)


def simulate(
    work: Sequence[Work],
    *,
    pp: int,
    micro_batches: int,
    schedule: str = "1f1b",
    group: int = 0,
    p2p_s: float = 0.0,
    overlap: bool = False,
) -> Timeline:
    """Run one step of a pipeline.

    Args:
        work: One entry a virtual stage, in model order; vpp * pp entries.
        pp: Pipeline ranks.
        micro_batches: Micro-batches in the step.
        schedule: One of `layout.SCHEDULES`.
        group: Micro-batch group per virtual stage of `interleaved`; 0 is pp.
        p2p_s: Time of one transfer of one micro-batch to a neighbouring stage.
        overlap: True: a transfer runs beside the work of both ranks and only delays who needs it.
            False: sender and receiver meet and both wait for it. Zero-bubble runtimes never make a
            sender wait and ignore it.

    Raises:
        ConfigError: a count below 1, a schedule that does not take these chunks, or an order that
            cannot finish (a micro-batch group smaller than pp).
    """
    if group < 0 or p2p_s < 0:
        raise bad_value("group, p2p_s", (group, p2p_s), "must both be at least 0")
    vpp = _chunks(len(work), pp, micro_batches, schedule)
    size = group or pp
    orders = [rank_order(schedule, rank, pp, vpp, micro_batches, size) for rank in range(pp)]
    split = schedule in _DEFERRED
    times = work if split else [Work(f, b + w, 0.0) for f, b, w in work]
    if overlap or pp == 1 or not p2p_s or split:
        delay = p2p_s if pp > 1 else 0.0
        return _timeline(_run_beside(orders, times, pp, micro_batches, delay), schedule)
    if schedule in ("interleaved", "bfs"):
        warm_ups = [_warm_up(schedule, rank, pp, vpp, micro_batches, size) for rank in range(pp)]
        programs = _ring(orders, warm_ups, pp, vpp)
    else:
        programs = _paired(orders, pp)
    return _timeline(_run_meeting(programs, times, pp, p2p_s), schedule)


def simulate_stages(stages: Stages, *, overlap: bool = False) -> Timeline:
    """`simulate` for one scalar `Stages` record, the input of the closed form."""
    pp, vpp = int(stages.pp), int(stages.vpp)
    work = [Work(float(stages.forward_s), float(stages.backward_s), float(stages.weight_s))]
    work = work * (pp * vpp)
    f, b, w = work[0]
    work[0] = Work(
        f + float(stages.first_extra_forward_s), b + float(stages.first_extra_backward_s), w
    )
    f, b, w = work[-1]
    work[-1] = Work(
        f + float(stages.last_extra_forward_s), b + float(stages.last_extra_backward_s), w
    )
    return simulate(
        work,
        pp=pp,
        micro_batches=int(stages.micro_batches),
        schedule=SCHEDULES[int(stages.schedule)],
        group=int(stages.group),
        p2p_s=float(stages.p2p_s),
        overlap=overlap,
    )


def _chunks(virtual_stages: int, pp: int, micro_batches: int, schedule: str) -> int:
    """Chunks a rank, after checking the request."""
    if schedule not in SCHEDULES:
        raise bad_value("schedule", schedule, "is not a schedule", nearest(schedule, SCHEDULES))
    if micro_batches < 1 or pp < 1:
        raise bad_value("pp, micro_batches", (pp, micro_batches), "must both be at least 1")
    if virtual_stages < pp or virtual_stages % pp:
        rule = f"entries are not a positive multiple of pp {pp}"
        raise bad_value("work", virtual_stages, rule, "give vpp * pp entries")
    if virtual_stages > pp and schedule not in ("interleaved", "bfs"):
        rule = f"runs one chunk a rank, got {virtual_stages // pp}"
        raise bad_value("schedule", schedule, rule, "use interleaved or bfs")
    return virtual_stages // pp


# ---- orders --------------------------------------------------------------------------------------

_DEFERRED = {"zb1p": 1, "zb2p": 2}
"""Zero-bubble schedules: how many weight gradients rank r leaves for later, per r."""


def rank_order(
    schedule: str, rank: int, pp: int, vpp: int, micro_batches: int, group: int
) -> list[Instruction]:
    """What `rank` runs, in order."""
    if schedule in ("interleaved", "bfs"):
        table = schedule_table(micro_batches, vpp, micro_batches if schedule == "bfs" else group)
        return _table_order(table, vpp, _warm_up(schedule, rank, pp, vpp, micro_batches, group))
    ahead = pp - rank
    if schedule == "zb2p":
        ahead = 2 * ahead - 1
    deferred = _DEFERRED[schedule] * rank if schedule in _DEFERRED else None
    return _one_chunk_order(micro_batches, min(micro_batches, ahead), deferred)


def _warm_up(schedule: str, rank: int, pp: int, vpp: int, micro_batches: int, group: int) -> int:
    """Forwards before the first backward, `get_pp_rank_microbatches`; breadth-first runs all."""
    total = micro_batches * vpp
    return total if schedule == "bfs" else min(total, 2 * (pp - rank - 1) + (vpp - 1) * group)


def schedule_table(micro_batches: int, vpp: int, group: int) -> list[tuple[int, int]]:
    """(micro-batch, chunk) in forward order: groups of `group` micro-batches, chunk by chunk.

    The same as `get_schedule_table` of Megatron-Core; a last group may be smaller.
    """
    return [
        (k, chunk)
        for first in range(0, micro_batches, group)
        for chunk in range(vpp)
        for k in range(first, min(first + group, micro_batches))
    ]


def _table_order(table: list[tuple[int, int]], vpp: int, warm_up: int) -> list[Instruction]:
    """Warm-up forwards, one forward and one backward in turn, the backwards left over."""
    forwards = [Instruction("F", k, chunk) for k, chunk in table]
    backwards = [Instruction("B", k, vpp - 1 - chunk) for k, chunk in table]
    order = forwards[:warm_up]
    for pair in zip(forwards[warm_up:], backwards, strict=False):
        order += pair
    return order + backwards[len(table) - warm_up :]


def _one_chunk_order(micro_batches: int, ahead: int, deferred: int | None) -> list[Instruction]:
    """`ahead` forwards, then B [W] F in turn; W starts after `deferred` backwards (None: no W)."""
    order = [Instruction("F", k, 0) for k in range(ahead)]
    for k in range(micro_batches):
        order.append(Instruction("B", k, 0))
        if deferred is not None and k >= deferred:
            order.append(Instruction("W", k - deferred, 0))
        if k + ahead < micro_batches:
            order.append(Instruction("F", k + ahead, 0))
    if deferred is not None:
        left = range(max(0, micro_batches - deferred), micro_batches)
        order += [Instruction("W", k, 0) for k in left]
    return order


# ---- transfers that both ranks wait for ----------------------------------------------------------

_Transfer = tuple[str, int, int]
"""(direction "F" or "B", micro-batch, virtual stage that receives)."""
_Program = list[Instruction | list[_Transfer]]
"""A rank's order with the transfers it waits for; one list is one batched call."""


def _sent(item: Instruction, rank: int, pp: int, vpp: int) -> list[_Transfer]:
    stage = item.chunk * pp + rank
    if item.kind == "F" and stage + 1 < pp * vpp:
        return [("F", item.micro_batch, stage + 1)]
    if item.kind == "B" and stage > 0:
        return [("B", item.micro_batch, stage - 1)]
    return []


def _received(item: Instruction, rank: int, pp: int, vpp: int) -> list[_Transfer]:
    stage = item.chunk * pp + rank
    at_end = stage == (0 if item.kind == "F" else pp * vpp - 1)
    return [] if at_end else [(item.kind, item.micro_batch, stage)]


def _paired(orders: list[list[Instruction]], pp: int) -> list[_Program]:
    """Transfers of `forward_backward_pipelining_without_interleaving`.

    A send and the next receive are one call where the direction turns (send_forward_recv_backward,
    send_backward_recv_forward) and two calls otherwise.
    """
    programs = []
    for rank, order in enumerate(orders):
        program: _Program = [_received(order[0], rank, pp, 1)]
        for item, after in zip(order, [*order[1:], None], strict=True):
            sends = _sent(item, rank, pp, 1)
            gets = _received(after, rank, pp, 1) if after else []
            turns = after is not None and after.kind != item.kind
            program += [item, sends + gets] if turns else [item, sends, gets]
        programs.append(program)
    return programs


def _ring(
    orders: list[list[Instruction]], warm_ups: list[int], pp: int, vpp: int
) -> list[_Program]:
    """Transfers of `forward_backward_pipelining_with_interleaving` without p2p overlap.

    One batched call after every turn: a warm-up forward, a forward with a backward, or a cool-down
    backward. It sends what the turn made and receives what the next one needs.
    """
    programs = []
    for rank, (order, warm_up) in enumerate(zip(orders, warm_ups, strict=True)):
        needs = {kind: _receipts(order, kind, rank, pp, vpp) for kind in "FB"}
        made = {"F": 0, "B": 0}
        program: _Program = [needs["F"].get(-1, [])]
        for turn in _turns(order, warm_up):
            call: list[_Transfer] = []
            for item in turn:
                program.append(item)
                call += _sent(item, rank, pp, vpp) + needs[item.kind].get(made[item.kind], [])
                made[item.kind] += 1
            first_backward = made["F"] == warm_up and not made["B"]
            program.append(call + needs["B"].get(-1, []) if first_backward else call)
        programs.append(program)
    return programs


def _turns(order: list[Instruction], warm_up: int) -> list[list[Instruction]]:
    total = len(order) // 2
    steady = order[warm_up : 2 * total - warm_up]
    alone = [[item] for item in order]
    pairs = [steady[i : i + 2] for i in range(0, len(steady), 2)]
    return alone[:warm_up] + pairs + alone[2 * total - warm_up :]


def _receipts(
    order: list[Instruction], kind: str, rank: int, pp: int, vpp: int
) -> dict[int, list[_Transfer]]:
    """What arrives after which forward (or backward) of this rank; -1 is before the first.

    Inputs arrive one turn ahead. Where the ring closes (first rank forward, last rank backward)
    they arrive p - 1 turns after they were made, early when the group is larger than p.
    """
    mine = [item for item in order if item.kind == kind]
    closing, step = (0, 1) if kind == "F" else (pp - 1, -1)
    made_at = {(item.micro_batch, item.chunk + step): i for i, item in enumerate(mine)}
    arrivals: dict[int, list[_Transfer]] = {}
    for i, item in enumerate(mine):
        at = i - 1
        if rank == closing:
            at = min(at, made_at.get((item.micro_batch, item.chunk), at) + pp - 1)
        arrivals.setdefault(at, []).extend(_received(item, rank, pp, vpp))
    return arrivals


# ---- running the programs ------------------------------------------------------------------------

_Events = list[list[Event]]


def _run_beside(
    orders: list[list[Instruction]], work: Sequence[Work], pp: int, m: int, p2p_s: float
) -> _Events:
    """Transfers run beside the work: a piece starts once its rank is free and its input there."""
    arrived: dict[_Transfer, float] = {("F", k, 0): 0.0 for k in range(m)}
    waiting: dict[_Transfer, int] = {}
    clock, done = [0.0] * pp, [0] * pp
    events: _Events = [[] for _ in range(pp)]
    queue = deque(range(pp))
    while queue:
        rank = queue.popleft()
        now, order = clock[rank], orders[rank]
        for at in range(done[rank], len(order)):
            kind, k, chunk = order[at]
            stage = chunk * pp + rank
            start = 0.0 if kind == "W" else arrived.get((kind, k, stage))
            if start is None:
                waiting[kind, k, stage] = rank
                break
            now = max(now, start)
            end = now + work[stage]["FBW".index(kind)]
            events[rank].append(Event(now, end, kind, k, chunk))
            now, done[rank] = end, at + 1
            if kind != "W":
                made, delay = (kind, k, stage + (1 if kind == "F" else -1)), p2p_s
                if made[2] == len(work):
                    made, delay = ("B", k, stage), 0.0
                arrived[made] = end + delay
                if made in waiting:
                    queue.append(waiting.pop(made))
        clock[rank] = now
    _require_finished(done, orders)
    return events


def _run_meeting(programs: list[_Program], work: Sequence[Work], pp: int, p2p_s: float) -> _Events:
    """Sender and receiver meet: a call ends once all its transfers have, each begun by both."""
    posted: dict[_Transfer, float] = {}
    ended: dict[_Transfer, float] = {}
    waiting: dict[_Transfer, int] = {}
    clock, done, called = [0.0] * pp, [0] * pp, [-1] * pp
    events: _Events = [[] for _ in range(pp)]
    queue = deque(range(pp))
    while queue:
        rank = queue.popleft()
        now, program = clock[rank], programs[rank]
        for at in range(done[rank], len(program)):
            item = program[at]
            if isinstance(item, Instruction):
                kind, k, chunk = item
                end = now + work[chunk * pp + rank]["FBW".index(kind)]
                events[rank].append(Event(now, end, kind, k, chunk))
                now = end
            else:
                if called[rank] < at:
                    called[rank] = at
                    _post(item, now + p2p_s, posted, ended, waiting, queue)
                late = [transfer for transfer in item if transfer not in ended]
                if late:
                    waiting[late[0]] = rank
                    break
                for transfer in item:
                    now = max(now, ended[transfer])
            done[rank] = at + 1
        clock[rank] = now
    _require_finished(done, programs)
    return events


def _post(
    call: list[_Transfer],
    end_s: float,
    posted: dict[_Transfer, float],
    ended: dict[_Transfer, float],
    waiting: dict[_Transfer, int],
    queue: deque[int],
) -> None:
    """Begin one side of every transfer of a call; the second side to come sets its end."""
    for transfer in call:
        if transfer in posted:
            ended[transfer] = max(end_s, posted[transfer])
            if transfer in waiting:
                queue.append(waiting.pop(transfer))
        else:
            posted[transfer] = end_s


def _require_finished(done: list[int], programs: Sequence[Sequence[object]]) -> None:
    stuck = [rank for rank, at in enumerate(done) if at < len(programs[rank])]
    if stuck:
        rule = f"wait for each other, rank {stuck[0]} at {programs[stuck[0]][done[stuck[0]]]}"
        raise bad_value("ranks", stuck, rule, "use a micro-batch group of at least pp")


def _timeline(events: _Events, schedule: str) -> Timeline:
    longest = max(rank[-1].end_s - rank[0].start_s for rank in events)
    last = max(rank[-1].end_s for rank in events)
    return Timeline(
        ranks=tuple(tuple(rank) for rank in events),
        total_s=longest if schedule == "zb2p" else last,
        busy_s=tuple(sum(e.end_s - e.start_s for e in rank) for rank in events),
    )
