"""`validate` of serving figures: recognised, predicted, scored, ranked."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from autoparallel.calibration.serving import _work_share, cell, fittable, metric
from autoparallel.calibration.serving_cases import predicted, understood_serving
from autoparallel.cli import main
from autoparallel.measured.serving_rows import COLUMNS, ServingRun, read_serving_runs
from autoparallel.scoreboard import validate
from autoparallel.scoreboard.serving import order_block, scored_serving, serving_block

SHIPPED = Path(__file__).parents[2]
MEASURED = SHIPPED / "benchmarks" / "measured" / "inference.csv"
RUN = ServingRun(
    framework_version="vllm 0.12.0",
    model="Qwen/Qwen3-32B",
    gpu="h100-sxm-80gb",
    tp=4,
    isl=1024,
    osl=128,
    batch_or_concurrency="16",
    metric="tpot_ms",
    value=14.3,
)


def vary(**changes) -> ServingRun:
    return ServingRun(**(asdict(RUN) | changes))


def write(path: Path, runs) -> Path:
    rows = [",".join("" if v is None else str(v) for v in asdict(r).values()) for r in runs]
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def today():
    readings, skipped = understood_serving(read_serving_runs(MEASURED))
    return scored_serving(readings, predicted(readings), len(readings), skipped), readings


def test_every_shipped_figure_is_predicted(today):
    score, _ = today
    assert (score.rows, len(score.table), dict(score.skipped)) == (1185, 1185, {})
    assert np.all(np.isfinite(score.table.predicted))


def test_the_goals_hold_on_the_open_rows(today):
    block = serving_block(today[0].table)
    assert block["tpot"]["mape"] < 0.15
    assert block["ttft"]["mape"] < 0.38
    assert block["throughput"]["mape"] < 0.10
    assert block["ranking"]["by_metric"]["tpot"]["top1"] > 0.9


def test_cuts_hold_every_row_once(today):
    block = serving_block(today[0].table)
    for cut in ("by_model", "by_gpu", "by_backend", "by_precision"):
        rows = [m["n"] for part in block[cut].values() for m in part.values()]
        assert sum(rows) == 1185


def test_a_row_that_cannot_be_predicted_is_skipped_with_its_reason():
    readings, skipped = understood_serving(
        [
            RUN,
            vary(model="glorp-7b"),
            vary(gpu="abacus"),
            vary(framework_version="llama.cpp 1"),
            vary(metric="joules"),
            vary(notes="disagg;x"),
            vary(kv_dtype="int2"),
            vary(precision="fp3"),
        ]
    )
    assert len(readings) == 1
    assert len(skipped) == 7
    assert all(":" in reason for reason in skipped)


def test_a_disk_of_figures_scores_as_the_contract_says(tmp_path, capsys):
    file = write(tmp_path / "mine.csv", [RUN, vary(metric="ttft_ms", value=149.0), vary(model="x")])
    with pytest.raises(SystemExit) as stop:
        main(["validate", str(file), "--json"])
    assert stop.value.code in (0, None)
    answer = json.loads(capsys.readouterr().out)
    schema = json.loads((SHIPPED / "docs" / "schemas" / "validate.schema.json").read_text())
    Draft202012Validator(schema).validate(answer)
    assert (answer["rows"], answer["scored"]) == (3, 2)
    assert answer["inference"]["tpot"]["n"] == answer["inference"]["ttft"]["n"] == 1
    assert answer["inference"]["throughput"]["n"] == 0
    assert answer["time"]["n"] == 0


def test_the_screen_shows_serving_and_no_empty_training_table(tmp_path, capsys):
    file = write(tmp_path / "mine.csv", [RUN])
    with pytest.raises(SystemExit):
        main(["validate", str(file)])
    out = capsys.readouterr().out
    assert "tpot, qwen3-32b" in out
    assert "step time" not in out


def test_training_and_serving_files_score_together(tmp_path):
    head, first = (SHIPPED / "benchmarks" / "measured" / "training.csv").read_text().split("\n")[:2]
    trained = tmp_path / "trained.csv"
    trained.write_text(f"{head}\n{first}\n")
    score = validate([trained, write(tmp_path / "served.csv", [RUN])])
    assert (score.rows, len(score.table), len(score.serving)) == (2, 1, 1)
    assert score.inference is not None
    assert validate([trained]).inference is None
    assert validate(str(trained)).to_json() == validate([trained]).to_json()


def test_the_choice_of_sizes_is_ours_judged_by_what_was_measured():
    readings, _ = understood_serving([vary(tp=tp, value=v) for tp, v in ((2, 30.0), (8, 10.0))])
    right = scored_serving(readings, np.array([40.0, 20.0]), 2)
    wrong = scored_serving(readings, np.array([20.0, 40.0]), 2)
    assert order_block(right.table)["top1"] == 1.0
    assert order_block(wrong.table)["top1"] == 0.0
    assert order_block(wrong.table)["mean_regret"] == pytest.approx(2.0)


def test_more_throughput_is_better():
    rate = {"batch_or_concurrency": "max", "metric": "throughput_tok_s_total"}
    runs = [vary(tp=tp, value=v, **rate) for tp, v in ((2, 3000.0), (8, 9000.0))]
    readings, _ = understood_serving(runs)
    assert order_block(scored_serving(readings, np.array([1.0, 2.0]), 2).table)["top1"] == 1.0


def test_one_row_alone_is_no_choice():
    readings, _ = understood_serving([RUN, vary(value=14.5)])
    table = scored_serving(readings, np.array([1.0, 2.0]), 2).table
    assert order_block(table)["groups"] == 0


def test_tokens_of_a_gpu_are_those_of_the_run_over_its_gpus():
    rate = {"batch_or_concurrency": "max", "gpus": 4}
    total, each = understood_serving(
        [vary(metric=m, **rate) for m in ("throughput_tok_s_total", "tokens_s_per_gpu")]
    )[0]
    ours = predicted([total, each])
    assert ours[0] == pytest.approx(4 * ours[1])


def test_a_sweep_that_does_more_than_the_gpu_can_is_not_fitted(today):
    _, readings = today
    kept = {cell(r)[:-1] for r in fittable(readings)}
    odd = {cell(r)[:-1] for r in readings} - kept
    assert {(name[0], name[1], name[2]) for name in odd} == {
        ("vllm-hopper", "llama-3.1-8b", "h200-sxm-141gb")
    }
    (slow, fast), _ = understood_serving([RUN, vary(value=0.5)])
    first, _ = understood_serving([vary(metric="ttft_ms", value=10.0)])
    assert _work_share({"tpot_ms": slow, "ttft_ms": first[0]}) < 0.7
    assert _work_share({"tpot_ms": fast, "ttft_ms": first[0]}) > 0.7
    assert metric(slow) == "tpot"
