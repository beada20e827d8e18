"""What is drawn: tables of a run, held to the plan they come from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autoparallel.constants import FITS
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout
from autoparallel.ranking.reasons import judged
from autoparallel.reporting import (
    breakdown,
    candidates,
    differences,
    hours,
    origins,
    stage_memory,
    timeline,
    what_if,
)
from autoparallel.reporting.figures import what_if as drawn


def test_bars_add_up_to_the_plans_numbers(run):
    entries = breakdown.rivals(run, Layout.parse("tp8 pp8 mbs1 sp zero1"))
    labels = [label for label, _ in entries]
    assert labels[:2] == ["#1", "#2"]
    assert labels[-2:] == ["yours", "full recompute"]
    for bar, (_, entry) in zip(breakdown.step_bars(entries), entries, strict=True):
        assert bar.total == pytest.approx(entry.iteration_s)
    for bar, (_, entry) in zip(breakdown.memory_bars(entries), entries, strict=True):
        assert bar.total == pytest.approx(entry.memory_bytes)
    full = dict(entries)["full recompute"]
    assert full.parts["recompute_s"] > run.winner.parts["recompute_s"]
    assert full.memory_parts["activations_bytes"] < run.winner.memory_parts["activations_bytes"]


def test_candidates_are_distinct_and_sorted(run):
    found = candidates.read_candidates(run.folder)
    rows = {
        (found.words(i), found.iteration_s[i], found.memory_bytes[i]) for i in range(found.size)
    }
    assert len(rows) == found.size <= found.in_file
    assert np.all(np.diff(found.iteration_s) >= 0)
    best = found.iteration_s[found.fits_probability >= FITS].min()
    assert best == pytest.approx(run.winner.iteration_s, rel=1e-6)


def test_nothing_fitting_beats_the_front_in_both(run):
    found = candidates.read_candidates(run.folder)
    edge = candidates.front(found)
    assert np.all(np.diff(found.memory_bytes[edge]) > 0)
    assert np.all(np.diff(found.iteration_s[edge]) < 0)
    fits = found.fits_probability >= FITS
    for row in edge:
        better = (found.iteration_s < found.iteration_s[row]) & (
            found.memory_bytes < found.memory_bytes[row]
        )
        assert not (better & fits).any()


def many(rows: int) -> candidates.Candidates:
    """Made-up candidates."""
    random = np.random.default_rng(1)
    time = np.sort(random.uniform(1, 9, rows))
    return candidates.Candidates(
        knobs={n: random.choice([1.0, 2.0, 4.0], rows) for n in ("tp", "pp")},
        recompute=np.full(rows, "none"),
        iteration_s=time,
        memory_bytes=random.uniform(1e9, 9e10, rows),
        fits_probability=random.uniform(0, 1, rows),
        in_file=rows,
    )


def test_very_many_are_thinned_and_keep_the_front_and_the_fastest():
    whole = many(200_000)
    few = candidates.thinned(whole)
    assert few.size <= candidates.DRAWN
    assert few.iteration_s[0] == whole.iteration_s[0]
    points = set(zip(few.iteration_s, few.memory_bytes, strict=True))
    edge = candidates.front(whole)
    assert points >= set(zip(whole.iteration_s[edge], whole.memory_bytes[edge], strict=True))
    assert few.iteration_s[-1] == whole.iteration_s[-1]
    assert candidates.thinned(few) is few


def test_a_cell_of_the_mesh_is_its_best_fitting_candidate():
    found = many(500)
    cells = candidates.grid(found)
    for pp, row in zip(cells.pp, cells.seconds, strict=True):
        for tp, seconds in zip(cells.tp, row, strict=True):
            mask = (found.knobs["tp"] == tp) & (found.knobs["pp"] == pp)
            assert seconds == found.iteration_s[mask & (found.fits_probability >= FITS)].min()
    assert sum(map(sum, cells.considered)) == 500


def test_lines_hold_the_best_and_only_fitting_layouts(run):
    found = candidates.read_candidates(run.folder)
    lines = candidates.parallel_lines(found)
    assert {"tp", "pp", "GiB", "step s"} <= {axis.name for axis in lines.axes}
    assert all(len(axis.heights) == len(lines.band) for axis in lines.axes)
    times = next(axis for axis in lines.axes if axis.name == "step s")
    assert (min(times.heights), max(times.heights)) == (0.0, 1.0)
    assert lines.band[0] == 0


@pytest.mark.parametrize("word", ["<img src=x>", "core_attn+<b>"])
def test_words_that_no_search_writes_are_refused(run_folder, tmp_path, word):
    table = pq.read_table(run_folder / "candidates.parquet")
    odd = pa.array([word] * table.num_rows).dictionary_encode()
    place = table.schema.get_field_index("recompute_granularity")
    pq.write_table(
        table.set_column(place, "recompute_granularity", odd), tmp_path / "candidates.parquet"
    )
    with pytest.raises(ConfigError, match="unknown word"):
        candidates.read_candidates(tmp_path)


def test_a_file_that_is_no_table_is_refused_and_a_missing_one_is_none(tmp_path):
    assert candidates.read_candidates(tmp_path) is None
    (tmp_path / "candidates.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match=r"candidates\.parquet"):
        candidates.read_candidates(tmp_path)


def test_the_timeline_is_the_simulators_and_pieces_of_a_rank_do_not_overlap(run):
    layout = Layout.parse("tp8 pp4 vpp3 mbs1 sp zero1")
    step = timeline.pipeline_step(run, layout)
    assert step.pipeline_s == pytest.approx(step.closed_form_s, rel=0.1)
    assert step.step_s >= step.pipeline_s
    for rank in range(step.ranks):
        own = [p for p in step.pieces if p.rank == rank]
        assert all(a.end_s <= b.start_s + 1e-9 for a, b in pairwise(own))
        kinds = [p.kind for p in own]
        assert kinds.count("F") == kinds.count("B") == step.chunks * 64 // (64 // 32)
    assert {p.kind for p in step.first} == {"F", "B"}
    assert len(step.first) < len(step.drawn)


def test_the_trace_holds_every_piece_in_microseconds(run):
    step = timeline.pipeline_step(run, run.winner.layout)
    trace = json.loads(timeline.trace_text(step, "t"))
    pieces = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(pieces) == len(step.pieces)
    assert max(e["ts"] + e["dur"] for e in pieces) == pytest.approx(step.step_s * 1e6, rel=1e-6)
    assert {e["tid"] for e in pieces} == set(range(step.ranks))


def test_the_fullest_rank_is_the_plans_memory(run):
    for layout in (run.winner.layout, Layout.parse("tp8 pp8 mbs1 sp zero1")):
        bars = stage_memory.rank_bars(run, layout)
        predicted = judged(run.where, [layout])[0].memory_bytes
        assert max(bar.total for bar in bars) == pytest.approx(predicted)
    middle = [bar.parts["activations_bytes"] for bar in bars[1:-1]]
    assert middle == sorted(middle, reverse=True)


def test_scaling_plans_every_size_and_today_is_the_plan(run):
    sizes = {s.gpus: s for s in what_if.scaling(run)}
    today = sizes[run.request.num_gpus]
    assert today.entry == run.winner
    known = [s for s in sizes.values() if s.efficiency]
    assert known[0].efficiency == 1.0
    for s in known:
        assert s.tokens_per_s == pytest.approx(s.entry.tokens_per_s_per_gpu * s.gpus)


def test_every_size_and_its_label_lie_inside_the_drawn_range(run):
    sizes = [s for s in what_if.scaling(run) if s.tokens_per_s]
    axis = drawn.scaling(sizes).layout.yaxis
    rates = [math.log10(s.tokens_per_s) for s in sizes]
    assert axis.range[0] < min(rates) - 0.1
    assert axis.range[1] > max(rates) + 0.1
    assert not [text for text in axis.ticktext if "e+" in text]


def test_planning_again_is_never_worse_than_a_winner_that_fits(run):
    cases = {case.name: case for case in what_if.sensitivity(run)}
    for case in cases.values():
        if case.kept is not None and case.kept_fits and case.planned is not None:
            assert case.planned >= case.kept - 1e-9
    assert cases["fabric bandwidth × 0.5"].kept <= 0 <= cases["fabric bandwidth × 2"].kept
    assert cases["GPU compute × 0.8"].planned < 0 < cases["GPU compute × 1.2"].planned
    assert cases["GPU memory × 1.25"].planned >= 0


def test_shares_of_the_run_are_whole_and_days_are_the_plans(run):
    (found,) = hours.hours(run, [("#1", run.winner)])
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.whole.days == pytest.approx(run.winner.days)
    assert hours.hour_bars([found])[0].total == pytest.approx(run.winner.days)
    assert (
        hours.hours(replace(run, request=replace(run.request, tokens=None)), [("", run.winner)])
        == ()
    )


def test_hops_lead_to_the_goal_and_their_deltas_add_up(run):
    start = Layout.parse("tp8 pp4 mbs1 sp zero1 recompute=full overlap=none")
    goal = Layout.parse("tp4 pp8 vpp3 mbs1 sp zero1")
    found = differences.hops(run.where, start, goal)
    before, after = judged(run.where, [start, goal])
    assert found[-1].after.layout == goal
    assert sum(h.delta_s for h in found) == pytest.approx(after.iteration_s - before.iteration_s)
    assert all(not h.after.rule for h in found)
    assert len(found) >= 3
    assert differences.hops(run.where, goal, goal) == ()
    assert differences.hops(run.where, Layout.parse("tp3 pp1 mbs1 zero1"), goal) == ()


def test_every_constant_and_every_catalog_number_says_where_it_is_from(run):
    found = origins.constants(run)
    measured = {c.name for c in found if c.state == "measured"}
    assert set(run.where.calibration.measured_names) <= measured
    for c in found:
        assert 0 <= c.place(c.value) <= 100
        assert c.low is None or c.low <= c.value * (1 + 1e-3)
    assert all(known.source for known in origins.catalog_values(run))
