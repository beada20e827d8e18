"""Sweeps: cases, decisions, prices, and that nothing is lost when one stops."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from autoparallel.cli import main
from autoparallel.errors import CatalogError, ConfigError
from autoparallel.planning import search
from autoparallel.request import training_request
from autoparallel.sweep import (
    Axes,
    Limits,
    SweepResult,
    break_evens,
    cases,
    decided,
    decisions,
    run_cases,
    scaled,
)
from autoparallel.sweep import running as running_module
from autoparallel.sweep.results import load, save

TINY = Axes(model=("gpt-tiny",), num_gpus=(8, 16), global_batch_size=(16, 32))


def result(**values) -> SweepResult:
    plain = {
        "id": f"{len(values)}-{values.get('num_gpus', 8)}-{values.get('cluster', 'a')}",
        "model": "m",
        "cluster": "a",
        "framework": "f",
        "precision": "bf16",
        "num_gpus": 8,
        "global_batch_size": 64,
        "seq_length": 128,
        "state": "ok",
        "iteration_s": 1.0,
        "tokens_per_s": 1000.0,
    }
    return SweepResult(**{**plain, **values})


# --- cases


def test_cases_are_the_product_each_a_request_of_its_own() -> None:
    found = cases(TINY)
    assert [(c.values["global_batch_size"], c.values["num_gpus"]) for c in found] == [
        (16, 8),
        (16, 16),
        (32, 8),
        (32, 16),
    ]
    assert len({c.id for c in found}) == 4
    assert [c.id for c in cases(TINY)] == [c.id for c in found]
    dear = replace(TINY, usd_per_gpu_hour={"dgx-h100": 3.0})
    assert {c.id for c in cases(dear)}.isdisjoint(c.id for c in found)
    assert cases(dear)[0].request.cluster.usd_per_gpu_hour == 3.0


def test_weak_scaling_keeps_the_batch_a_gpu() -> None:
    weak = cases(replace(TINY, num_gpus=(8, 16, 32), global_batch_size=(16,), weak=True))
    assert [c.request.global_batch_size for c in weak] == [16, 32, 64]


def test_the_same_case_twice_is_one() -> None:
    twice = replace(TINY, cluster=(None, "dgx-h100"))
    assert len(cases(twice)) == len(cases(TINY))


def test_an_impossible_case_is_a_row_and_a_wrong_name_an_error() -> None:
    mixed = replace(TINY, cluster=("dgx-a100-80gb", "dgx-b200"), precision=("nvfp4",))
    found = cases(mixed)
    assert [c.request is None for c in found] == [True] * 4 + [False] * 4
    states = {r.cluster: r.state for r in run_cases(found)}
    assert states["dgx-a100-80gb"] == "error"
    with pytest.raises(CatalogError, match="dgx-h1000"):
        cases(replace(TINY, cluster=("dgx-h100", "dgx-h1000")))
    with pytest.raises(ConfigError, match="no case is possible"):
        cases(replace(TINY, cluster=("dgx-a100-80gb",), precision=("nvfp4",)))
    with pytest.raises(ConfigError, match="10,000"):
        cases(replace(TINY, num_gpus=tuple(range(1, 9000))))


# --- running


def test_a_result_is_what_a_search_says() -> None:
    found = run_cases(cases(replace(TINY, num_gpus=(8,), global_batch_size=(16,))))[0]
    best = search(training_request(model="gpt-tiny", num_gpus=8, global_batch_size=16)).entries[0]
    assert (found.state, found.layout) == ("ok", str(best.layout))
    assert found.iteration_s == pytest.approx(best.iteration_s)
    assert found.tokens_per_s == pytest.approx(best.tokens_per_s_per_gpu * 8)
    assert found.days == pytest.approx(best.days)


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    found = cases(TINY)
    searched = []

    def stops(case):
        if len(searched) == 2:
            raise KeyboardInterrupt
        searched.append(case.id)
        return running_module.__dict__["original"](case)

    monkeypatch.setattr(running_module, "original", running_module.searched_case, raising=False)
    monkeypatch.setattr(running_module, "searched_case", stops)
    with pytest.raises(KeyboardInterrupt):
        run_cases(found, tmp_path)
    before = {p.name: p.read_bytes() for p in (tmp_path / "cases").iterdir()}
    assert sorted(before) == sorted(f"{name}.json" for name in searched)
    (tmp_path / "cases" / f"{found[2].id}.json").write_text('{"half": ')
    seen = []
    monkeypatch.setattr(
        running_module,
        "searched_case",
        lambda case: seen.append(case.id) or running_module.__dict__["original"](case),
    )
    results = run_cases(found, tmp_path)
    assert seen == [case.id for case in found if case.id not in searched]
    assert [r.id for r in results] == [case.id for case in found]
    for name, data in before.items():
        assert (tmp_path / "cases" / name).read_bytes() == data


def test_saved_results_read_back_and_others_are_not_taken(tmp_path) -> None:
    kept = result(days=3.5, message="é")
    path = save(kept, tmp_path)
    assert load(tmp_path, kept.id) == kept
    values = json.loads(path.read_text())
    for change in ({"schema_version": 2}, {"extra": 1}, {"id": "x"}, {"state": "fine"}):
        path.write_text(json.dumps(values | change))
        assert load(tmp_path, kept.id) is None


@pytest.mark.ray
def test_on_ray_it_is_the_same(tmp_path) -> None:
    pytest.importorskip("ray")
    found = cases(TINY)
    here = run_cases(found)
    there = run_cases(found, tmp_path, "local")
    assert [replace(r, search_s=None) for r in there] == [replace(r, search_s=None) for r in here]
    assert len(list((tmp_path / "cases").iterdir())) == 4


def test_a_ray_that_is_not_there_is_an_error() -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"--ray-address: 'nowhere:port'"):
        run_cases(cases(TINY), None, "nowhere:port")


# --- answers


def test_scaling_is_against_the_smallest_of_its_line() -> None:
    line = [
        result(id="a", num_gpus=8, tokens_per_s=100.0),
        result(id="b", num_gpus=16, tokens_per_s=180.0),
        result(id="c", num_gpus=16, tokens_per_s=190.0, global_batch_size=128),
        result(id="d", num_gpus=32, state="nothing_fits", tokens_per_s=None),
    ]
    found = {(s.id, s.kind): s for s in scaled(line)}
    assert set(found) == {("a", "strong"), ("b", "strong"), ("a", "weak"), ("c", "weak")}
    assert found["b", "strong"].efficiency == pytest.approx(0.9)
    assert found["c", "weak"].speedup == pytest.approx(1.9)


def test_the_decision_depends_on_the_objective_and_the_limits() -> None:
    few = result(id="few", num_gpus=8, days=20.0, cost_usd=100.0, energy_kwh=9.0)
    many = result(id="many", num_gpus=64, days=4.0, cost_usd=160.0, energy_kwh=12.0)
    roomy = result(id="roomy", num_gpus=16, days=15.0, cost_usd=120.0, energy_kwh=10.0)
    few, many = replace(few, free_memory_fraction=0.1), replace(many, free_memory_fraction=0.2)
    roomy = replace(roomy, free_memory_fraction=0.6)
    found = [few, many, roomy]
    picks = {
        ("iteration_s", Limits()): "many",
        ("cost_usd", Limits()): "few",
        ("energy_kwh", Limits()): "few",
        ("memory_bytes", Limits()): "roomy",
        ("cost_usd", Limits(max_days=16)): "roomy",
        ("iteration_s", Limits(max_usd=130)): "roomy",
        ("energy_kwh", Limits(max_days=5)): "many",
    }
    for (objective, limits), name in picks.items():
        assert decided(found, limits, objective).id == name
    assert decided(found, Limits(max_days=1), "cost_usd") is None
    free = [replace(r, cost_usd=None) for r in found]
    assert decided(free, Limits(), "cost_usd").id == "few"
    assert decided(free, Limits(max_usd=1e9), "cost_usd") is None
    assert decided([replace(few, cost_usd=None), many], Limits(), "cost_usd").id == "many"


def test_every_job_has_a_decision_of_its_own() -> None:
    found = [
        result(id="a", days=5.0, cost_usd=1.0),
        result(id="b", days=4.0, cost_usd=2.0, num_gpus=16),
        result(id="c", days=9.0, cost_usd=9.0, model="other"),
        result(id="d", days=1.0, cost_usd=0.5, seq_length=256),
        result(id="e", days=2.0, cost_usd=0.4, seq_length=256, state="error"),
    ]
    assert [r.id for r in decisions(found, Limits(), "iteration_s")] == ["b", "c", "d"]
    assert [r.id for r in decisions(found, Limits(max_usd=2), "cost_usd")] == ["a", "d"]


def test_at_the_break_even_price_both_cost_the_same() -> None:
    slow = result(id="s", cluster="old", days=10.0, usd_per_gpu_hour=1.5)
    fast = result(id="f", cluster="new", days=4.0)
    (found,) = break_evens([slow, fast])
    assert (found.cluster, found.other) == ("new", "old")
    assert found.ratio == pytest.approx(2.5)
    assert found.usd_per_gpu_hour * fast.gpu_hours == pytest.approx(1.5 * slow.gpu_hours)


# --- the command


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["sweep", *map(str, argv)])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


PRICED = ("--model", "llama-3.1-8b", "--gpus", "64,256", "--price", "dgx-h100=2")


def test_objectives_pick_differently_over_gpus(run) -> None:
    picked = {}
    for word in ("time", "cost", "energy"):
        code, out, _ = run(*PRICED, "--objective", word, "--json", "--out", "s")
        answer = json.loads(out)
        assert code == 0
        (best,) = [c for c in answer["cases"] if [c["id"]] == answer["best"]]
        picked[word] = best["num_gpus"]
    assert picked == {"time": 256, "cost": 64, "energy": 64}
    answer = json.loads(Path("s/sweep.json").read_text())
    days = {c["num_gpus"]: c["days"] for c in answer["cases"]}
    code, out, _ = run(*PRICED, "--max-days", (days[64] + days[256]) / 2, "--out", "s")
    assert code == 0
    assert "Take llama-3.1-8b on 256 x dgx-h100 (cheapest within" in out
    with Path("s/sweep.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["days"]) for row in rows] == [days[64], days[256]]


def test_a_decision_names_its_sequence_where_there_are_several(run) -> None:
    job = ("--model", "gpt-tiny", "--cluster", "local-cpu", "--gpus", "2")
    _, out, _ = run(*job, "--seq-length", "32,64")
    assert "Take gpt-tiny at 32 tokens a sequence on 2 x" in out
    assert "Take gpt-tiny at 64 tokens a sequence on 2 x" in out
    _, out, _ = run(*job, "--seq-length", "32")
    assert "Take gpt-tiny on 2 x" in out


def test_limits_that_nothing_meets_are_exit_3_after_the_table(run) -> None:
    code, out, err = run(*PRICED, "--max-days", "0.001", "--json")
    assert code == 3
    assert json.loads(out)["best"] == []
    assert "none of 2 cases stays within the limits; the shortest takes" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ("--model", "missing")),
        (("--model", "gpt-tiny"), ("--gpus", "missing")),
        (("--model", "gpt-tiny", "--gpus", "8,x"), ("--gpus: 'x'", "whole number")),
        (("--model", "gpt-tiny", "--gpus", "8,,9"), ("--gpus", "empty value")),
        ((*PRICED, "--price", "dgx-h100=free"), ("--price: 'dgx-h100=free'",)),
        ((*PRICED, "--price", "dgx-h20=2"), ("'dgx-h20'", "'dgx-h100'")),
        ((*PRICED, "--max-days", "-1"), ("--max-days: -1",)),
        ((*PRICED, "--objective", "money"), ("'money'",)),
    ],
)
def test_bad_input_is_exit_2(run, flags, words) -> None:
    code, out, err = run(*flags)
    assert (code, out) == (2, "")
    for word in words:
        assert word in err
