"""The closed form and the event simulator: each against laws, both against each other."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from itertools import accumulate, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.cost.schedule import PipelineTime, Stages, in_flight, pipeline_time
from autoparallel.cost.simulator import (
    Timeline,
    Work,
    rank_order,
    schedule_table,
    simulate,
    simulate_stages,
)
from autoparallel.errors import ConfigError
from autoparallel.layout import SCHEDULES

CHUNKED = ("interleaved", "bfs")
UNIT = Work(1.0, 1.0, 1.0)


def stages(schedule: str, pp: int, m: int, vpp: int = 1, **values: float) -> Stages:
    times = {"forward_s": 1.0, "backward_s": 1.0, "weight_s": 1.0, "group": 0.0} | values
    code = float(SCHEDULES.index(schedule))
    return Stages(pp=float(pp), vpp=float(vpp), micro_batches=float(m), schedule=code, **times)


def random_stages(schedule: str, seed: int, imbalance: bool = True, p2p: bool = True) -> Stages:
    """A pipeline as searches meet them: the head adds up to 0.8 of a chunk's forward."""
    r = random.Random(f"{schedule}-{seed}")
    pp, vpp = r.choice([1, 2, 3, 4, 6, 8, 12, 16]), 1
    m, group = r.choice([1, 2, 3, 4, 6, 8, 16, 24, 40, 64]), 0
    if schedule == "bfs":
        vpp = r.choice([1, 2, 3, 4])
    if schedule == "interleaved":
        vpp, m = r.choice([2, 3, 4]), pp * r.choice([1, 2, 3, 4, 8])
        choices = [n for n in range(pp, m + 1) if m % n == 0 or m % n >= pp]
        group = r.choice([0, 0, r.choice(choices)])
    times = {"backward_s": r.uniform(0.8, 1.6), "weight_s": r.uniform(0.6, 1.1), "group": group}
    if imbalance:
        first, last = r.uniform(-0.3, 0.3), r.uniform(-0.3, 0.8)
        times["first_extra_forward_s"] = first
        times["first_extra_backward_s"] = 2 * first * r.random()
        times["last_extra_forward_s"] = last
        times["last_extra_backward_s"] = last * r.uniform(1, 2)
    if p2p:
        times |= {
            "p2p_s": r.choice([0.0, 0.1, 0.3]) * r.random(),
            "p2p_overlapped": r.choice([0, 1]),
        }
    return stages(schedule, pp, m, vpp, **times)


def run(x: Stages) -> Timeline:
    return simulate_stages(x, overlap=bool(x.p2p_overlapped))


def peaks(schedule: str, line: Timeline) -> tuple[int, ...]:
    """Chunk activations alive at most on each rank, from the forward to the last gradient."""
    last = "W" if schedule.startswith("zb") else "B"
    return tuple(
        max(accumulate((e.kind == "F") - (e.kind == last) for e in rank)) for rank in line.ranks
    )


def errors(schedule: str, seeds: int, **kind: bool) -> np.ndarray:
    cases = [random_stages(schedule, seed, **kind) for seed in range(seeds)]
    return np.array([abs(pipeline_time(x).total_s / run(x).total_s - 1) for x in cases])


def column(rows: list[Stages]) -> Stages:
    return Stages(**{f.name: np.array([getattr(x, f.name) for x in rows]) for f in fields(Stages)})


# ---- the closed form against the simulator -------------------------------------------------------


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "bfs"])
def test_balanced_stages_agree_to_one_percent(schedule: str) -> None:
    assert errors(schedule, 60, imbalance=False, p2p=False).max() < 1e-9


@pytest.mark.parametrize("schedule", ["zb1p", "zb2p"])
def test_balanced_zero_bubble_agrees(schedule: str) -> None:
    error = errors(schedule, 60, imbalance=False, p2p=False)
    assert np.median(error) < 1e-9
    assert error.max() < 0.04


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_imbalance_and_p2p_agree(schedule: str) -> None:
    error = errors(schedule, 80)
    assert np.median(error) < 0.03
    assert np.quantile(error, 0.9) < 0.04
    assert error.max() < 0.08


def test_imbalance_alone_is_exact_for_1f1b() -> None:
    assert errors("1f1b", 100, p2p=False).max() < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_in_flight_is_the_simulated_peak(schedule: str) -> None:
    for seed in range(40):
        x = random_stages(schedule, seed)
        rank = np.arange(x.pp)
        peak = in_flight(x.pp, x.vpp, x.micro_batches, x.group, x.schedule, rank)
        assert tuple(peak) == peaks(schedule, run(x))


# ---- laws of the closed form ---------------------------------------------------------------------

SHAPES = st.builds(random_stages, st.sampled_from(SCHEDULES), st.integers(0, 10**6))


@given(SHAPES)
@settings(deadline=None, max_examples=150)
def test_parts_are_never_negative_and_sum_to_the_total(x: Stages) -> None:
    time = pipeline_time(x)
    assert time.bubble_s >= -1e-9
    assert time.p2p_s >= -1e-9
    assert time.total_s == pytest.approx(time.busy_s + time.bubble_s + time.p2p_s, rel=1e-12)
    assert time.busy_s == pytest.approx(max(run(x).busy_s), rel=1e-9)


@given(SHAPES)
@settings(deadline=None, max_examples=150)
def test_more_micro_batches_are_never_faster(x: Stages) -> None:
    step = x.pp if x.schedule == SCHEDULES.index("interleaved") else 1
    more = replace(x, micro_batches=x.micro_batches + step, group=0.0)
    assert pipeline_time(more).total_s >= pipeline_time(replace(x, group=0.0)).total_s - 1e-9


@given(SHAPES, st.floats(0.0, 0.3))
@settings(deadline=None, max_examples=100)
def test_slower_transfers_are_never_faster(x: Stages, extra: float) -> None:
    slower = replace(x, p2p_s=x.p2p_s + extra)
    assert pipeline_time(slower).total_s >= pipeline_time(x).total_s - 1e-9


@given(SHAPES)
@settings(deadline=None, max_examples=100)
def test_overlap_never_hurts(x: Stages) -> None:
    met, beside = (pipeline_time(replace(x, p2p_overlapped=f)).total_s for f in (0.0, 1.0))
    assert beside <= met * (1 + 1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_rank_has_no_bubble_and_no_transfers(schedule: str) -> None:
    vpp = 2 if schedule in CHUNKED else 1
    x = stages(
        schedule, 1, 12, vpp, last_extra_forward_s=0.5, first_extra_backward_s=-0.2, p2p_s=1.0
    )
    time = pipeline_time(x)
    assert time.total_s == pytest.approx(12 * (vpp * 3.0 + 0.3), rel=1e-12)
    assert (time.bubble_s, time.p2p_s) == pytest.approx((0, 0), abs=1e-9)
    assert run(x).total_s == pytest.approx(time.total_s, rel=1e-12)


@pytest.mark.parametrize("schedule", CHUNKED)
@pytest.mark.parametrize("vpp", [2, 3, 6])
def test_chunks_divide_the_balanced_bubble(schedule: str, vpp: int) -> None:
    whole = pipeline_time(stages("1f1b", 8, 32))
    part = 1.0 / vpp
    x = stages(schedule, 8, 32, vpp, forward_s=part, backward_s=part, weight_s=part)
    assert pipeline_time(x).bubble_s == pytest.approx(whole.bubble_s / vpp, rel=1e-9)


@pytest.mark.parametrize("pp", [2, 4, 8])
def test_textbook_bubbles(pp: int) -> None:
    bubbles = [pipeline_time(stages(name, pp, 4 * pp)).bubble_s for name in SCHEDULES]
    ends = float(pp - 1)
    assert bubbles == pytest.approx([3 * ends, 3 * ends, 3 * ends, ends, 0.0], abs=1e-9)


def test_zero_bubble_order() -> None:
    time = [pipeline_time(stages(name, 6, m)) for m in (1, 5, 40) for name in SCHEDULES]
    for one, _, _, zb1p, zb2p in (time[:5], time[5:10], time[10:]):
        assert zb2p.bubble_s <= zb1p.bubble_s + 1e-9
        assert zb1p.bubble_s <= one.bubble_s + 1e-9


def test_a_scalar_is_a_row_of_the_column() -> None:
    rows = [random_stages(name, seed) for seed in range(30) for name in SCHEDULES]
    together = pipeline_time(column(rows))
    for part in (f.name for f in fields(PipelineTime)):
        alone = [getattr(pipeline_time(x), part) for x in rows]
        np.testing.assert_allclose(getattr(together, part), alone, rtol=1e-12, atol=1e-12)


def test_scalars_and_columns_mix() -> None:
    x = stages("1f1b", 4, 8, p2p_s=0.1)
    codes = np.array([0.0, 3.0, 4.0])
    mixed = pipeline_time(replace(x, schedule=codes, forward_s=np.array([1.0, 2.0, 3.0])))
    alone = [
        pipeline_time(replace(x, schedule=c, forward_s=f)).total_s
        for c, f in zip(codes, (1.0, 2.0, 3.0), strict=True)
    ]
    np.testing.assert_allclose(mixed.total_s, alone, rtol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [("1f1b", 4, 1), ("interleaved", 11, 5), ("bfs", 16, 16), ("zb1p", 4, 4), ("zb2p", 7, 7)],
)
def test_published_activation_counts(schedule: str, first: int, last: int) -> None:
    vpp, code = (2 if schedule in CHUNKED else 1), SCHEDULES.index(schedule)
    assert [in_flight(4, vpp, 8, 0, code, i) for i in (0, 3)] == [first, last]


# ---- the simulator -------------------------------------------------------------------------------


def test_a_small_timeline_by_hand() -> None:
    result = simulate([Work(1, 1, 1)] * 2, pp=2, micro_batches=2, p2p_s=0.5, overlap=True)
    shown = [[(e.start_s, e.end_s, e.kind, e.micro_batch) for e in rank] for rank in result.ranks]
    assert shown == [
        [(0, 1, "F", 0), (1, 2, "F", 1), (5, 7, "B", 0), (8, 10, "B", 1)],
        [(1.5, 2.5, "F", 0), (2.5, 4.5, "B", 0), (4.5, 5.5, "F", 1), (5.5, 7.5, "B", 1)],
    ]
    assert (result.total_s, result.idle_s) == (10, (4, 4))


def test_meeting_ranks_wait_for_each_other() -> None:
    result = simulate([Work(1, 1, 1)] * 2, pp=2, micro_batches=2, p2p_s=0.5)
    starts = [[e.start_s for e in rank] for rank in result.ranks]
    assert starts == [[0, 1.5, 5.0, 8.5], [1.5, 2.5, 5.0, 6.0]]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("overlap", [True, False])
def test_events_respect_dependencies(schedule: str, overlap: bool) -> None:
    for seed in range(15):
        x = replace(random_stages(schedule, seed), p2p_overlapped=float(overlap))
        check_timeline(x, run(x))


def check_timeline(x: Stages, result: Timeline) -> None:
    pp, vpp, m = int(x.pp), int(x.vpp), int(x.micro_batches)
    split = SCHEDULES[int(x.schedule)].startswith("zb")
    found = {
        (e.kind, e.micro_batch, e.chunk * pp + rank): e
        for rank, events in enumerate(result.ranks)
        for e in events
    }
    assert len(found) == sum(map(len, result.ranks)) == m * pp * vpp * (3 if split else 2)
    for events in result.ranks:
        for before, after in pairwise(events):
            assert after.start_s >= before.end_s
    hop = x.p2p_s * (pp > 1)
    for (kind, k, stage), event in found.items():
        source = {
            "F": ("F", k, stage - 1),
            "B": ("B", k, stage + 1) if stage + 1 < pp * vpp else ("F", k, stage),
            "W": ("B", k, stage),
        }[kind]
        crosses = source[2] != stage
        if source in found:
            assert event.start_s >= found[source].end_s + hop * crosses - 1e-9


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"schedule": "1f1c"}, "did you mean '1f1b'"),
        ({"pp": 3}, "multiple of pp 3"),
        ({"schedule": "zb1p", "pp": 2}, "one chunk a rank, got 2"),
        ({"micro_batches": 0}, "at least 1"),
        ({"group": -1}, "at least 0"),
    ],
)
def test_bad_requests_are_refused(change: dict[str, object], word: str) -> None:
    request = {"pp": 4, "micro_batches": 4, "schedule": "1f1b"} | change
    with pytest.raises(ConfigError, match=word):
        simulate([UNIT] * 4, **request)  # type: ignore[arg-type]


def test_an_order_that_cannot_finish_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"wait for each other.*at least pp"):
        simulate([UNIT] * 8, pp=4, micro_batches=8, schedule="interleaved", group=1)


# ---- the orders against Megatron-Core itself -----------------------------------------------------


@pytest.mark.megatron
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("pp", "vpp", "m", "group"), [(4, 2, 8, 4), (4, 3, 13, 5), (2, 4, 6, 6), (8, 1, 4, 8)]
)
def test_orders_are_megatrons(pp: int, vpp: int, m: int, group: int) -> None:
    megatron = pytest.importorskip("megatron.core.pipeline_parallel.schedules")
    table = megatron.get_schedule_table(m, vpp, group)
    assert schedule_table(m, vpp, group) == table
    for rank in range(pp):
        ranks = SimpleNamespace(size=lambda: pp, rank=lambda r=rank: r)
        virtual = None if vpp == 1 else vpp
        peer = SimpleNamespace(pp_group=ranks, virtual_pipeline_model_parallel_size=virtual)
        counts = megatron.get_pp_rank_microbatches(m, vpp, group, p2p_communicator=peer)
        order = rank_order("1f1b" if vpp == 1 else "interleaved", rank, pp, vpp, m, group)
        first = next(i for i, item in enumerate(order) if item.kind == "B")
        assert first == min(m * vpp, counts[2] + 1)
        assert [(i.micro_batch, i.chunk) for i in order if i.kind == "F"] == table
        backward = [(i.micro_batch, vpp - 1 - i.chunk) for i in order if i.kind == "B"]
        assert backward == table
