"""Predictions against the measured runs in `benchmarks/measured/`, beside the goals.

python benchmarks/accuracy.py [--leave-one-out] [--out FILE]

Training runs and serving figures: prints Markdown and writes it to
benchmarks/accuracy_<yyyy-mm>.md. With --leave-one-out (minutes) every split group of training runs
is also predicted from constants fitted to the others; benchmarks/serving_accuracy.py does that for
serving.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoparallel.calibration.memory_left_out import left_out
from autoparallel.calibration.memory_rows import memory_data, memory_family
from autoparallel.calibration.profile_file import versions
from autoparallel.calibration.run import Outcome, run
from autoparallel.measured.cases import Reading
from autoparallel.model import flops_per_token
from autoparallel.scoreboard import Score, scored, text
from autoparallel.scoreboard.calibrated import (
    errors_in_force,
    group_errors,
    left_out_errors,
    summary,
)
from autoparallel.scoreboard.predictions import Predictions, predict
from autoparallel.scoreboard.score import read_files
from autoparallel.scoreboard.serving import ServingTable, metric_blocks, validate_serving
from autoparallel.scoreboard.table import time_block
from autoparallel.scoreboard.text import Text, percent

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "benchmarks" / "measured" / "training.csv"
SERVED = ROOT / "benchmarks" / "measured" / "inference.csv"
GOALS = ROOT / "docs" / "accuracy-goals.md"
MEGATRON = ("megatron-core", "megatron-lm", "megatron-deepspeed", "deepspeed")
FSDP = ("fsdp", "fsdp2", "automodel", "composer", "yafsdp")

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A score with the readings behind its rows."""

    score: Score
    readings: Sequence[Reading]

    def where(self, test: Callable[[Reading], bool]) -> Mask:
        """The rows whose reading passes."""
        return np.array([test(r) for r in self.readings], dtype=np.bool_)

    def time(self, test: Callable[[Reading], bool], figure: str) -> str:
        """A figure of the step time over the rows that pass."""
        block = time_block(self.score.table.take(self.where(test)))
        return f"{percent(block[figure])} of {block['n']}"


def view(readings: Sequence[Reading], predictions: Predictions) -> View:
    """The score of `predictions`; rows without a finite prediction drop out."""
    usable = predictions.usable
    kept = [r for r, good in zip(readings, usable, strict=True) if good]
    return View(score=scored([MEASURED.name], kept, predictions.take(usable)), readings=kept)


def several_nodes(reading: Reading) -> bool:
    """Whether the job needs more GPUs than one node has."""
    return reading.run.num_gpus > reading.cluster.gpus_per_node


def mfu(reading: Reading) -> float:
    """Measured model FLOPs utilization; 0 where there is no step time."""
    run_, peak = reading.run, reading.cluster.gpu.peak_flops_per_s
    if not run_.seconds:
        return 0.0
    flops = float(flops_per_token(reading.model.shape(run_.seq_length)))
    tokens_per_s = run_.global_batch_size * run_.seq_length / run_.seconds
    return flops * tokens_per_s / (run_.num_gpus * peak.get("bf16", peak.get("fp16", np.inf)))


def pair(*values: float | None) -> str:
    """Fractions in percent, by slashes."""
    return " / ".join(percent(value) for value in values)


def macro_today(v: View) -> str:
    """Over split groups."""
    return pair(v.score.macro["median_of_medians"], v.score.macro["mean_of_medians"])


def megatron_today(v: View) -> str:
    """Megatron over nodes of A100 or H100."""
    return v.time(
        lambda r: (
            r.framework.name in MEGATRON
            and r.run.gpu.startswith(("a100", "h100"))
            and several_nodes(r)
        ),
        "median_ape",
    )


def ranking_today(v: View) -> str:
    """Order of layouts."""
    return pair(v.score.ranking["top3"], v.score.ranking["mean_regret"])


def memory_today(v: View) -> str:
    """Allocated and reserved peaks."""
    kinds = v.score.memory["by_kind"]
    return pair(kinds["allocated_vocab_stated"]["mape"], kinds["reserved"]["mape"])


def fitting_today(v: View) -> str:
    """False alarms both ways."""
    return pair(v.score.oom["false_fit_rate"], v.score.oom["false_oom_rate"])


def intervals_today(v: View) -> str:
    """Honesty and width of intervals."""
    return pair(v.score.time["coverage_90"], v.score.time["median_relative_width"])


TODAY: dict[str, Callable[[View], str]] = {
    "step time, split groups": macro_today,
    "step time, Megatron family": megatron_today,
    "step time, arXiv:2205.05198": lambda v: v.time(
        lambda r: r.run.split_group == "korth22", "mape"
    ),
    "step time, vTrain single node": lambda v: v.time(
        lambda r: r.run.split_group.startswith("vtrain-single"), "mape"
    ),
    "step time, FSDP": lambda v: v.time(lambda r: r.framework.name in FSDP, "median_ape"),
    "step time, nanotron": lambda v: v.time(
        lambda r: r.framework.name == "nanotron" and mfu(r) > 0.1, "median_ape"
    ),
    "order": ranking_today,
    "memory": memory_today,
    "fitting": fitting_today,
    "90 % interval": intervals_today,
}
"""By the beginning of a training goal's name: its figure."""

SERVING = {
    "serving: TPOT": "tpot",
    "serving: TTFT": "ttft",
    "serving: highest throughput": "throughput",
}
"""By the beginning of a serving goal's name: its metric."""


def serving_today(served: ServingTable, metric: str) -> str:
    """Mean error of a metric."""
    block = metric_blocks(served)[metric]
    return f"{percent(block['mape'])} of {block['n']}"


def goals(views: Sequence[tuple[str, View]], served: ServingTable) -> Text:
    """The goals of docs/accuracy-goals.md with a column for every view; serving has today's."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", GOALS.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    rows = []
    for name, *rest in lines[2:]:
        figure = next((f for start, f in TODAY.items() if name.startswith(start)), None)
        metric = next((m for start, m in SERVING.items() if name.startswith(start)), None)
        if figure is not None:
            today = [figure(v) for _, v in views]
        elif metric is not None:
            today = [serving_today(served, metric), *["-" for _ in views[1:]]]
        else:
            raise SystemExit(f"{GOALS.name}: the goal {name!r} has no figure here")
        rows.append((name, *today, *rest))
    columns = (lines[0][0], *(name for name, _ in views), *lines[0][1:])
    return Text(title="Goals", columns=columns, rows=tuple(rows))


def left_out_predictions(
    readings: Sequence[Reading], today: Predictions, outcome: Outcome
) -> Predictions:
    """Every row predicted from the other split groups."""
    assert outcome.left_out is not None
    calibrations = {name: p.calibration for name, p in outcome.profiles.items()}
    errors = left_out_errors(outcome.rows, outcome.left_out, calibrations)
    timed = np.flatnonzero([bool(r.run.seconds) for r in readings])
    seconds, low, high = (c.copy() for c in (today.seconds, today.seconds_low, today.seconds_high))
    seconds[timed], low[timed], high[timed] = errors.predicted, errors.low, errors.high
    families = np.array([memory_family(r) for r in readings])
    groups = np.array([r.run.split_group for r in readings])
    blind = left_out(memory_data(readings), families, groups)
    return replace(
        today,
        seconds=seconds,
        seconds_low=low,
        seconds_high=high,
        memory_bytes=blind.bytes,
        memory_low=blind.low,
        memory_high=blind.high,
        fits_probability=blind.fits,
    )


def report(leave_one_out: bool) -> str:
    """The whole page."""
    readings, skipped = read_files([MEASURED])
    predictions = predict(readings)
    today = view(readings, predictions)
    served = validate_serving([SERVED])
    views, extra = [("in sample" if leave_one_out else "today", today)], ""
    if leave_one_out:
        outcome = run(readings, MEASURED.name, progress=lambda line: print(line, file=sys.stderr))
        blind = view(readings, left_out_predictions(readings, predictions, outcome))
        answer = summary(outcome, errors_in_force(outcome.rows))
        views.append(("group left out", blind))
        parts = (group_errors(answer), text.headline(blind.score), text.figures(blind.score))
        extra = "\n## Every split group predicted from the others\n\n"
        extra += "\n".join(part.markdown() for part in parts)
    tables = (
        goals(views, served.table),
        text.headline(today.score),
        text.figures(today.score),
        text.groups(today.score),
        text.worst_cells(today.score.table),
    )
    counts = (
        f"{len(readings)} rows of {MEASURED.relative_to(ROOT)}, {sum(skipped.values())} skipped; "
        f"{len(served.table)} figures of {SERVED.relative_to(ROOT)}, "
        f"{sum(served.skipped.values())} skipped"
    )
    head = _head(counts, leave_one_out)
    return head + "\n".join(table.markdown() for table in tables) + extra


def _head(counts: str, leave_one_out: bool) -> str:
    command = "python benchmarks/accuracy.py" + (" --leave-one-out" if leave_one_out else "")
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    profiles = sorted(p.stem for p in (ROOT / "profiles" / "training").glob("*.yaml"))
    found = f"{len(profiles)} profiles" if profiles else "no profiles: every constant is a prior"
    return (
        f"# Accuracy, {datetime.now(UTC):%Y-%m}\n\n    {command}\n\n"
        f"{used}; {found}; {counts}. "
        "The goals are docs/accuracy-goals.md's.\n\n"
    )


def main() -> None:
    """Print and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--leave-one-out", action="store_true")
    name = f"accuracy_{datetime.now(UTC):%Y-%m}.md"
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / name)
    arguments = parser.parse_args()
    page = report(arguments.leave_one_out)
    print(page, end="")
    arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
