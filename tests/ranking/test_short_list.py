"""The short list: order kept, meshes varied, nothing twice; and the stream behind it."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
from cases import BATCH, NUM_GPUS, case
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.constants import FITS
from autoparallel.cost.memory import Memory, memory
from autoparallel.cost.step import step_time
from autoparallel.layout import KNOB_FIELDS, Knobs, Layout, knobs
from autoparallel.ranking import Scores, ranked, short_list
from autoparallel.ranking.short_list import MESH, SAME_MESH

SIZES = st.sampled_from([1, 2, 4, 8])
LAYOUTS = st.builds(
    lambda tp, pp, cp, mbs, zero: Layout(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        context_parallel_size=cp,
        micro_batch_size=mbs,
        zero_stage=zero,
    ),
    SIZES,
    SIZES,
    st.sampled_from([1, 2]),
    SIZES,
    st.sampled_from([0, 1, 3]),
)
TABLES = st.lists(LAYOUTS, min_size=1, max_size=60)


def columns(layouts: list[Layout]) -> Knobs:
    return knobs(layouts, [NUM_GPUS] * len(layouts), [BATCH] * len(layouts))


def meshes(table: Knobs) -> list[tuple[float, ...]]:
    rows = np.stack([np.broadcast_to(getattr(table, n), (table.size,)) for n in MESH], axis=1)
    return [tuple(row) for row in rows.tolist()]


@given(TABLES, st.integers(1, 80))
@settings(deadline=None)
def test_order_is_kept_and_nothing_comes_twice(layouts: list[Layout], top: int) -> None:
    rows = short_list(columns(layouts), top)
    assert len(rows) == min(top, len(layouts))
    assert rows[0] == 0
    assert np.all(np.diff(rows) > 0)
    assert rows[-1] < len(layouts)


@given(TABLES, st.integers(1, 30))
@settings(deadline=None)
def test_no_mesh_crowds_out_another(layouts: list[Layout], top: int) -> None:
    """More than three of one mesh only when every other mesh on offer has had its turn."""
    table = columns(layouts)
    rows, mesh = short_list(table, top), meshes(table)
    listed = Counter(mesh[row] for row in rows)
    if max(listed.values()) > SAME_MESH:
        for name, offered in Counter(mesh).items():
            assert listed[name] >= min(offered, SAME_MESH)
    for name, count in listed.items():
        first = [i for i, m in enumerate(mesh) if m == name][:count]
        assert [row for row in rows if mesh[row] == name] == first


def test_a_crowd_leaves_room() -> None:
    crowd = [Layout(tensor_model_parallel_size=8, micro_batch_size=b) for b in range(1, 30)]
    other = [Layout(pipeline_model_parallel_size=p) for p in (2, 4)]
    assert short_list(columns(crowd + other), 5).tolist() == [0, 1, 2, 29, 30]
    assert short_list(columns(crowd + other), 6).tolist() == [0, 1, 2, 3, 29, 30]
    assert short_list(columns(crowd), 5).tolist() == [0, 1, 2, 3, 4]


def test_a_knob_that_all_rows_share_may_be_a_scalar() -> None:
    table = columns([Layout(pipeline_model_parallel_size=p) for p in (1, 2, 4)])
    values = {f.name: getattr(table, f.name) for f in KNOB_FIELDS}
    same = Knobs(**values | {"tp": 1.0, "cp": 1.0})
    assert short_list(same, 2).tolist() == short_list(table, 2).tolist()


# ---- the stream ----------------------------------------------------------------------------------


def evaluate(block: Knobs) -> Scores:
    """The cost model; what fits is decided by a column that tests can set: offload 1 does not."""
    of = replace(case(["tp1 mbs1"]), knobs=block)
    of = replace(of, machine=replace(of.machine, peak_flops_per_s=of.machine.bf16_flops_per_s))
    step, used = step_time(of), memory(of)
    size = (block.size,)
    return Scores(
        step=step,
        memory=used,
        iteration_s=np.broadcast_to(np.asarray(step.iteration_s), size),
        memory_bytes=np.broadcast_to(np.asarray(used.total_bytes), size),
        fits_probability=np.broadcast_to(1.0 - np.asarray(block.offload), size),
    )


def pool(count: int, seed: int = 0) -> Knobs:
    random = np.random.default_rng(seed)
    rows = [
        Layout(
            tensor_model_parallel_size=int(random.choice([1, 2, 4, 8])),
            pipeline_model_parallel_size=int(random.choice([1, 2, 4])),
            micro_batch_size=int(random.choice([1, 2])),
            optimizer_offload_fraction=float(random.choice([0.0, 0.25, 1.0])),
        )
        for _ in range(count)
    ]
    return knobs(rows, [NUM_GPUS] * count, random.integers(64, 4096, count).tolist())


@pytest.mark.parametrize("objective", ["iteration_s", "memory_bytes"])
@pytest.mark.parametrize("size", [7, 50, 300])
def test_blocks_do_not_change_what_is_best(objective: str, size: int) -> None:
    whole = pool(300)
    blocks = [whole.take(slice(i, i + size)) for i in range(0, 300, size)]
    found, once = (ranked(x, evaluate, objective) for x in (blocks, [whole]))
    assert (found.evaluated, found.feasible) == (once.evaluated, once.feasible)
    assert found.evaluated == 300
    assert found.feasible == int((1 - whole.offload >= FITS).sum())
    for name in ("iteration_s", "memory_bytes"):
        np.testing.assert_array_equal(
            getattr(found.best.scores, name), getattr(once.best.scores, name)
        )
    assert np.all(np.diff(getattr(found.best.scores, objective)) >= 0)
    assert np.all(found.best.scores.fits_probability >= FITS)


def test_keeping_few_keeps_the_best() -> None:
    whole = pool(400, 1)
    blocks = [whole.take(slice(i, i + 40)) for i in range(0, 400, 40)]
    few, all_ = (ranked(blocks, evaluate, "iteration_s", keep=k) for k in (9, 1000))
    np.testing.assert_array_equal(few.best.scores.iteration_s[:9], all_.best.scores.iteration_s[:9])
    assert few.feasible == all_.feasible == all_.best.size


def test_kept_rows_keep_their_own_scores() -> None:
    best = ranked([pool(100, 2), pool(100, 3)], evaluate, "iteration_s").best
    again = evaluate(best.knobs)
    np.testing.assert_allclose(best.scores.iteration_s, again.iteration_s)
    np.testing.assert_allclose(best.scores.memory_bytes, again.memory_bytes)
    for f in fields(Memory):
        np.testing.assert_allclose(
            getattr(best.scores.memory, f.name), getattr(again.memory, f.name)
        )


def test_ties_put_the_thriftier_first() -> None:
    def same_time(block: Knobs) -> Scores:
        return replace(evaluate(block), iteration_s=np.ones(block.size))

    best = ranked([pool(60)], same_time, "iteration_s").best
    assert np.all(np.diff(best.scores.memory_bytes) >= 0)


def test_nothing_fits_leaves_the_nearest_miss() -> None:
    table = columns(
        [
            Layout(optimizer_offload_fraction=f, micro_batch_size=i)
            for i, f in ((1, 1.0), (2, 0.75), (4, 0.9))
        ]
    )
    found = ranked([table], evaluate, "iteration_s")
    assert found.best is None
    assert (found.evaluated, found.feasible) == (3, 0)
    assert found.nearest_miss.knobs.layout(0).micro_batch_size == 2
    empty = ranked([], evaluate, "iteration_s")
    assert (empty.best, empty.nearest_miss, empty.evaluated) == (None, None, 0)
