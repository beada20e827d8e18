from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.constants import FITS
from autoparallel.layout import Layout
from autoparallel.planning import estimate, searched, solved
from autoparallel.ranking import setting
from autoparallel.ranking.reasons import (
    bought,
    changes,
    consistent,
    helping_step,
    judged,
    simpler,
    steps,
    word_changes,
)
from autoparallel.ranking.rescue import first_working, lawful, remedies, shortfall
from autoparallel.ranking.sample import STRATA, stratified
from autoparallel.request import training_request


@pytest.fixture(scope="module")
def request_175b():
    return training_request(model="gpt-175b", num_gpus=1024, cluster="dgx-a100-80gb")


@pytest.fixture(scope="module")
def found(request_175b):
    return searched(request_175b)


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(*[st.integers(-100, 100)] * 2)))
def test_changes_add_up_and_are_sorted(pairs):
    ours = {name: float(a) for name, (a, _) in pairs.items()}
    theirs = {name: float(b) for name, (_, b) in pairs.items()}
    listed = changes(ours, theirs)
    assert sum(c.amount for c in listed) == sum(theirs.values()) - sum(ours.values())
    sizes = [abs(c.amount) for c in listed]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 not in sizes


def test_verdicts_are_the_estimates(request_175b, found):
    where = found[2]
    layouts = [
        Layout.parse(t) for t in ("tp8 pp8 mbs1 sp zero1", "tp8 pp7 mbs1 sp", "tp1 pp8 mbs2")
    ]
    for layout, verdict in zip(layouts, judged(where, layouts), strict=True):
        whole = estimate(request_175b, layout, among=found[1])
        assert verdict.layout == layout
        assert bool(verdict.rule) == (not whole.legal)
        if whole.legal:
            assert verdict.iteration_s == pytest.approx(whole.entry.iteration_s, rel=1e-12)
            assert verdict.memory_bytes == pytest.approx(whole.entry.memory_bytes, rel=1e-12)
        else:
            assert verdict.iteration_s is verdict.memory_bytes is None
            assert verdict.message == whole.illegal_reasons[0].message
    assert judged(where, []) == []


def test_every_knob_of_the_winner_is_put_back_once(found):
    plan, _, where = found
    winner = plan.entries[0]
    worth = bought(where, winner.layout)
    words = str(winner.layout).split()
    for each in worth:
        assert each.knob in words or each.knob.startswith("overlap=")
        assert each.knob != each.instead
        assert each.without.layout != winner.layout
    plain = {"mbs1", "tp1", "pp1"}
    assert {b.knob for b in worth} >= set(words) - plain


def test_a_knob_bought_nothing_illegal_or_unfit_silently(found):
    """The winner is the best that fits, so a simpler neighbour that fits is no faster."""
    plan, _, where = found
    winner = plan.entries[0]
    for each in bought(where, winner.layout):
        assert bool(each.without.rule) == (each.without.iteration_s is None)
        if each.without.fits and each.knob.startswith(("tp", "pp", "vpp", "sp")):
            assert each.without.iteration_s >= winner.iteration_s


def test_uneven_stages_merge_when_chunks_go():
    layout = Layout.parse("tp4 pp4 vpp2 mbs1 sp zero1 stages=1,2*6,1")
    options = simpler(layout)
    assert options["vpp"][0].stage_layers == (3, 4, 4, 3)
    assert options["vpp"][0].schedule == "1f1b"
    assert options["pp"][0].stage_layers == (3, 4, 4, 3)
    assert options["pp"][0].virtual_pipeline_model_parallel_size == 2
    assert options["stages"][0].stage_layers == ()
    alone = options["pp"][-1]
    assert (alone.pipeline_model_parallel_size, alone.virtual_pipeline_model_parallel_size) == (
        1,
        1,
    )


layouts = st.builds(
    Layout,
    tensor_model_parallel_size=st.sampled_from([1, 2, 8]),
    pipeline_model_parallel_size=st.sampled_from([1, 2, 8]),
    virtual_pipeline_model_parallel_size=st.sampled_from([1, 2, 6]),
    context_parallel_size=st.sampled_from([1, 2]),
    cp_comm_type=st.sampled_from(["p2p", "a2a"]),
    expert_model_parallel_size=st.sampled_from([1, 4]),
    micro_batch_size=st.sampled_from([1, 4]),
    sequence_parallel=st.booleans(),
    zero_stage=st.sampled_from([0, 1, 3]),
    recompute_granularity=st.sampled_from(["none", "full"]),
    recompute_num_layers=st.sampled_from([1, 2]),
)


@given(layouts)
@settings(max_examples=200, deadline=None)
def test_simpler_layouts_are_consistent_and_can_be_written(layout):
    layout = consistent(layout)
    assert consistent(layout) == layout
    for options in simpler(layout).values():
        for option in options:
            assert option != layout
            assert Layout.parse(str(option)) == option


def test_steps_are_legal_and_sorted_and_the_helping_one_helps(found):
    _, _, where = found
    layout = Layout.parse("tp2 pp8 mbs1 sp zero1")
    near = steps(where, layout)
    assert near
    assert all(not v.rule for v in near)
    fitting = [v.iteration_s for v in near if v.fits]
    assert fitting == sorted(fitting)
    (now,) = judged(where, [layout])
    assert not now.fits
    better = helping_step(where, layout, now)
    assert better is not None
    assert better.fits
    slow = Layout.parse("tp8 pp8 mbs1 sp zero1 recompute=full/uniform/1")
    (now,) = judged(where, [slow])
    better = helping_step(where, slow, now)
    assert better.iteration_s < now.iteration_s
    assert better.fits


def test_word_changes_name_both_sides():
    a, b = Layout.parse("tp8 pp4 mbs1 sp"), Layout.parse("tp4 pp4 mbs1")
    assert word_changes(a, b) == ("tp8 sp", "tp4")
    assert word_changes(a, a) == ("", "")


def test_a_shortfall_is_what_is_over_capacity():
    request = training_request(model="llama-3.1-405b", num_gpus=8)
    where, result = solved(request)
    assert result.best is None
    miss = shortfall(where, result.nearest_miss)
    assert miss.short_bytes == miss.memory_bytes - request.cluster.gpu.memory_bytes > 0
    assert 0 < miss.largest[1] < miss.memory_bytes
    assert miss.fits_probability < FITS
    assert miss.fits_probability >= result.sample.scores.fits_probability.max()


def test_remedies_are_tried_in_order_and_the_first_that_works_is_named():
    request = training_request(model="gpt-175b", num_gpus=16, cluster="dgx-a100-80gb")
    asked = []

    def only_many_gpus(changed):
        asked.append(changed)
        enough = setting(request), solved(training_request(model="gpt-tiny", num_gpus=1))[1]
        return enough if changed.num_gpus >= 64 else solved(request)

    (remedy,) = first_working(remedies(request), only_many_gpus)
    assert remedy.flags == "--gpus 64"
    assert remedy.feasible > 0
    counts = [r.num_gpus for r in asked if r.num_gpus != 16]
    assert counts == [32, 64]
    sizes = [r.cluster.gpu.memory_bytes for r in asked if r.cluster != request.cluster]
    assert sizes == sorted(sizes)
    assert sizes[0] > request.cluster.gpu.memory_bytes
    assert not [r for r in asked if r.cluster.gpu.generation.startswith("cdna")]


def test_an_odd_batch_is_changed_to_the_nearest_that_has_a_layout(request_175b):
    odd = replace(request_175b, global_batch_size=1537)
    asked = []

    def search(changed):
        asked.append(changed.global_batch_size)
        return solved(changed)

    assert solved(odd)[1].evaluated == 0
    (remedy,) = first_working(lawful(odd), search)
    assert remedy.flags == "--global-batch-size 1536"
    assert asked == [1536]


@pytest.mark.parametrize(
    ("gpus", "batch", "better"), [(1000, 1024, 1000), (1000, 1536, 1500), (100, 509, 500)]
)
def test_a_close_batch_that_all_replicas_divide_comes_first(request_175b, gpus, batch, better):
    odd = replace(request_175b, num_gpus=gpus, global_batch_size=batch)
    first, *others = [flags for kind in lawful(odd) for flags, _ in kind]
    assert first == f"--global-batch-size {better}"
    assert len(others) == len(set(others) - {first}) > 3


def test_a_sample_is_even_and_does_not_depend_on_how_blocks_came(request_175b):
    from autoparallel.planning import candidates_of

    (knobs,) = candidates_of(request_175b, setting(request_175b))
    whole = stratified([knobs], 2_000)
    assert 1_000 < len(whole) <= 2_000
    assert len(set(whole.tolist())) == len(whole)
    mesh = np.stack([getattr(knobs, name) * np.ones(knobs.size) for name in STRATA], axis=1)
    _, stratum, sizes = np.unique(mesh, axis=0, return_inverse=True, return_counts=True)
    counts = np.bincount(stratum.reshape(-1)[whole])
    assert all(counts == np.minimum(sizes, counts.max()))
    half = knobs.size // 2
    parts = [np.arange(half), np.arange(half, knobs.size)]
    thinned = np.concatenate([rows[stratified([knobs.take(rows)], 2_000)] for rows in parts])
    again = thinned[stratified([knobs.take(thinned)], 2_000)]
    assert set(again.tolist()) == set(whole.tolist())
