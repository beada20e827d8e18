"""How often the gate's test of repeated measurements is wrong, on real noise.

    python benchmarks/regression_rates.py > benchmarks/regression_rates_2026-11.md

Takes the steps that `repeated_steps.py` timed, draws pinned and new runs from them, multiplies the
new ones by an injected slow-down and counts how often the test fails them. Nothing is simulated but
the factor.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from autoparallel.regression.kinds import TRAINING
from autoparallel.regression.measurements import ALPHA, compared

FILE = Path(__file__).parent / "measured" / "cpu_steps.csv"
SLOWDOWNS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
RUNS = (5, 8, 12)
DRAWS = 500
SEED = 11
Times: TypeAlias = NDArray[np.float64]
Draw: TypeAlias = Callable[[np.random.Generator, Times, int], tuple[Times, Times]]


def main() -> None:
    """Print the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--draws", type=int, default=DRAWS)
    asked = parser.parse_args()
    jobs = steps_by_job(asked.file)
    print(_HEAD.format(draws=asked.draws, alpha=ALPHA, effect=TRAINING.tolerance["measured"]))
    print("\n".join(noise_table(jobs)))
    for name, draw, runs, about in DESIGNS:
        print(f"\n## {name}\n\n{about}\n")
        print("\n".join(rate_table(jobs, draw, runs, asked.draws)))
    print(_TAIL)


def steps_by_job(path: Path) -> dict[str, Times]:
    """Job -> step times [runs, steps], in the order they ran."""
    rows: dict[str, dict[int, list[float]]] = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            rows.setdefault(row["job"], {}).setdefault(int(row["run"]), []).append(
                float(row["iteration_s"])
            )
    return {job: np.array(list(runs.values())) for job, runs in rows.items()}


def noise_table(jobs: Mapping[str, Times]) -> list[str]:
    """What the runs are like, before anything is injected."""
    heads = ("job", "runs", "steps a run", "median step ms", "5-95 % of runs' medians ms",
             "median deviation within a run")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---|--:|--:|--:|---|--:|"]
    for job, steps in jobs.items():
        medians = np.median(steps, axis=1)
        low, high = np.percentile(medians, [5, 95]) * 1e3
        spread = np.median(np.median(np.abs(steps - medians[:, None]), axis=1) / medians)
        lines.append(
            f"| {job} | {len(steps)} | {steps.shape[1]} | {np.median(medians) * 1e3:.0f} "
            f"| {low:.0f}-{high:.0f} | {spread:.1%} |"
        )
    return lines


def shuffled(random: np.random.Generator, steps: Times, runs: int) -> tuple[Times, Times]:
    """Pinned and new runs from anywhere: noise of runs, no drift."""
    picked = random.choice(len(steps), 2 * runs, replace=False)
    medians = np.median(steps, axis=1)
    return medians[picked[:runs]], medians[picked[runs:]]


def in_order(random: np.random.Generator, steps: Times, runs: int) -> tuple[Times, Times]:
    """Pinned runs, then new ones: whatever changed around the job in between is in it."""
    start = random.integers(0, len(steps) - 2 * runs + 1)
    medians = np.median(steps[start : start + 2 * runs], axis=1)
    return medians[:runs], medians[runs:]


def in_turns(random: np.random.Generator, steps: Times, runs: int) -> tuple[Times, Times]:
    """Old and new take turns, so that both meet the same neighbours."""
    start = random.integers(0, len(steps) - 2 * runs + 1)
    medians = np.median(steps[start : start + 2 * runs], axis=1)
    return medians[::2], medians[1::2]


def single_runs(random: np.random.Generator, steps: Times, runs: int) -> tuple[Times, Times]:
    """One run a side, its steps taken as if they were repetitions."""
    old, new = random.choice(len(steps), 2, replace=False)
    return steps[old], steps[new]


DESIGNS: tuple[tuple[str, Draw, Sequence[int], str], ...] = (
    ("Runs from anywhere", shuffled, RUNS, "The unit is a run (its median step)."),
    ("Pinned first, new later", in_order, RUNS, "Neighbouring runs in the order they ran."),
    ("Pinned and new in turns", in_turns, RUNS, "Neighbouring runs, every other one new."),
    (
        "Steps of one run as if they were runs",
        single_runs,
        (1,),
        "What the gate does not do: one run a side, a step a repetition.",
    ),
)


def rate_table(jobs: Mapping[str, Times], draw: Draw, runs: Sequence[int], draws: int) -> list[str]:
    """Share of draws that fail, by job, runs a side and injected slow-down."""
    heads = " | ".join(f"{x:+.0%}" if x else "none" for x in SLOWDOWNS)
    lines = [f"| job | runs a side | {heads} |", "|---|--:|" + "--:|" * len(SLOWDOWNS)]
    for job, steps in jobs.items():
        for count in runs:
            if 2 * count > len(steps):
                continue
            found = [f"{rate(steps, draw, count, slower, draws):.1%}" for slower in SLOWDOWNS]
            lines.append(f"| {job} | {count} | {' | '.join(found)} |")
    return lines


def rate(steps: Times, draw: Draw, runs: int, slower: float, draws: int) -> float:
    """Share of draws in which the test fails new runs that are `slower` by that share."""
    random = np.random.default_rng(SEED)
    failed = 0
    for _ in range(draws):
        old, new = draw(random, steps, runs)
        effect = TRAINING.tolerance["measured"]
        failed += compared(old.tolist(), (new * (1 + slower)).tolist(), least_effect=effect).worse
    return failed / draws


_HEAD = """\
# False alarms and detections of `regress check --measured`

    python benchmarks/repeated_steps.py --runs 75 --pause 20 --out benchmarks/measured/cpu_steps.csv
    python benchmarks/regression_rates.py > benchmarks/regression_rates_2026-11.md

The noise is real: `measured/cpu_steps.csv` holds training steps of Megatron-Core 0.16.1 (torch
2.13.0, CPU, gloo; 4 layers, hidden 128, 4 heads, sequence 128, 4 micro-batches), every run in fresh
processes, on a machine with 2 cores that other work shares all the time (column `load_1min`). Equal
runs differ by factors there, far more than on a GPU cluster: read the rates as a bad case, not as a
promise. Only the slow-down is injected, as a factor on the new runs.

The test fails a figure when the medians differ by more than {effect:.0%} and the one-sided
Mann-Whitney test gives p <= {alpha}. The column `none` is the rate of false alarms, `+1%` and `+2%`
are below the least effect and should pass; {draws} draws a cell.
"""
_TAIL = """
## What follows

- Steps of one run are not repetitions: neighbours, placement and clock are the same for all of
  them, and two equal runs look different far more often than the test's level. That is why a file
  with a `run` column counts each run once, and why the gate wants at least 5 runs on both sides.
- With equal runs that differ by factors, a slow-down of 10 or 20 % is mostly missed: the gate keeps
  quiet rather than cry wolf. More runs help; a quiet machine helps more.
- Drift between pinning and checking is not noise that a test can know of. Where a machine is
  shared, measure the pinned revision again beside the new one, in turns.
"""

if __name__ == "__main__":
    main()
