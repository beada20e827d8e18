"""From files of measured runs to a score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoparallel.errors import ConfigError
from autoparallel.layout import PRECISIONS, SCHEDULES
from autoparallel.measured.cases import Reading, read
from autoparallel.measured.rows import MeasuredRun, read_runs
from autoparallel.measured.serving_rows import is_serving_file
from autoparallel.request.build import own_folder
from autoparallel.scoreboard.predictions import Predictions, predict
from autoparallel.scoreboard.scores import Block
from autoparallel.scoreboard.serving import (
    ServingScore,
    ServingTable,
    serving_block,
    validate_serving,
)
from autoparallel.scoreboard.table import (
    Table,
    all_blocks,
    order_block,
    split_group_block,
    table_of,
    time_block,
)
from autoparallel.strict_json import plain


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """Scores of predictions on files of measured runs, as `validate --json` prints them.

    Attributes:
        skipped: Reason -> rows that could not be read or predicted.
        approximated: Rows of a framework that is not in the catalog, scored with a related one.
        inference: Scores of serving figures; None where no file has any.
        table: Every scored training row beside its prediction; not part of the JSON.
        serving: The same of serving figures.
    """

    files: tuple[str, ...]
    rows: int
    scored: int
    approximated: int
    skipped: Mapping[str, int]
    time: Block
    memory: Block
    oom: Block
    ranking: Block
    macro: Block
    by_group: Mapping[str, Block]
    without_suspect: Block
    inference: Block | None
    table: Table
    serving: ServingTable | None = None

    def to_json(self) -> dict[str, Any]:
        """The score as JSON data, by the contract."""
        names = [f.name for f in fields(self) if f.name not in ("table", "serving")]
        return {name: plain(name, getattr(self, name)) for name in names}


def validate(
    files: str | Path | Sequence[str | Path],
    config_dir: str | Path | None = None,
    profiles_dir: str | Path | None = None,
) -> Score:
    """Predict every measured run in `files` and score the predictions.

    Args:
        files: One or more CSV files of training runs or of serving figures, told apart by their
            columns.
        config_dir: A folder of models, GPUs and clusters in front of the shipped ones.
        profiles_dir: A folder of calibrated constants in front of the shipped ones.

    Raises:
        ProfileError: a file that cannot be read, with line and column.
        ConfigError: a folder that is none.
    """
    files = [files] if isinstance(files, str | Path) else files
    where = own_folder("config_dir", config_dir)
    profiles = own_folder("profiles_dir", profiles_dir)
    served = [file for file in files if is_serving_file(file)]
    readings, skipped = read_files([file for file in files if file not in served], where)
    serving = validate_serving(served, where, profiles) if served else None
    found = scored([str(f) for f in files], readings, predict(readings, profiles), skipped)
    return with_serving(found, serving) if serving else found


def with_serving(score: Score, serving: ServingScore) -> Score:
    """`score` with what was found of serving figures."""
    return replace(
        score,
        rows=score.rows + serving.rows,
        scored=score.scored + len(serving.table),
        skipped=dict(Counter(score.skipped) + Counter(serving.skipped)),
        inference=serving_block(serving.table),
        serving=serving.table,
    )


def read_files(
    files: Sequence[str | Path], config_dir: Path | None = None
) -> tuple[list[Reading], Counter[str]]:
    """The rows of `files` that can be predicted, and why the others cannot: reason -> rows.

    Raises:
        ProfileError: a file that cannot be read, with line and column.
    """
    return understood([run for file in files for run in read_runs(file)], config_dir)


def understood(
    runs: Sequence[MeasuredRun], config_dir: Path | None = None
) -> tuple[list[Reading], Counter[str]]:
    """The rows that can be predicted, and why the others cannot: reason -> rows."""
    readings: list[Reading] = []
    skipped: Counter[str] = Counter()
    for run in runs:
        try:
            readings.append(_checked(read(run, config_dir)))
        except ConfigError as error:
            skipped[str(error)] += 1
    return readings, skipped


def _checked(reading: Reading) -> Reading:
    """`reading`, when its layout has only words that the formulas know, and its GPUs add up."""
    layout, run = reading.layout, reading.run
    size = layout.model_parallel_size
    replicas = run.data_parallel_size or run.num_gpus // size
    if replicas * size != run.num_gpus:
        mesh = f"tp x pp x cp = {size} times dp {run.data_parallel_size or '(any)'}"
        raise ConfigError(f"num_gpus: {run.num_gpus} is not {mesh}")
    for name, value, known in (
        ("precision", layout.precision, PRECISIONS),
        ("schedule", layout.schedule, SCHEDULES),
    ):
        if value not in known:
            raise ConfigError(f"{name}: {value!r} is not one of {', '.join(known)}")
    return reading


def scored(
    files: Sequence[str],
    readings: Sequence[Reading],
    predictions: Predictions,
    skipped: Mapping[str, int] | None = None,
) -> Score:
    """The score of given predictions of `readings`."""
    left_out = Counter(skipped or {})
    usable = predictions.usable
    if lost := int(np.count_nonzero(~usable)):
        left_out["the prediction is not a finite number"] += lost
    table = table_of(readings, predictions).take(usable)
    groups = dict.fromkeys(table.group.tolist())
    blocks = all_blocks(table)
    return Score(
        files=tuple(files),
        rows=len(readings) + sum((skipped or {}).values()),
        scored=len(table),
        approximated=int(table.approximated.sum()),
        skipped=dict(left_out),
        **blocks,
        macro=split_group_block(table),
        by_group={name: all_blocks(table.take(table.group == name)) for name in groups},
        without_suspect=_without_suspect(table),
        inference=None,
        table=table,
    )


def _without_suspect(table: Table) -> Block:
    rows = table.take(~table.suspect)
    return {
        "time": time_block(rows),
        "ranking": order_block(rows),
        "macro": split_group_block(rows),
    }
