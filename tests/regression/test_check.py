"""The gate: what fails, what does not, and what it says moved the plan."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from autoparallel.regression import Lock, Samples, Verdict, checked_lock
from autoparallel.regression.kinds import TRAINING, LockEntry, Standing
from autoparallel.regression.numbers import changed, used_numbers
from autoparallel.regression.pin import pinned_lock, repinned
from autoparallel.regression.training import TrainingToday, asked, training_today
from autoparallel.request import training_request

JOB = {"model": "gpt-175b", "num_gpus": 256, "global_batch_size": 256}
SMALL = ("space.micro_batch_size=[1,2]", "space.recompute=[none,layernorm,full/uniform/1]")
FABRIC = "cluster.inter_link.bandwidth_gb_per_s"


@cache
def today(*overrides: str) -> TrainingToday:
    return training_today(training_request(**JOB, overrides=(*SMALL, *overrides)))


@cache
def lock(layout: str = "") -> Lock:
    now = today()
    ask = asked(now.where.request, Path(), {})
    return pinned_lock(TRAINING, ask, now, layout or now.entries[0].layout, versions={})


def verdict(*overrides: str, of: Lock | None = None, **given) -> Verdict:
    return checked_lock(of or lock(), today(*overrides), path="a.lock.yaml", **given)


def failed(found: Verdict) -> list[str]:
    return [finding.rule for finding in found.findings if finding.failed]


def test_nothing_changed():
    found = verdict()
    assert found.passed
    assert [f.rule for f in found.findings] == [
        "legal",
        "fits",
        "iteration_s",
        "memory_bytes",
        "optimum",
    ]
    assert found.changes == ()
    assert found.causes == ()


def test_a_fifth_less_bandwidth_fails_for_that_reason():
    found = verdict(f"{FABRIC}=40")
    assert "iteration_s" in failed(found)
    assert [c.name for c in found.changes] == [FABRIC]
    assert f"{FABRIC} 50 -> 40 (-20.0 %): with the old value it is" in found.causes[0].message


@pytest.mark.parametrize("share", [0.99, 1.01])
@pytest.mark.parametrize(
    ("name", "value"),
    [(FABRIC, 50), ("cluster.intra_link.bandwidth_gb_per_s", 450), ("gpu.memory_gib", 79.1)],
)
def test_one_percent_passes_but_is_noted(name, value, share):
    found = verdict(f"{name}={value * share}")
    assert found.passed
    assert [c.name for c in found.changes] == [name]


def test_more_bandwidth_never_makes_the_pinned_layout_fail():
    assert "iteration_s" not in failed(verdict(f"{FABRIC}=100"))


def test_less_memory_means_it_no_longer_fits():
    found = verdict("gpu.memory_gib=60")
    assert "fits" in failed(found)
    assert any(c.name == "gpu.memory_gib" and "P(fits)" in c.message for c in found.causes)


def test_a_tolerance_a_human_widened_holds():
    wide = {**lock().tolerance, "iteration_s": 0.5, "optimum": 0.5}
    assert verdict(f"{FABRIC}=40", of=replace(lock(), tolerance=wide)).passed


def test_a_layout_that_became_illegal_names_rule_and_number():
    found = verdict("model.num_layers=90")
    assert failed(found) == ["legal"]
    assert "breaks the rule layers" in found.findings[0].message
    assert "model.num_layers 96 -> 90" in found.causes[0].message
    assert "with the old value the pinned layout is legal" in found.causes[0].message


def test_numbers_that_only_together_made_it_illegal_are_all_named():
    both = ("model.num_attention_heads=90", "model.num_query_groups=90", "model.kv_channels=128")
    found = verdict(*both)
    assert failed(found) == ["legal"]
    named = {cause.name for cause in found.causes}
    assert named == {"model.num_attention_heads", "model.num_query_groups"}


def test_the_optimum_moves_when_the_space_opens():
    narrow = ("space.pipeline_model_parallel_size=[32]",)
    now = today(*narrow)
    pinned = pinned_lock(TRAINING, {}, now, now.entries[0].layout, versions={})
    pinned = replace(pinned, request=lock().request)
    found = checked_lock(pinned, today(), path="a")
    assert failed(found) == ["optimum"]
    assert found.best == today().entries[0].layout
    named = [c.name for c in found.causes]
    assert "space.pipeline_model_parallel_size" in named


def test_a_pinned_runner_up_keeps_its_lead_at_the_pin():
    second = today().entries[-1].layout
    held = lock(second)
    assert held.pinned.layout == second
    assert held.runners_up[0].rank == 1
    assert verdict(of=held).passed


@pytest.mark.parametrize("name", ["code.cost", "code.nearby", "profile.nearby"])
def test_changed_code_is_named_when_no_number_explains(name):
    pinned = {**lock().pinned.predicted, "iteration_s": lock().pinned.predicted["iteration_s"] / 2}
    old = replace(
        lock(),
        pinned=replace(lock().pinned, predicted=pinned),
        digests={**lock().digests, name: "0"},
    )
    assert name in lock().digests
    found = verdict(of=old)
    assert failed(found) == ["iteration_s"]
    assert f"changed since the pin: {name}" in found.causes[-1].message


def test_a_constant_is_found_among_many():
    now = today()
    moved = {"constants.gemm_efficiency": 0.6, "constants.moe_traffic": 2.0, "spread.bubble": 0.1}
    where = changed(now.where, moved)
    later = replace(now, where=where)
    found = checked_lock(lock(), later, path="a")
    assert "iteration_s" in failed(found)
    assert {c.name for c in found.changes} == moved.keys()
    assert {c.name for c in found.causes} == {"constants.gemm_efficiency"}


@pytest.mark.parametrize("name", sorted(used_numbers(today().where)))
def test_every_number_put_back_is_the_setting_itself(name):
    numbers = used_numbers(today().where)
    again = changed(today().where, {name: numbers[name]})
    assert used_numbers(again) == numbers


def test_numbers_carry_the_keys_of_their_files():
    numbers = used_numbers(today().where)
    assert (numbers[FABRIC], numbers["gpu.memory_gib"], numbers["gpu.peak_tflops.bf16"]) == (
        50,
        79.1,
        989.4,
    )
    where = changed(today().where, {FABRIC: 25, "gpu.peak_tflops.bf16": 100})
    assert where.request.cluster.inter_link.bandwidth_bytes_per_s == 25e9
    assert where.request.cluster.gpu.peak_flops_per_s["bf16"] == 100e12


# --- pinning again ----------------------------------------------------------------------


def test_update_keeps_note_tolerance_and_a_layout_that_still_leads():
    own = replace(lock(), note="ours", tolerance={**lock().tolerance, "iteration_s": 0.07})
    now = today(f"{FABRIC}=40")
    again = repinned(own, now, verdict(f"{FABRIC}=40", of=own), versions={})
    assert (again.note, again.tolerance) == (own.note, own.tolerance)
    assert again.pinned.layout == own.pinned.layout
    assert again.pinned.predicted["iteration_s"] > own.pinned.predicted["iteration_s"]
    assert checked_lock(again, now, path="a").passed


def test_update_takes_todays_best_when_the_pinned_layout_is_lost():
    now = today("gpu.memory_gib=60")
    again = repinned(lock(), now, verdict("gpu.memory_gib=60"), versions={})
    assert again.pinned.layout == now.entries[0].layout != lock().pinned.layout


# --- measurements -----------------------------------------------------------------------

STEADY = (10.0, 10.1, 9.9, 10.05, 9.95, 10.02)


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.02, True), (1.2, False)])
def test_measured_runs_are_held_against_the_pinned_ones(factor, passes):
    own = replace(lock(), measured=Samples(source="then", values={"iteration_s": STEADY}))
    new = Samples(source="now", values={"iteration_s": tuple(x * factor for x in STEADY)})
    found = verdict(of=own, measured=[new])
    assert found.passed is passes
    assert failed(found) == ([] if passes else ["measured.iteration_s"])


# --- a kind without layouts of the grammar ----------------------------------------------


class Flat:
    """Two choices with fixed figures; `slow` is led by `fast`."""

    objective = "iteration_s"
    counts: dict[str, int] = {}  # noqa: RUF012
    used: dict[str, object] = {}  # noqa: RUF012
    digests: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, slow: float, fast: float, tie: bool) -> None:
        self._seconds, self._tie = {"slow": slow, "fast": fast}, tie

    def entry(self, layout):
        return LockEntry(rank=1, layout=layout, fields={}, intervals={}, parts={},
                         predicted=self.standing(layout, {}).figures)  # fmt: skip

    @property
    def entries(self):
        return tuple(self.entry(x) for x in sorted(self._seconds, key=self._seconds.get))

    def standing(self, layout, changes):
        return Standing(legal=True, figures={"iteration_s": self._seconds[layout]})

    def best(self, changes):
        return self.entries[0].layout

    def tied(self, layout):
        return self._tie


@pytest.mark.parametrize(
    ("fast", "tie", "passes"),
    [(1.0, False, True), (0.995, False, True), (0.9, True, True), (0.9, False, False)],
)
def test_the_optimum_fails_only_beyond_tolerance_and_noise(fast, tie, passes):
    held = replace(lock(), pinned=Flat(1.0, 1.1, False).entry("slow"), runners_up=(), used={},
                   digests={}, counts={})  # fmt: skip
    found = checked_lock(held, Flat(1.0, fast, tie), path="a")
    assert found.passed is passes
