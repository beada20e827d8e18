"""Repeated measurements: read from a CSV, and compared by a test that outliers do not sway.

One value a run. Steps of one run share its placement, its neighbours and its clock, so they are not
repetitions of each other: a file with a `run` column is reduced to each run's median first.

The test fails a figure when both hold: the medians differ by more than a stated effect, and the
one-sided Mann-Whitney test says with `ALPHA` that the new runs are worse.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from autoparallel.counts import counted
from autoparallel.errors import ConfigError, bad_value, nearest, shown
from autoparallel.files import read_text
from autoparallel.measured.rows import REQUIRED, MeasuredRun, read_runs
from autoparallel.regression.kinds import Kind
from autoparallel.regression.lock import MAX_SAMPLES, Samples
from autoparallel.regression.words import figure_text, percent
from autoparallel.units import GIB

ALPHA = 0.01
"""Chance that the test alone calls equal runs worse."""
MAX_FILE_BYTES = 16 * 2**20
_MEMORY = "peak_memory_gib"
_KEYS = ("run", "layout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """New runs against pinned ones: the medians, and whether the new ones are worse."""

    worse: bool
    before: float | None
    after: float
    message: str


def compared(
    old: Sequence[float],
    new: Sequence[float],
    *,
    least_effect: float,
    sign: int = 1,
    interval: tuple[float, float] | None = None,
    name: str = "iteration_s",
) -> Comparison:
    """Hold new runs against pinned ones; against the predicted range when none were pinned.

    Args:
        old: Pinned values, one a run.
        new: New values, one a run.
        least_effect: Share by which the medians must differ.
        sign: 1 when more is worse, -1 when less is.
        interval: Predicted 5th and 95th percentile.
        name: The figure, for the message.

    Raises:
        ConfigError: too few runs for the test ever to speak.
    """
    after = median(new)
    if len(old) == 0:
        return _against_prediction(after, len(new), sign, interval, name)
    check_enough(len(old), len(new))
    before = median(old)
    effect = sign * (after / before - 1)
    p = worse_p(old, new, sign)
    worse = effect > least_effect and p <= ALPHA
    text = (
        f"median {figure_text(name, before)} of {counted(len(old), 'run')} -> "
        f"{figure_text(name, after)} of {len(new)} ({percent(after / before - 1)}), p {p:.2g}"
    )
    limits = f"fails over {least_effect:.2%} with p <= {ALPHA}"
    return Comparison(worse=worse, before=before, after=after, message=f"{text}; {limits}")


def check_enough(old: int, new: int) -> None:
    """The test can reach `ALPHA` at all with that many runs.

    Raises:
        ConfigError: even runs that do not overlap could not be told apart.
    """
    if 1 / math.comb(old + new, new) > ALPHA:
        rule = f"and {counted(old, 'pinned run')} cannot be told apart with p {ALPHA}"
        raise bad_value(
            "measured", counted(new, "run"), rule, "measure at least 5 runs on both sides"
        )


def worse_p(old: Sequence[float], new: Sequence[float], sign: int = 1) -> float:
    """One-sided p of Mann-Whitney's test that `new` is worse than `old`."""
    from scipy.stats import mannwhitneyu

    ours, theirs = (np.asarray(values, dtype=np.float64) * sign for values in (new, old))
    return float(mannwhitneyu(ours, theirs, alternative="greater").pvalue)


def _against_prediction(
    after: float, runs: int, sign: int, interval: tuple[float, float] | None, name: str
) -> Comparison:
    text = (
        f"median {figure_text(name, after)} of {counted(runs, 'run')}; the lock pins no measurement"
    )
    if interval is None:
        return Comparison(worse=False, before=None, after=after, message=text)
    low, high = interval
    worse = after > high if sign > 0 else after < low
    told = f"{figure_text(name, low)} to {figure_text(name, high)}"
    message = f"{text}, so it is held against the predicted range {told}"
    return Comparison(worse=worse, before=None, after=after, message=message)


# --- reading ----------------------------------------------------------------------------


def read_samples(
    path: Path, kind: Kind, layout: str, matches: Callable[[MeasuredRun], bool]
) -> Samples:
    """The repeated measurements of one layout in a CSV.

    Two forms: rows of measured runs (the columns of `benchmarks/measured`), of which those of the
    layout count; or a column a figure (`iteration_s`, `peak_memory_gib`, ...), a row a run, with
    `run` and `layout` as further columns: rows of one `run` count once, rows of another `layout`
    not at all.

    Args:
        path: The file.
        kind: Whose figures count.
        layout: The pinned layout.
        matches: Whether a measured run is one of this layout and job.

    Raises:
        ConfigError: a file that cannot be read, or that holds no run of the layout.
        ProfileError: rows of measured runs that break their schema.
    """
    header, rows = _table(path)
    if set(REQUIRED) <= set(header):
        samples = _of_runs([run for run in read_runs(path) if matches(run)])
    else:
        samples = _of_rows(path, header, rows, kind, layout)
    kept = {name: tuple(values) for name, values in samples.items() if values}
    if not kept:
        hint = "give runs of the layout, or pin the layout that was run"
        raise bad_value("measured", str(path), f"holds no run of {layout}", hint)
    if max(map(len, kept.values())) > MAX_SAMPLES:
        raise bad_value("measured", str(path), f"holds more than {MAX_SAMPLES} runs", "give fewer")
    return Samples(source=path.name, values=kept)


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    reader = csv.reader(io.StringIO(read_text(path, MAX_FILE_BYTES)), strict=True)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise ConfigError(f"{path} line {reader.line_num}: is not CSV: {error}") from error
    if not rows:
        raise bad_value("measured", str(path), "is empty", "write a header and a row a run")
    header = [name.strip() for name in rows[0]]
    if twice := [name for name in header if header.count(name) > 1]:
        raise ConfigError(f"{path} line 1: the column {shown(twice[0])} stands twice")
    return header, rows[1:]


def _of_runs(runs: Sequence[MeasuredRun]) -> dict[str, list[float]]:
    memory = [run.peak_memory_gib * GIB for run in runs if run.peak_memory_gib]
    return {
        "iteration_s": [run.seconds for run in runs if run.seconds],
        "memory_bytes": memory,
    }


def _of_rows(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], kind: Kind, layout: str
) -> dict[str, list[float]]:
    figures = {name: name for name in kind.worse} | {_MEMORY: "memory_bytes"}
    for name in header:
        if name not in figures and name not in _KEYS:
            hint = nearest(name[:80], [*figures, *_KEYS])
            raise ConfigError(f"{path} line 1: unknown column {shown(name)}; {hint}")
    by_run: dict[str, dict[str, list[float]]] = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ConfigError(f"{path} row {number}: {len(row)} cells under {len(header)} columns")
        cells = dict(zip(header, row, strict=True))
        if cells.get("layout", layout).split() != layout.split():
            continue
        values = by_run.setdefault(cells.get("run", str(number)), {})
        for name in figures.keys() & cells.keys():
            value = _number(f"{path} row {number}: {name}", cells[name])
            values.setdefault(figures[name], []).append(value * (GIB if name == _MEMORY else 1))
    found: dict[str, list[float]] = {}
    for values in by_run.values():
        for name, steps in values.items():
            found.setdefault(name, []).append(median(steps))
    return found


def _number(where: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise ConfigError(f"{where} {shown(cell)} is not a number") from None
    if not 0 < value < 1e15:
        raise ConfigError(f"{where} {shown(cell)} is not a finite number above 0")
    return value
