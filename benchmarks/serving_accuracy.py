"""Serving predictions against the measured figures in `benchmarks/measured/`, beside the goals.

python benchmarks/serving_accuracy.py [--left-out model gpu backend] [--workers N] [--out FILE]

Prints Markdown and writes it to benchmarks/serving_accuracy_<yyyy-mm>.md. With --left-out (minutes
each) every model, GPU or backend is also predicted by constants fitted to the others.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoparallel.calibration.profile_file import versions
from autoparallel.calibration.serving import (
    LEFT_OUT,
    cell,
    fittable,
    left_out_predictions,
    metric,
)
from autoparallel.calibration.serving_cases import ServingReading, predicted, understood_serving
from autoparallel.measured.serving_rows import read_serving_runs
from autoparallel.scoreboard import serving, text
from autoparallel.scoreboard.text import ERROR_COLUMNS, Text, error_row, percent

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "benchmarks" / "measured" / "inference.csv"
GOALS = {"tpot": ("15 %", "10 %"), "ttft": ("38 %", "28 %"), "throughput": ("10 %", "6 %")}
CHOICE_GOAL = "90 %"

Column = NDArray[np.float64]


def cells(readings: Sequence[ServingReading], columns: dict[str, Column]) -> Text:
    """Mean error of every cell under every set of predictions, the largest of the first on top."""
    names = np.array([", ".join((metric(r), *cell(r)[1:4], r.case.precision)) for r in readings])
    measured = np.array([r.run.value for r in readings])
    rows = []
    for name in dict.fromkeys(names.tolist()):
        mine = names == name
        errors = [np.abs(c[mine] / measured[mine] - 1) for c in columns.values()]
        rows.append((name, int(mine.sum()), errors))
    rows.sort(key=lambda row: -float(np.mean(row[2][0])))
    return Text(
        title="Mean error by cell (metric, model, GPU, release, precision)",
        columns=("cell", "rows", *columns),
        rows=tuple((name, str(n), *(shown(e) for e in errors)) for name, n, errors in rows),
    )


def shown(errors: Column) -> str:
    """Mean of the errors there are."""
    finite = errors[np.isfinite(errors)]
    return percent(float(finite.mean())) if len(finite) else "-"


def goals(
    readings: Sequence[ServingReading], columns: dict[str, Column], physical: Sequence[bool]
) -> Text:
    """Mean error of each metric and the share of best choices, beside their goals."""
    kinds = np.array([metric(r) for r in readings])
    measured = np.array([r.run.value for r in readings])
    sane = np.array(physical)
    rows = []
    for name, (bar, stretch) in GOALS.items():
        for label, mask in (("all rows", kinds == name), ("possible rows", (kinds == name) & sane)):
            figures = [shown(np.abs(c[mask] / measured[mask] - 1)) for c in columns.values()]
            rows.append((f"{name}, {label}", str(mask.sum()), *figures, bar, stretch))
    orders = [serving.order_block(serving.serving_table(readings, c)) for c in columns.values()]
    chosen = [percent(order["top1"]) for order in orders]
    rows.append(("best sizes chosen", str(orders[0]["groups"]), *chosen, CHOICE_GOAL, ""))
    return Text(
        title="Mean error, and choice of parallel sizes, beside the goals",
        columns=("figure", "rows or groups", *columns, "bar", "stretch"),
        rows=tuple(rows),
    )


def page(readings: Sequence[ServingReading], columns: dict[str, Column], seconds: float) -> str:
    """The whole page."""
    possible = {id(r) for r in fittable(readings)}
    today = next(iter(columns.values()))
    table = serving.serving_table(readings, today)
    block = serving.serving_block(table)
    tables = [
        goals(readings, columns, [id(r) in possible for r in readings]),
        text.serving_order(block),
        cells(readings, columns),
        Text(
            title="Errors with intervals",
            columns=("what", *ERROR_COLUMNS),
            rows=tuple((m, *error_row(block[m])) for m in serving.METRICS),
        ),
    ]
    loads = "\n".join(f"- {name}: {load}" for name, load in serving.LOADS.items())
    versions_ = ", ".join(f"{k} {v}" for k, v in versions().items())
    head = (
        f"# Serving accuracy, {datetime.now(UTC):%Y-%m-%d}\n\n"
        f"`python benchmarks/serving_accuracy.py {' '.join(sys.argv[1:])}`; {versions_}; "
        f"{len(readings)} figures predicted in {seconds:.2f} s.\n\n"
        f"Load that each figure assumes:\n\n{loads}\n\n"
        '"Possible rows" leaves out sweeps in which some run completes more arithmetic than the '
        "GPU's fastest published products could (`calibration.serving.fittable`): prompts there "
        'came from a cache that the row does not mention. They are scored in "all rows" and not '
        "fitted.\n"
    )
    return "\n".join([head, *(t.markdown() for t in tables)])


def main() -> None:
    """Predict, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--left-out", nargs="*", default=[], choices=list(LEFT_OUT))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    readings, skipped = understood_serving(read_serving_runs(MEASURED))
    for reason, count in skipped.items():
        print(f"skipped {count}: {reason}", file=sys.stderr)
    start = time.perf_counter()
    columns = {"shipped constants": predicted(readings)}
    seconds = time.perf_counter() - start
    for by in asked.left_out:
        columns[f"{by} left out"] = left_out_predictions(
            readings,
            by,
            workers=asked.workers,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    written = page(readings, columns, seconds)
    name = f"serving_accuracy_{datetime.now(UTC):%Y-%m}.md"
    (asked.out or ROOT / "benchmarks" / name).write_text(written)
    print(written)


if __name__ == "__main__":
    main()
