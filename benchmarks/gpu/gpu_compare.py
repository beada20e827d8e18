"""Predicted against measured, before and after calibration, from the trials of `gpu_run.py`.

PYTHONPATH=. python benchmarks/gpu/gpu_compare.py DIR [--out FILE.md] [--cluster NAME]

Writes DIR/rows.csv (the schema of benchmarks/measured), DIR/profiles (constants fitted to the
world-1 runs) and a Markdown table. Runs as one rank of a larger world take no part in the fit of
times, so theirs are held out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from autoparallel import catalog
from autoparallel.calibration.run import run as calibrated
from autoparallel.calibration.run import write
from autoparallel.campaign.rows import measured_row
from autoparallel.cost.case import Case
from autoparallel.cost.compute import head
from autoparallel.cost.layer import layer_time
from autoparallel.cost.memory import memory, memory_of_stage
from autoparallel.cost.partition import chunks
from autoparallel.cost.step import optimizer_s, step_time
from autoparallel.errors import AutoparallelError
from autoparallel.files import write_text
from autoparallel.layout import knobs
from autoparallel.measured.cases import read
from autoparallel.measured.rows import MeasuredRun, runs_text
from autoparallel.profiles import read_calibration
from autoparallel.profiling.job import Job
from autoparallel.profiling.store import Store, Trial
from autoparallel.profiling.topology.cluster_file import gpu_id
from autoparallel.ranking import setting
from autoparallel.request import TrainingRequest, training_request
from autoparallel.units import GIB, MS

NO_TRAFFIC = dict.fromkeys(
    ("tp_exposed", "cp_exposed", "ep_exposed", "dp_exposed", "shard_exposed", "gather_exposed"), 0.0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run: seconds and allocated bytes, measured, predicted before and after."""

    trial: Trial
    stage: str
    seconds: tuple[float | None, float, float]
    bytes_: tuple[float | None, float, float]


def main() -> None:
    """Compare, calibrate, compare again, and write it down."""
    arguments = _arguments()
    trials = [t for t in Store(arguments.folder).trials() if t.result.outcome != "invalid"]
    if not trials:
        raise SystemExit(f"{arguments.folder}: no trials; run gpu_run.py first")
    cluster = arguments.cluster or _cluster(trials)
    profiles = _fitted(arguments.folder, cluster, trials)
    rows = [_row(trial, cluster, profiles) for trial in trials]
    text = _page(rows, cluster, arguments.folder)
    out = arguments.out or arguments.folder / "comparison.md"
    write_text(out.parent, out.name, text)
    print(text.split("\n## Runs")[0])
    print(f"{out}: {len(rows)} runs")


def _cluster(trials: Sequence[Trial]) -> str:
    """The catalog's first cluster of the GPU that ran; local-cpu for a rehearsal."""
    name = next((t.result.versions["gpu"] for t in trials if "gpu" in t.result.versions), "")
    if not name:
        return "local-cpu"
    wanted = gpu_id(name)
    clusters = [catalog.cluster(c) for c in catalog.names("cluster")]
    alike = sorted((c.name for c in clusters if c.gpu.name == wanted), key=lambda c: "dgx" not in c)
    if not alike:
        raise SystemExit(f"{name}: in no cluster of the catalog; give --cluster")
    return alike[0]


@cache
def _base(cluster: str, precision: str, profiles: Path | None) -> TrainingRequest:
    return training_request(
        model="gpt-tiny", num_gpus=1, cluster=cluster, precision=precision, profiles_dir=profiles
    )


def _request(job: Job, cluster: str, profiles: Path | None) -> TrainingRequest:
    """The question that a job answers; the world of a `rank` run may exceed the cluster."""
    base = _base(cluster, job.layout.precision, profiles)
    return replace(
        base,
        cluster=replace(base.cluster, max_gpus=0),
        model=job.model,
        num_gpus=job.num_gpus,
        global_batch_size=job.global_batch_size,
        seq_length=job.seq_length,
    )


def _fitted(folder: Path, cluster: str, trials: Sequence[Trial]) -> Path | None:
    """Constants of the world-1 runs, and the rows of all; None when there are too few."""
    rows = [row for t in trials if (row := _measured(t, cluster))]
    write_text(folder, "rows.csv", runs_text(rows))
    source = f"{folder.name}/rows.csv: {sum(1 for r in rows if r.seconds)} timed rows"
    try:
        outcome = calibrated([read(row) for row in rows], source, workers=1)
    except AutoparallelError as error:
        print(f"not calibrated: {error}")
        return None
    write(folder / "profiles", outcome)
    read_calibration.cache_clear()
    return folder / "profiles"


def _measured(trial: Trial, cluster: str) -> MeasuredRun | None:
    """A row for `calibrate`; GPT and Llama layers are groups of their own."""
    row = measured_row(_request(trial.job, cluster, None), trial)
    kind = trial.job.model.name.partition("-")[0]
    return replace(row, split_group=f"gpu-{kind}", search_group="") if row else None


def _row(trial: Trial, cluster: str, profiles: Path | None) -> Row:
    job, result = trial.job, trial.result
    before = _predicted(job, cluster, None)
    after = _predicted(job, cluster, profiles)
    allocated = result.peak_memory_bytes if result.memory_kind == "allocated" else None
    seconds = result.iteration_s if result.ok else None
    return Row(
        trial=trial,
        stage=_stage(job),
        seconds=(seconds, before[0], after[0]),
        bytes_=(allocated, before[1], after[1]),
    )


def _stage(job: Job) -> str:
    if job.mode != "rank":
        return "alone"
    stages = job.layout.pipeline_model_parallel_size
    at = (job.rank or 0) * stages // job.num_gpus
    return "first" if at == 0 else "last" if at == stages - 1 else "middle"


def _predicted(job: Job, cluster: str, profiles: Path | None) -> tuple[float, float]:
    """Seconds of a step and allocated bytes: of the whole world, or of one rank without traffic."""
    where = setting(_request(job, cluster, profiles))
    case = where.case(knobs([job.layout], [job.num_gpus], [job.global_batch_size]))
    if job.mode != "rank":
        return _one(step_time(case).iteration_s), _one(memory(case).allocated_bytes)
    quiet = replace(case, constants=replace(case.constants, **NO_TRAFFIC))
    stage = _stage(job)
    return _one(rank_s(quiet, stage)), _one(memory_of_stage(case, stage).allocated_bytes)


def rank_s(case: Case, stage: str) -> object:
    """A step of one rank that never waits: layers, the loss on the last stage, the optimizer."""
    split, layer, loss = chunks(case), layer_time(case), head(case)
    layers = {"first": split.first, "middle": split.middle, "last": split.last}[stage]
    once = layers * layer.total_s + (loss.forward_s + loss.backward_s) * (stage == "last")
    return case.knobs.micro_batches * once + optimizer_s(case) + case.constants.step_overhead_s


def _one(value: object) -> float:
    return float(np.asarray(value, dtype=np.float64).ravel()[0])


def _page(rows: Sequence[Row], cluster: str, folder: Path) -> str:
    first = rows[0].trial.result
    versions = ", ".join(f"{name} {value}" for name, value in sorted(first.versions.items()))
    failed = [r for r in rows if r.trial.result.outcome != "ok"]
    rehearsed = first.device == "cpu"
    lines = [
        f"# Layers on one {'CPU core (rehearsal)' if rehearsed else first.versions.get('gpu', '')}",
        "",
        f"{len(rows)} runs, {len(failed)} failed; implementation `{first.impl}`, {versions}.",
        f"Predicted with `{cluster}`. Constants after calibration are fitted to the world-1 runs",
        f"of `{folder.name}/rows.csv`: those are in the sample, the rank runs are held out.",
        *(["", REHEARSED] if rehearsed else []),
        "",
        "## Errors",
        "",
        "| runs | n | time before: median, 90 % | after | memory before: median, 90 % | after |",
        "|---|---|---|---|---|---|",
        *(
            _summary(name, [r for r in rows if r.trial.job.mode == name])
            for name in ("job", "rank")
        ),
        "",
        "## Runs",
        "",
        "| mode | stage | model | s | layout | ms | before | after | GiB | before | after |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


REHEARSED = (
    "This is a rehearsal on a CPU at 1/32 of the width: it shows that every run works and that the "
    "comparison is made. The times are of busy cores and vary several-fold; the errors say nothing "
    "of GPUs."
)


def _summary(mode: str, rows: Sequence[Row]) -> str:
    cells = [mode, str(len(rows))]
    for name in ("seconds", "bytes_"):
        values = [getattr(row, name) for row in rows]
        for at in (1, 2):
            errors = [abs(v[at] / v[0] - 1) for v in values if v[0]]
            middle = f"{np.median(errors):.1%}, {np.quantile(errors, 0.9):.1%}" if errors else "-"
            cells.append(middle)
    return "| " + " | ".join(cells) + " |"


def _line(row: Row) -> str:
    job, result = row.trial.job, row.trial.result
    cells = [job.mode, row.stage, job.model.name, str(job.seq_length), f"`{job.layout}`"]
    for values, unit in ((row.seconds, MS), (row.bytes_, GIB)):
        measured = values[0]
        unknown = "-" if result.outcome == "ok" else result.outcome
        cells.append(f"{measured / unit:.4g}" if measured else unknown)
        for predicted in values[1:]:
            off = f" ({predicted / measured - 1:+.0%})" if measured else ""
            cells.append(f"{predicted / unit:.4g}{off}")
    return "| " + " | ".join(cells) + " |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cluster")
    return parser.parse_args()


if __name__ == "__main__":
    main()
