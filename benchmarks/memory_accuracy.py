"""Memory and fitting with whole jobs, GPU generations and frameworks left out.

python benchmarks/memory_accuracy.py [--out FILE]

Every measured peak and every run that did or did not fit, predicted from constants fitted without
its split group, without its GPU generation, and without its framework. Prints Markdown and writes
it to benchmarks/memory_accuracy_<yyyy-mm>.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pages import publish

from autoparallel.calibration.memory_left_out import left_out
from autoparallel.calibration.memory_rows import memory_data, memory_family, with_noted_reserved
from autoparallel.calibration.profile_file import versions
from autoparallel.measured.cases import Reading
from autoparallel.scoreboard.predictions import Predictions, predict
from autoparallel.scoreboard.score import read_files
from autoparallel.scoreboard.scores import Block
from autoparallel.scoreboard.table import Table, fitting_block, memory_block, table_of
from autoparallel.scoreboard.text import Text, percent

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "benchmarks" / "measured" / "training.csv"
WAYS: dict[str, Callable[[Reading], str]] = {
    "split group": lambda r: r.run.split_group,
    "GPU generation": lambda r: r.cluster.gpu.generation,
    "framework": lambda r: r.framework.constants,
}
"""What is left out as a whole."""
KINDS = {
    "allocated_vocab_stated": "allocated, vocabulary stated",
    "allocated": "allocated",
    "reserved": "reserved",
    "device": "of the device",
}
KIND_COLUMNS = ("what", "rows", "mean", "median", "p90", "bias", "interval covers", "width")
FIT_COLUMNS = ("false fits", "false out-of-memory", "Brier score")


def left_out_by(
    readings: Sequence[Reading], today: Predictions, held: Callable[[Reading], str]
) -> Predictions:
    """`today` with memory predicted from rows that differ in `held`."""
    rows = with_noted_reserved(readings)
    families = np.array([memory_family(r) for r in rows])
    blind = left_out(memory_data(rows), families, np.array([held(r) for r in rows]))
    n = len(readings)
    return replace(
        today,
        memory_bytes=blind.bytes[:n],
        memory_low=blind.low[:n],
        memory_high=blind.high[:n],
        fits_probability=blind.fits[:n],
    )


def kinds(tables: dict[str, Table]) -> Text:
    """Errors by what was measured."""
    rows = []
    for name, table in tables.items():
        blocks = memory_block(table)["by_kind"]
        rows += [(f"{text}; {name}", *_errors(blocks[kind])) for kind, text in KINDS.items()]
    return Text(title="Peaks", columns=KIND_COLUMNS, rows=tuple(rows))


def _errors(block: Block) -> tuple[str, ...]:
    figures = ("mape", "median_ape", "p90_ape", "bias", "coverage_90", "median_relative_width")
    return str(block["n"]), *(percent(block[f]) for f in figures)


def fitting(tables: dict[str, Table]) -> Text:
    """Promises that did not hold, and layouts turned down that ran."""
    rows = []
    for name, table in tables.items():
        block = fitting_block(table)
        counts = (str(block["n_oom"]), str(block["n_ran"]))
        rows.append((name, *counts, *_fitting(block)))
    columns = ("predicted", "ran out", "ran", *FIT_COLUMNS)
    return Text(title="Fitting", columns=columns, rows=tuple(rows))


def _fitting(block: Block) -> tuple[str, ...]:
    brier = "-" if block["brier"] is None else f"{block['brier']:.3f}"
    return percent(block["false_fit_rate"]), percent(block["false_oom_rate"]), brier


def groups(tables: dict[str, Table]) -> Text:
    """Every split group: mean error, coverage and false alarms, today and left out."""
    rows = []
    names = dict.fromkeys(next(iter(tables.values())).group.tolist())
    for group in names:
        parts = [t.take(t.group == group) for t in tables.values()]
        memory = [memory_block(p) for p in parts]
        fits = [fitting_block(p) for p in parts]
        row = (
            group,
            str(memory[0]["n"]),
            _slashed([percent(m["mape"]) for m in memory]),
            _slashed([percent(m["bias"]) for m in memory]),
            _slashed([percent(m["coverage_90"]) for m in memory]),
            str(fits[0]["n_oom"]),
            _slashed([percent(f["false_fit_rate"]) for f in fits]),
            str(fits[0]["n_ran"]),
            _slashed([percent(f["false_oom_rate"]) for f in fits]),
        )
        rows.append(row)
    columns = (
        *("split group", "peaks", "mean error", "bias", "interval covers"),
        *("ran out", "false fits", "ran", "false out-of-memory"),
    )
    return Text(title=f"By split group: {', '.join(tables)}", columns=columns, rows=tuple(rows))


def _slashed(figures: Sequence[str]) -> str:
    return "-" if set(figures) == {"-"} else " / ".join(figures)


def report() -> str:
    """The whole page."""
    readings, _ = read_files([MEASURED])
    today = predict(readings)
    found = {"today": today}
    found |= {f"{name} left out": left_out_by(readings, today, held) for name, held in WAYS.items()}
    tables = {name: table_of(readings, p) for name, p in found.items()}
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    head = (
        f"# Memory and fitting, {datetime.now(UTC):%Y-%m}\n\n"
        f"    python benchmarks/memory_accuracy.py\n\n{used}; {len(readings)} rows of "
        f"{MEASURED.relative_to(ROOT)}.\n\n"
    )
    return head + "\n".join(t.markdown() for t in (kinds(tables), fitting(tables), groups(tables)))


if __name__ == "__main__":
    publish("memory_accuracy", __doc__, report)
