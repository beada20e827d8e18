"""Planning: a request in, a plan out that agrees with the rules, the estimates and itself."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoparallel import planning
from autoparallel.constants import FITS
from autoparallel.cost.memory import PARTS
from autoparallel.cost.step import StepTime
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout, knobs
from autoparallel.plan import Plan, PlanEntry
from autoparallel.profiles import Calibration
from autoparallel.ranking import setting
from autoparallel.ranking.short_list import MESH, SAME_MESH
from autoparallel.request import TrainingRequest, training_request

REQUESTS = {
    "tiny": {"model": "gpt-tiny", "num_gpus": 2, "cluster": "local-cpu"},
    "llama": {"model": "llama-3.1-8b", "num_gpus": 8},
    "mixtral": {"model": "mixtral-8x7b", "num_gpus": 64, "space": "narrow"},
}
NUMBERS = ("iteration_s", "memory_bytes", "tokens_per_s_per_gpu", "model_flops_utilization", "days")


@cache
def request_of(name: str) -> TrainingRequest:
    flags = dict(REQUESTS[name])
    if flags.pop("space", None):
        flags["overrides"] = ("space.micro_batch_size=[1,2]", "space.context_parallel_size=[1]")
    return training_request(**flags)  # type: ignore[arg-type]


@cache
def plan_of(name: str) -> Plan:
    return planning.search(request_of(name))


EACH = pytest.mark.parametrize("name", REQUESTS)
ENTRIES = pytest.mark.parametrize(
    ("name", "place"), [(n, i) for n in REQUESTS for i in (0, 1, 4, 9)]
)


def without_clock(plan: Plan) -> dict[str, Any]:
    return plan.to_json() | {"search_s": None}


# ---- the plan ------------------------------------------------------------------------------------


@EACH
def test_every_candidate_is_counted_once(name: str) -> None:
    plan = plan_of(name)
    assert plan.considered == plan.legal + sum(plan.pruned.values())
    assert all(count > 0 for count in plan.pruned.values())
    assert plan.legal >= plan.evaluated >= plan.feasible >= len(plan.entries) > 0
    assert list(plan.pruned.values()) == sorted(plan.pruned.values(), reverse=True)
    assert plan.search_s > 0


@EACH
def test_every_entry_is_legal_and_fits(name: str) -> None:
    request = request_of(name)
    where = setting(request)
    for entry in plan_of(name).entries:
        one = knobs([entry.layout], [request.num_gpus], [request.global_batch_size])
        assert planning.illegal_reasons(where, one) == ()
        assert entry.fits_probability >= FITS


@EACH
def test_every_gpu_and_every_sequence_is_used(name: str) -> None:
    request = request_of(name)
    for entry in plan_of(name).entries:
        layout, dp = entry.layout, entry.data_parallel_size
        assert dp * layout.model_parallel_size == request.num_gpus
        sequences = entry.num_micro_batches * layout.micro_batch_size * dp
        assert sequences == request.global_batch_size


@EACH
def test_best_first_and_chances_of_one(name: str) -> None:
    entries = plan_of(name).entries
    assert [e.rank for e in entries] == list(range(1, len(entries) + 1))
    times = [e.iteration_s for e in entries]
    assert times == sorted(times)
    assert sum(e.best_probability for e in entries) == pytest.approx(1)
    far = [e for e in entries if e.iteration_s > 1.5 * times[0]]
    assert all(e.best_probability < entries[0].best_probability for e in far)
    assert len({e.layout for e in entries}) == len(entries)


@EACH
def test_the_list_is_not_ten_times_the_same(name: str) -> None:
    def mesh(entry: PlanEntry) -> tuple[int, ...]:
        one = knobs([entry.layout], [1], [1])
        return tuple(int(getattr(one, knob)[0]) for knob in MESH)

    meshes = [mesh(e) for e in plan_of(name).entries]
    assert max(meshes.count(m) for m in meshes) <= SAME_MESH or len(set(meshes)) < 4


@EACH
def test_numbers_of_an_entry_agree_with_each_other(name: str) -> None:
    request = request_of(name)
    tokens = request.global_batch_size * request.seq_length
    for entry in plan_of(name).entries:
        low, high = entry.iteration_s_interval
        assert low < entry.iteration_s < high
        rate = entry.tokens_per_s_per_gpu * request.num_gpus
        assert rate * entry.iteration_s == pytest.approx(tokens)
        assert 0 < entry.model_flops_utilization < 1
        assert sum(entry.parts.values()) == pytest.approx(entry.iteration_s)
        assert sum(entry.memory_parts.values()) == pytest.approx(entry.memory_bytes)
        assert tuple(entry.memory_parts) == PARTS
        assert entry.days > request.tokens / rate / 86_400
        origin = entry.origin
        assert origin.measured + origin.published + origin.assumed == pytest.approx(1)


def test_shares_of_a_step_stay_shares_when_they_are_rounded() -> None:
    names = ("gemm_efficiency", "dp_exposed", "launch_s_per_layer")
    known = Calibration(family="any", measured_names=names)
    parts = [f.name for f in fields(StepTime)]
    for seed in range(200):
        drawn = np.random.default_rng(seed).uniform(0.1, 2.0, len(parts))
        step = StepTime(**{**dict(zip(parts, drawn.tolist(), strict=True)), "bubble_s": 0.0})
        found = planning.origin(known, step)
        assert 0.999 < found.measured <= 1


def test_the_contract_names_every_part() -> None:
    contract = (Path(__file__).parents[1] / "docs" / "contracts.md").read_text()
    entry = plan_of("tiny").entries[0]
    assert [n for n in (*entry.parts, *entry.memory_parts) if f"`{n}`" not in contract] == []


@EACH
def test_the_same_question_gets_the_same_answer(name: str) -> None:
    again = planning.search(request_of(name))
    assert without_clock(again) == without_clock(plan_of(name))


@EACH
def test_a_saved_request_gets_the_same_answer(name: str) -> None:
    back = TrainingRequest.from_mapping(request_of(name).to_mapping())
    assert back == request_of(name)
    assert without_clock(planning.search(back)) == without_clock(plan_of(name))


def test_a_shorter_list_starts_the_same() -> None:
    long, short = plan_of("llama"), planning.search(request_of("llama"), top=2)
    assert len(short.entries) == 2
    assert [e.layout for e in short.entries] == [e.layout for e in long.entries[:2]]
    shown = [e.best_probability for e in long.entries[:2]]
    assert [e.best_probability for e in short.entries] == shown, "chances are of the usual list"


def test_another_objective_is_followed() -> None:
    thrifty = planning.search(replace(request_of("llama"), objective="memory_bytes"))
    sizes = [e.memory_bytes for e in thrifty.entries]
    assert sizes == sorted(sizes)
    assert sizes[0] < min(e.memory_bytes for e in plan_of("llama").entries)


def test_more_gpus_are_faster_and_a_longer_run_takes_longer() -> None:
    request = request_of("llama")
    more = planning.search(replace(request, num_gpus=16), top=1).entries[0]
    longer = planning.search(replace(request, tokens=request.tokens * 3), top=1).entries[0]
    best = plan_of("llama").entries[0]
    assert more.iteration_s < best.iteration_s
    assert longer.days == pytest.approx(3 * best.days)
    assert longer.iteration_s == best.iteration_s


def test_unknown_tokens_leave_days_and_cost_open() -> None:
    entry = planning.search(replace(request_of("llama"), tokens=None), top=1).entries[0]
    assert (entry.days, entry.cost_usd, entry.energy_kwh, entry.co2_kg) == (None,) * 4
    assert entry.iteration_s == plan_of("llama").entries[0].iteration_s


def test_numerics_stay_as_asked_unless_allowed() -> None:
    request = training_request(model="llama-3.1-8b", num_gpus=8, space="full", **SMALL)
    kept, moved = (
        planning.search(replace(request, allow_numerics=flag, overrides=()), top=30)
        for flag in (False, True)
    )
    assert {e.layout.precision for e in kept.entries} == {"bf16"}
    assert {e.layout.grad_reduce_dtype for e in kept.entries} == {"fp32"}
    assert "fp8" in {e.layout.precision for e in moved.entries}
    assert moved.considered > kept.considered


SMALL: dict[str, Any] = {
    "overrides": (
        "space.context_parallel_size=[1]",
        "space.micro_batch_size=[1]",
        "space.pipeline_model_parallel_size=[1,2]",
        "space.recompute=[none]",
        "space.cuda_graph_scope=[none]",
        "space.optimizer_offload_fraction=[0]",
    )
}


# ---- estimates -----------------------------------------------------------------------------------


@ENTRIES
def test_an_estimate_repeats_the_plan_s_numbers(name: str, place: int) -> None:
    entry = plan_of(name).entries[place]
    found = planning.estimate(request_of(name), Layout.parse(str(entry.layout)))
    assert found.legal
    assert found.illegal_reasons == ()
    for number in (*NUMBERS, "fits_probability", "cost_usd", "energy_kwh"):
        expected = getattr(entry, number)
        assert getattr(found.entry, number) == (expected and pytest.approx(expected, rel=1e-12))
    for block in ("parts", "memory_parts"):
        assert getattr(found.entry, block) == pytest.approx(getattr(entry, block), rel=1e-12)
    assert found.entry.num_micro_batches == entry.num_micro_batches
    assert found.place.of == plan_of(name).feasible
    faster = [e for e in plan_of(name).entries if e.iteration_s < entry.iteration_s * (1 - 1e-9)]
    assert found.place.rank >= len(faster) + 1
    if not faster:
        assert found.place.rank == 1


@pytest.mark.parametrize(
    "text",
    ["tp3 mbs1", "tp8 pp2 mbs1", "mbs3", "tp16 mbs1", "pp2 vpp5 mbs1", "ep8 mbs1", "sp mbs1 zero2"],
)
def test_an_illegal_layout_has_reasons_and_no_numbers(text: str) -> None:
    found = planning.estimate(request_of("llama"), Layout.parse(text))
    assert not found.legal
    assert found.place is None
    for reason in found.illegal_reasons:
        assert reason.rule
        assert reason.fields
        assert len(reason.message) > 10
    assert found.illegal_reasons
    data = found.to_json()
    empty = (*NUMBERS, "parts", "memory_parts", "iteration_s_interval", "fits_probability", "rank")
    assert {data[key] for key in empty} == {None}
    assert data["legal"] is False
    assert Layout.parse(data["layout"]) == found.entry.layout


def test_a_layout_too_large_for_memory_is_estimated_all_the_same() -> None:
    found = planning.estimate(request_of("llama"), Layout.parse("tp1 mbs4 zero0 overlap=grad"))
    assert found.legal
    assert found.entry.fits_probability < 0.01
    assert found.entry.iteration_s > 0
    assert found.entry.memory_bytes > 80e9


def test_a_layout_outside_the_space_has_its_place_too() -> None:
    request = replace(request_of("llama"), space={"tensor_model_parallel_size": [1]})
    found = planning.estimate(request, Layout.parse("tp8 sp mbs1"))
    assert found.legal
    assert found.place.of < plan_of("llama").feasible
    assert found.place.rank > 1


@pytest.mark.parametrize("bad", [{"framework": "megatron-cor"}, {"space": {"tp": [1]}}])
def test_a_request_that_cannot_be_used_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        planning.search(replace(request_of("tiny"), **bad))
