"""Files of measured runs, written for a test."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from autoparallel.measured.rows import MeasuredRun, runs_text


def write_runs(path: Path, runs: Iterable[MeasuredRun]) -> Path:
    """Write `runs` as CSV, unknown values empty; returns the path."""
    path.write_text(runs_text(runs), encoding="utf-8")
    return path
