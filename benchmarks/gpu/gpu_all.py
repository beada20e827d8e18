"""Everything of this folder in one command, as far as the budget goes; again to go on.

PYTHONPATH=. python benchmarks/gpu/gpu_all.py --out DIR [--budget-s 480] [--pack FILE.tar.gz]
    [--from FILE.tar.gz] [--device cuda|cpu] [--tiny] [--steps 8]

Layers first, a few of every piece before the rest of any, then operator tables with the time that
is left. `--pack` keeps all results in one small file that is whole after every run, for a machine
from which only some files come back or that may stop at any time; `--from` goes on from one.
"""

from __future__ import annotations

import argparse
import tarfile
import time
from collections import Counter
from pathlib import Path

from forked import REFUSED, ForkLauncher, preload
from gpu_grid import Run, runs
from gpu_run import RUN_S, add_run_options, told

from autoparallel.errors import AutoparallelError
from autoparallel.profiling.launcher import Launcher, run_trial
from autoparallel.profiling.operators import measure
from autoparallel.profiling.store import Store
from autoparallel.profiling.subprocess_launcher import SubprocessLauncher

KEPT = ("trials/journal.jsonl", "profiles/operators/*")


def main() -> None:
    """Run, measure, pack."""
    given = _arguments()
    deadline = time.monotonic() + given.budget_s
    if given.going_on and given.going_on.is_file():
        with tarfile.open(given.going_on) as archive:
            archive.extractall(given.out, filter="data")
    print(f"imports took {preload(given.device):.1f} s", flush=True)
    left = _layers(given, deadline)
    if left:
        print(f"{left} runs left; run it again to go on")
        return
    _operators(given, deadline)


def _layers(given: argparse.Namespace, deadline: float) -> int:
    """Runs that are missing, one after the other; how many are left."""
    every = runs(
        tiny=given.tiny, device=given.device, steps=given.steps, warmup_steps=given.warmup_steps
    )
    store = Store(given.out)
    left = [run for run in _mixed(every) if store.find(run.job) is None]
    print(f"{len(every)} runs, {len(every) - len(left)} done", flush=True)
    launcher: Launcher = ForkLauncher()
    longest = 0.0
    while left and time.monotonic() + max(min(RUN_S, 3 * longest), longest) < deadline:
        begin = time.monotonic()
        run = left.pop(0)
        result = run_trial(launcher, run.job, store.trial_folder(run.job))
        if REFUSED in result.message + result.log_tail:
            print("CUDA takes no forks here: plain processes from now on", flush=True)
            launcher = SubprocessLauncher()
            result = run_trial(launcher, run.job, store.trial_folder(run.job))
        store.append(run.job, result)
        longest = max(longest, time.monotonic() - begin)
        print(told(run, result), f"({time.monotonic() - begin:.1f} s)", flush=True)
        _pack(given)
    launcher.close()
    return len(left)


def _mixed(every: list[Run]) -> list[Run]:
    """The first of every piece, then the second of every piece, and so on."""
    seen, places = Counter[str](), {}
    for run in every:
        places[id(run)] = seen[run.piece]
        seen[run.piece] += 1
    return sorted(every, key=lambda run: places[id(run)])


def _operators(given: argparse.Namespace, deadline: float) -> None:
    budget = deadline - time.monotonic() - RUN_S
    if budget <= 0:
        print("no time left for operators; run it again to go on")
        return
    try:
        found = measure(
            given.out / "profiles",
            SubprocessLauncher(),
            device=given.device,
            gpu=given.gpu,
            tiny=given.tiny,
            budget_s=budget,
        )
        print(f"operators: {found.taken} samples taken, {found.left} left")
    except AutoparallelError as error:
        print(f"operators: {error}")
    _pack(given)


def _pack(given: argparse.Namespace) -> None:
    """All results as one file, put in place whole."""
    if given.pack is None:
        return
    half = given.pack.with_suffix(".half")
    with tarfile.open(half, "w:gz", compresslevel=1) as archive:
        for pattern in KEPT:
            for path in sorted(given.out.glob(pattern)):
                archive.add(path, path.relative_to(given.out))
    half.replace(given.pack)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser)
    parser.add_argument("--pack", type=Path, help="results as one .tar.gz, whole after every run")
    parser.add_argument("--from", dest="going_on", type=Path, help="go on from such a file")
    parser.add_argument("--gpu", help="entry of the catalog, for a name that is not known")
    return parser.parse_args()


if __name__ == "__main__":
    main()
