"""Everything of this folder in one command, as far as the budget goes; again to go on.

PYTHONPATH=. python benchmarks/gpu/gpu_all.py --out DIR [--budget-s 480] [--pack FILE.tar.gz]
    [--from FILE.tar.gz] [--device cuda|cpu] [--tiny] [--steps 8] [--eager]

Layers first, a few of every piece before the rest of any, then operator tables with the time that
is left. `--pack` keeps all results in one small file that is whole after every run, for a machine
from which only some files come back or that may stop at any time; `--from` goes on from one. What
would go wrong in every run (no GPU, another megatron-core, a compiler that is missing) ends it at
once, with the log, so that the rest of a short lease is not spent on it.
"""

from __future__ import annotations

import argparse
import json
import os
import tarfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from forked import REFUSED, ForkLauncher, preload
from gpu_grid import TIMEOUT_S, Run, runs
from gpu_run import RUN_S, add_run_options, told

from autoparallel.errors import AutoparallelError
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.launcher import Launcher, run_trial
from autoparallel.profiling.operators import KINDS, measure
from autoparallel.profiling.seen import look
from autoparallel.profiling.store import Store
from autoparallel.profiling.subprocess_launcher import SubprocessLauncher

JOURNAL, NODE = "trials/journal.jsonl", "node.json"
KEPT = (JOURNAL, NODE, "profiles/operators/*")
LOST_IN_A_ROW = 3
"""Runs that failed one after the other, after which the runs are not to blame."""
PACKED_S = 15.0
"""Between two packs of operator samples, which come many a second."""


def main() -> None:
    """Run, measure, pack."""
    given = _arguments()
    deadline = time.monotonic() + given.budget_s
    if given.going_on and given.going_on.is_file() and not (given.out / JOURNAL).is_file():
        with tarfile.open(given.going_on) as archive:
            archive.extractall(given.out, filter="data")
    # A fork has none of its parent's threads, so kernels are compiled without a pool of them.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if given.eager:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / NODE).write_text(json.dumps(look().to_json()) + "\n", encoding="utf-8")
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
    longest, lost = 0.0, 0
    while left and time.monotonic() + max(min(RUN_S, 3 * longest), longest) < deadline:
        begin = time.monotonic()
        run = left.pop(0)
        limit_s = min(TIMEOUT_S, deadline - begin)
        result = _tried(launcher, run.job, store, limit_s)
        if REFUSED in result.message + result.log_tail:
            print("CUDA takes no forks here: plain processes from now on", flush=True)
            launcher = SubprocessLauncher()
            result = _tried(launcher, run.job, store, limit_s)
        longest = max(longest, time.monotonic() - begin)
        print(told(run, result), f"({time.monotonic() - begin:.1f} s)", flush=True)
        lost = 0 if result.outcome in ("ok", "out_of_memory") else lost + 1
        if lost:
            print(result.log_tail, flush=True)
        if result.outcome == "invalid" or lost == LOST_IN_A_ROW:
            raise SystemExit("the runs are not to blame: mend what is said above, then go on")
        store.append(run.job, result)
        _pack(given)
    launcher.close()
    return len(left)


def _tried(launcher: Launcher, job: Job, store: Store, limit_s: float) -> Result:
    return run_trial(launcher, replace(job, timeout_s=limit_s), store.trial_folder(job))


def _mixed(every: list[Run]) -> list[Run]:
    """The first of every piece, then the second of every piece, and so on."""
    seen, places = Counter[str](), {}
    for run in every:
        places[id(run)] = seen[run.piece]
        seen[run.piece] += 1
    return sorted(every, key=lambda run: places[id(run)])


def _operators(given: argparse.Namespace, deadline: float) -> None:
    """All kinds in one go; when one of them fails, each by itself."""
    if _measured(given, deadline, KINDS):
        return
    for kind in KINDS:
        _measured(given, deadline, (kind,))


def _measured(given: argparse.Namespace, deadline: float, kinds: tuple[str, ...]) -> bool:
    """Samples that are missing, as long as the time lasts; False when one failed."""
    budget = deadline - time.monotonic() - RUN_S
    if budget <= 0:
        print("no time left for operators; run it again to go on")
        return True
    packed = time.monotonic()

    def keep(_: str) -> None:
        nonlocal packed
        if time.monotonic() - packed > PACKED_S:
            _pack(given)
            packed = time.monotonic()

    failure = None
    try:
        found = measure(
            given.out / "profiles",
            SubprocessLauncher(),
            device=given.device,
            gpu=given.gpu,
            tiny=given.tiny,
            kinds=kinds,
            budget_s=budget,
            progress=keep,
        )
        print(f"operators: {found.taken} samples taken, {found.left} left", flush=True)
    except AutoparallelError as error:
        failure = error
        print(f"operators {', '.join(kinds)}: {error}", flush=True)
    _pack(given)
    return failure is None


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
    parser.add_argument("--eager", action="store_true", help="without torch's compiler")
    parser.add_argument("--gpu", help="entry of the catalog, for a name that is not known")
    return parser.parse_args()


if __name__ == "__main__":
    main()
