"""The page of a serving run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoparallel import catalog
from autoparallel.cli import main
from autoparallel.errors import ConfigError
from autoparallel.reporting.front import read_front
from autoparallel.reporting.report import read_report
from autoparallel.reporting.serving import (
    decision,
    read_serving_run,
    serving_page,
    step_bars,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("serving") / "run"
    limits = ("--ttft-ms", "2000", "--tpot-ms", "50", "--backend", "vllm")
    shape = ("--input-tokens", "1000", "--output-tokens", "200", "--disaggregated", "off")
    job = ("infer", "--model", "llama-3.1-8b", "--gpus", "8", *shape, *limits, "--quiet")
    with pytest.raises(SystemExit) as stop:
        main([*job, "--out", str(path)])
    assert stop.value.code == 0
    return path


def test_the_page_has_the_plans_decision_and_its_figures(folder):
    report = read_report([folder])
    best = read_serving_run(folder).plan.entries[0]
    assert report.page.decision.startswith(f"Deploy {best.backend} {best.mode}")
    assert f"{best.backend} aggregated, {best.workers[0].replicas} × tp" in report.page.decision
    assert f"{best.tokens_per_s:,.0f} tokens/s" in report.page.decision
    assert len(report.page.drawings) >= 8
    assert len({d.name for d in report.page.drawings}) == len(report.page.drawings)
    assert report.beside == {}


def test_the_page_says_whose_figures_the_numbers_rest_on(folder):
    run = read_serving_run(folder)
    assert "measured figures of vllm-hopper" in str(serving_page(run))
    gpu = catalog.gpu("b300-sxm-288gb")
    elsewhere = replace(run.request, cluster=replace(run.request.cluster, gpu=gpu))
    said = str(serving_page(replace(run, request=elsewhere)))
    assert "No figure of vllm-blackwell is known: numbers are assumed" in said


def test_a_column_of_prices_stands_where_there_are_prices(folder):
    run = read_serving_run(folder)
    assert "USD/M tokens" not in str(serving_page(run))
    entries = tuple(replace(e, usd_per_million_tokens=1.25) for e in run.plan.entries)
    priced = str(serving_page(replace(run, plan=replace(run.plan, entries=entries))))
    assert "USD/M tokens" in priced
    assert "1.25" in priced


def test_step_bars_are_the_entrys_parts(folder):
    run = read_serving_run(folder)
    assert decision(run).endswith(".")
    best = run.plan.entries[0]
    total = sum(bar.total for kind in ("decode", "prompt") for bar in step_bars([best], kind))
    assert total == pytest.approx(sum(best.parts.values()))


def test_the_front_rises_in_one_as_it_falls_in_the_other(folder):
    points = read_front(folder)
    assert len(points) > 1
    rates = [p.per_gpu for p in points]
    assert rates == sorted(rates, reverse=True)
    assert [p.per_user for p in points] == sorted(p.per_user for p in points)


def test_a_broken_front_is_refused_and_a_missing_one_is_empty(tmp_path):
    assert read_front(tmp_path) == ()
    (tmp_path / "pareto.csv").write_text("backend,mode\nvllm,aggregated\n")
    with pytest.raises(ConfigError, match="front of deployments"):
        read_front(tmp_path)


def test_serving_runs_are_reported_alone(folder, run_folder):
    for paths, baseline in (([folder, run_folder], ""), ([folder], "tp8")):
        with pytest.raises(ConfigError, match="serving run"):
            read_report(paths, baseline)
