"""Runs of real megatron-core layers on one GPU, in pieces that can be stopped and gone on with.

PYTHONPATH=. python benchmarks/gpu/gpu_run.py --out DIR [--piece NAME ...] [--budget-s 500]
    [--device cuda|cpu] [--tiny] [--steps 8] [--list]

Every run is a fresh process; what has been measured is in DIR/trials/journal.jsonl and is not run
again. Needs torch, megatron-core 0.16 and NumPy.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from gpu_grid import PIECES, Run, runs

from autoparallel.errors import bad_value
from autoparallel.profiling.job import Result
from autoparallel.profiling.launcher import run_trial
from autoparallel.profiling.store import Store
from autoparallel.profiling.subprocess_launcher import SubprocessLauncher

RUN_S = 40.0
"""Assumed: the longest run; none is begun that would not end within the budget."""


def main() -> None:
    """Run what is left of the chosen pieces, as long as the budget lasts."""
    arguments = _arguments()
    chosen = _chosen(arguments)
    if arguments.list:
        for run in chosen:
            print(_title(run))
        return
    store = Store(arguments.out)
    left = [run for run in chosen if store.find(run.job) is None]
    begin = time.monotonic()
    print(f"{len(chosen)} runs, {len(chosen) - len(left)} done")
    while left and time.monotonic() - begin + RUN_S < arguments.budget_s:
        _run(store, left.pop(0))
    print(f"{len(left)} left" + ("; run it again to go on" if left else ""))


def _run(store: Store, run: Run) -> None:
    launcher = SubprocessLauncher()
    try:
        result = run_trial(launcher, run.job, store.trial_folder(run.job))
    finally:
        launcher.close()
    store.append(run.job, result)
    print(told(run, result), flush=True)


def told(run: Run, result: Result) -> str:
    """A run's result in a line."""
    seconds = f"{result.iteration_s * 1e3:9.2f} ms" if result.iteration_s else " " * 12
    memory = f"{(result.peak_memory_bytes or 0) / 2**30:6.2f} GiB"
    return f"{result.outcome:14} {seconds} {memory}  {_title(run)}  {result.message[:90]}"


def _title(run: Run) -> str:
    job = run.job
    return f"{run.piece} {run.stage} {job.model.name} s{job.seq_length} {job.layout}"


def _chosen(arguments: argparse.Namespace) -> list[Run]:
    for piece in arguments.piece or ():
        if piece not in PIECES:
            raise SystemExit(str(bad_value("--piece", piece, "is not one of " + ", ".join(PIECES))))
    every = runs(
        tiny=arguments.tiny,
        device=arguments.device,
        steps=arguments.steps,
        warmup_steps=arguments.warmup_steps,
    )
    return [run for run in every if not arguments.piece or run.piece in arguments.piece]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser)
    parser.add_argument("--piece", action="append", help=", ".join(PIECES))
    parser.add_argument("--list", action="store_true", help="say what would run")
    return parser.parse_args()


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Where, on what, and how long."""
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget-s", type=float, default=500.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="1/32 of the width, to rehearse")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup-steps", type=int, default=3)


if __name__ == "__main__":
    main()
