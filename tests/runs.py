"""Files of measured runs, written for a test."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from autoparallel.measured.rows import COLUMNS, MeasuredRun


def write_runs(path: Path, runs: Iterable[MeasuredRun]) -> Path:
    """Write `runs` as CSV, unknown values empty; returns the path."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(
            {k: "" if v is None else v for k, v in asdict(run).items()} for run in runs
        )
    return path
