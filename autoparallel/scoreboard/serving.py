"""Scores of serving predictions: time to first token, time per token, maximum throughput.

Latencies are those of a closed loop of the stated concurrency that all clients start at once;
throughput is the engine's at an infinite rate. Errors are relative to the figure as measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoparallel.calibration.serving import metric
from autoparallel.calibration.serving_cases import (
    ROUNDS,
    ServingReading,
    predicted,
    understood_serving,
)
from autoparallel.calibration.serving_run import ServingCalibrated
from autoparallel.constants import NORMAL_90
from autoparallel.cost.unique import gathered
from autoparallel.measured.serving_rows import read_serving_runs
from autoparallel.scoreboard.scores import Block, Column, Errors, error_block

METRICS = ("ttft", "tpot", "throughput")
LOADS = {
    "ttft": f"closed loop at the stated concurrency, {ROUNDS:g} rounds, all clients start at once",
    "tpot": f"closed loop at the stated concurrency, {ROUNDS:g} rounds, all clients start at once",
    "throughput": "infinite rate, offline: as many requests run as fit; those of TensorRT-LLM as "
    "`trtllm-bench throughput` runs them",
}
CLOSE = 0.03
"""Share by which a choice may be behind the measured best and still count as close."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingTable:
    """N measured figures with their predictions; every column is [N].

    Attributes:
        job: All that a figure shares with those of other parallel sizes.
        sizes: Its parallel sizes.
    """

    predicted: Column
    measured: Column
    low: Column
    high: Column
    metric: NDArray[np.str_]
    model: NDArray[np.str_]
    gpu: NDArray[np.str_]
    backend: NDArray[np.str_]
    precision: NDArray[np.str_]
    release: NDArray[np.str_]
    job: NDArray[np.str_]
    sizes: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.predicted)

    def take(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> ServingTable:
        """The rows at `index`."""
        rows: ServingTable = gathered(self, index)
        return rows

    @property
    def errors(self) -> Errors:
        """Predicted and measured figures."""
        return Errors(
            predicted=self.predicted, measured=self.measured, low=self.low, high=self.high
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingScore:
    """Files of serving figures, scored.

    Attributes:
        rows: Figures read.
        skipped: Reason -> figures that could not be predicted.
    """

    rows: int
    skipped: Mapping[str, int]
    table: ServingTable


def validate_serving(
    files: Sequence[str | Path],
    config_dir: Path | None = None,
    profiles_dir: Path | None = None,
) -> ServingScore:
    """Predict every serving figure in `files`.

    Raises:
        ProfileError: a file that cannot be read, with line and column.
    """
    runs = [run for file in files for run in read_serving_runs(file)]
    readings, skipped = understood_serving(runs, config_dir, profiles_dir)
    return scored_serving(readings, predicted(readings), len(runs), skipped)


def scored_serving(
    readings: Sequence[ServingReading],
    predictions: Column,
    rows: int,
    skipped: Mapping[str, int] | None = None,
) -> ServingScore:
    """The score of given predictions of `readings`."""
    left_out = Counter(skipped or {})
    usable = np.isfinite(predictions) & (predictions > 0)
    if lost := int(np.count_nonzero(~usable)):
        left_out["the prediction is not a finite number"] += lost
    table = serving_table(readings, predictions).take(usable)
    return ServingScore(rows=rows, skipped=dict(left_out), table=table)


def serving_table(readings: Sequence[ServingReading], predictions: Column) -> ServingTable:
    """Readings and their predictions, in the same order, as a table."""
    kinds = [metric(r) for r in readings]
    spreads = [getattr(r.case.calibration.spread, k) for r, k in zip(readings, kinds, strict=True)]
    factor = np.exp(NORMAL_90 * np.array(spreads, dtype=np.float64))
    return ServingTable(
        predicted=predictions,
        measured=np.array([r.run.value for r in readings], dtype=np.float64),
        low=predictions / factor,
        high=predictions * factor,
        metric=_words(kinds),
        model=_words([r.case.model.name for r in readings]),
        gpu=_words([r.run.gpu for r in readings]),
        backend=_words([r.case.backend.name for r in readings]),
        precision=_words([r.case.precision for r in readings]),
        release=_words([r.run.framework_version for r in readings]),
        job=_words([_job(r) for r in readings]),
        sizes=_words([_sizes(r) for r in readings]),
    )


def _words(values: Sequence[str]) -> NDArray[np.str_]:
    return np.array(values, dtype=np.str_)


def _job(reading: ServingReading) -> str:
    r = reading.run
    load = f"{r.isl}/{r.osl} at {r.batch_or_concurrency}"
    return f"{r.source} {r.framework_version} {r.model} {r.gpu} {r.precision} {load} {r.metric}"


def _sizes(reading: ServingReading) -> str:
    r = reading.run
    sizes = f"tp{r.tensor_parallel} pp{r.pipeline_parallel} ep{r.expert_parallel}"
    return f"{sizes} dp{r.attention_copies} on {r.num_gpus}"


# --- blocks ---------------------------------------------------------------------------------------


def serving_block(table: ServingTable) -> Block:
    """What `validate --json` says under `inference`."""
    return {
        **metric_blocks(table),
        "ranking": order_block(table),
        "load": dict(LOADS),
        "by_model": _by(table, table.model),
        "by_gpu": _by(table, table.gpu),
        "by_backend": _by(table, table.backend),
        "by_precision": _by(table, table.precision),
    }


def metric_blocks(table: ServingTable) -> Block:
    """Errors of each metric."""
    return {name: error_block(table.take(table.metric == name).errors) for name in METRICS}


def _by(table: ServingTable, column: NDArray[np.str_]) -> Block:
    return {
        name: metric_blocks(table.take(column == name)) for name in dict.fromkeys(column.tolist())
    }


def order_block(table: ServingTable) -> Block:
    """How often the parallel sizes we would choose are the measured best, a group a job and metric.

    A group differs in parallel sizes alone and has at least 2 of them; equal sizes count once, at
    their median. The lowest latency or the highest figure of throughput is best.
    """
    found = [g for g in (_choice(table.take(rows)) for rows in _groups(table.job)) if g]
    regret = np.array([g[1] for g in found])
    kinds = np.array([g[0] for g in found], dtype=np.str_)
    return {
        **_order_figures(regret),
        "by_metric": {name: _order_figures(regret[kinds == name]) for name in METRICS},
    }


def _order_figures(regret: Column) -> Block:
    if not len(regret):
        names = ("top1", "top1_within_3pct", "mean_regret", "max_regret")
        return {"groups": 0, **dict.fromkeys(names)}
    return {
        "groups": len(regret),
        "top1": float(np.mean(regret <= 0)),
        "top1_within_3pct": float(np.mean(regret <= CLOSE)),
        "mean_regret": float(regret.mean()),
        "max_regret": float(regret.max()),
    }


def _groups(labels: NDArray[np.str_]) -> list[NDArray[np.intp]]:
    if not len(labels):
        return []
    _, inverse = np.unique(labels, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.cumsum(np.bincount(inverse))[:-1])


def _choice(group: ServingTable) -> tuple[str, float] | None:
    """Metric of a group and how far our choice is behind the best; None where all are alike."""
    sizes = list(dict.fromkeys(group.sizes.tolist()))
    if len(sizes) < 2:
        return None
    kind = str(group.metric[0])
    sign = -1.0 if kind == "throughput" else 1.0

    def medians(values: Column) -> Column:
        return np.array([np.median(values[group.sizes == s]) for s in sizes])

    measured, guess = medians(group.measured), medians(group.predicted)
    picked, best = measured[np.argmin(sign * guess)], measured[np.argmin(sign * measured)]
    return kind, float(max(picked / best, best / picked) - 1)


def by_cell(table: ServingTable) -> list[tuple[str, Block]]:
    """Errors of every cell (metric, model, precision, GPU, release), the largest mean first."""
    names = _words(
        [
            f"{m}: {model} {precision}, {gpu}, {release}"
            for m, model, precision, gpu, release in zip(
                table.metric, table.model, table.precision, table.gpu, table.release, strict=True
            )
        ]
    )
    blocks = [
        (n, error_block(table.take(names == n).errors)) for n in dict.fromkeys(names.tolist())
    ]
    return sorted(blocks, key=_mean_error, reverse=True)


def _mean_error(cell: tuple[str, Block]) -> float:
    return float(cell[1]["mape"])


def calibrated_block(found: ServingCalibrated, before: Column) -> Block:
    """Errors of serving figures before and after a calibration, and with their model left out."""
    stages = {"before": before, "after": found.after, "left_out": found.left_out}
    tables = {
        name: None if column is None else serving_table(found.readings, column)
        for name, column in stages.items()
    }
    return {
        **{
            name: None if table is None else metric_blocks(table.take(np.isfinite(table.predicted)))
            for name, table in tables.items()
        },
        "families": {
            name: {
                "rows": profile.calibration.rows,
                "models": list(profile.models),
                "measured": list(profile.calibration.measured_names),
            }
            for name, profile in found.profiles.items()
        },
    }
