"""How fast a search is: candidates a second, the whole command, memory, growth with the space.

    python benchmarks/speed.py [--quick] [--against FOLDER]

Prints markdown. `--against` runs the code of another checkout in turn with this one. Every search
runs in a process of its own on one core or two, best of a few. Rates are evaluated candidates (time
and memory both computed) over the wall time from request to ranked plan, and over the processor
time of all threads, which other work on the machine disturbs less.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

JOBS = (("gpt-175b", 1024), ("megatron-1t", 16384), ("deepseek-v3", 2048))
SPACES = ("default", "full")
GROWTH = (64, 256, 1024, 4096, 16384)
BESIDE = (
    ("gpt-175b", 1024, "full"),
    ("megatron-1t", 16384, "full"),
    ("deepseek-v3", 2048, "full"),
    ("deepseek-v3", 2048, "default"),
    ("gpt-175b", 1024, "default"),
)
"""Searches that two checkouts run in turn."""
CORES = 2
MOST_S = 4.0
"""A search of tens of millions is stopped after as long; its rate stands."""
ROOT = Path(__file__).resolve().parent.parent


def measured(model: str, gpus: int, space: str, cores: int, most: float) -> dict[str, float]:
    """One search, or as much of it as fits `most` seconds, in this process."""
    from autoparallel.planning import candidates_of
    from autoparallel.ranking import cost_model, ranked, setting
    from autoparallel.request import training_request

    _pin(cores)
    request = training_request(model=model, num_gpus=gpus, space=space)
    wall, cpu = time.perf_counter(), time.process_time()
    where = setting(request)
    found = candidates_of(request, where)
    stop = wall + most
    blocks = takewhile(lambda _: time.perf_counter() < stop, found)
    result = ranked(blocks, cost_model(where), request.objective)
    return {
        "considered": found.considered,
        "evaluated": result.evaluated,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def _pin(cores: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def best_search(
    model: str, gpus: int, space: str, cores: int, times: int, most: float = MOST_S
) -> dict[str, Any]:
    """The quickest of `times` searches, each in a fresh process."""
    code = f"import speed; speed.report({model!r}, {gpus}, {space!r}, {cores}, {most})"
    runs = [json.loads(_run([sys.executable, "-c", code])) for _ in range(times)]
    best: dict[str, Any] = min(runs, key=lambda run: run["wall_s"] / run["evaluated"])
    least = min(run["cpu_s"] / run["evaluated"] for run in runs)
    return best | {"cpu_s": least * best["evaluated"]}


def in_turn(
    model: str, gpus: int, space: str, other: Path, times: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same search by the other checkout and by this one, one after the other, on one core."""
    code = f"import speed; speed.report({model!r}, {gpus}, {space!r}, 1, {MOST_S})"
    pairs = [
        [json.loads(_run([sys.executable, "-c", code], root)) for root in (other, ROOT)]
        for _ in range(times)
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def beside_rows(other: Path, times: int) -> list[list[object]]:
    """Medians of both checkouts: processor time a candidate and wall time."""
    rows: list[list[object]] = []
    for model, gpus, space in BESIDE:
        sides = in_turn(model, gpus, space, other, times)
        each = [median(run["cpu_s"] / run["evaluated"] * 1e6 for run in runs) for runs in sides]
        walls = [median(run["wall_s"] / run["evaluated"] * 1e6 for run in runs) for runs in sides]
        peak = [median(run["peak_mb"] for run in runs) for runs in sides]
        counts = {run["evaluated"] for runs in sides for run in runs}
        rows.append(
            [
                f"{model} {gpus}",
                space,
                f"{max(counts):,}",
                *(f"{x:.2f}" for x in each),
                f"{each[0] / each[1]:.2f}",
                f"{walls[0] / walls[1]:.2f}",
                *(f"{x:.0f}" for x in peak),
            ]
        )
    return rows


def report(model: str, gpus: int, space: str, cores: int, most: float) -> None:
    """Print a measurement as JSON: what a fresh process does."""
    measured("gpt-tiny", 8, "default", cores, most)
    print(json.dumps(measured(model, gpus, space, cores, most)))


def _run(command: Sequence[str], root: Path = ROOT) -> str:
    folders = [str(root), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def seconds(command: Sequence[str], times: int) -> float:
    """Wall time of a command, best of `times`."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        _run(command)
        spent.append(time.perf_counter() - start)
    return min(spent)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def rate_rows(times: int) -> list[list[object]]:
    """Candidates a second, per job, space and number of cores."""
    rows: list[list[object]] = []
    for space in SPACES:
        for model, gpus in JOBS:
            for cores in range(1, CORES + 1):
                run = best_search(model, gpus, space, cores, times)
                n = run["evaluated"]
                rows.append(
                    [
                        f"{model} {gpus}",
                        space,
                        cores,
                        f"{n:,}",
                        f"{run['wall_s']:.2f}",
                        f"{n / run['wall_s'] / 1e6:.2f}",
                        f"{run['cpu_s'] / n * 1e6:.2f}",
                        f"{run['peak_mb']:.0f}",
                    ]
                )
    return rows


def command_rows(times: int) -> list[list[object]]:
    """The whole command beside the bare interpreter with NumPy."""
    numpy_s = seconds([sys.executable, "-c", "import numpy"], times)
    rows: list[list[object]] = [["import numpy", f"{numpy_s:.2f}", ""]]
    for model, gpus in JOBS:
        asked = ["search", "--model", model, "--gpus", str(gpus), "--json"]
        spent = seconds([sys.executable, "-m", "autoparallel", *asked], times)
        rows.append([" ".join(asked), f"{spent:.2f}", f"{spent - numpy_s:.2f}"])
    return rows


def growth_rows(times: int) -> list[list[object]]:
    """Time over the size of the space."""
    rows: list[list[object]] = []
    for gpus in GROWTH:
        run = best_search("gpt-175b", gpus, "full", CORES, times)
        considered, n = run["considered"], run["evaluated"]
        each = run["cpu_s"] / n * 1e6
        rows.append([gpus, f"{considered:,}", f"{n:,}", f"{run['wall_s']:.2f}", f"{each:.2f}"])
    return rows


def main() -> None:
    """Print all tables."""
    import numpy as np

    times = 2 if "--quick" in sys.argv else 5
    other = sys.argv[sys.argv.index("--against") + 1] if "--against" in sys.argv else ""
    print(f"Measured {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, ", end="")
    print(f"NumPy {np.__version__}, {platform.machine()}, best of {times}.\n")
    each = "us of processor a candidate"
    if other:
        print(f"## Before and after, median of {2 * times + 1} in turn, one core\n")
        beside = ("job", "space", "evaluated", f"{each}, before", "after", "ratio", "wall ratio")
        rows = beside_rows(Path(other).resolve(), 2 * times + 1)
        print(table((*beside, "peak MB, before", "after"), rows) + "\n")
    print("## Rate\n")
    columns = ("job", "space", "cores", "evaluated", "s", "million a s", each, "peak MB")
    print(table(columns, rate_rows(times)))
    print("\n## Whole command\n")
    print(table(("command", "s", "s beyond NumPy"), command_rows(times)))
    print("\n## Growth with the space (gpt-175b, full space)\n")
    print(table(("GPUs", "considered", "evaluated", "s", each), growth_rows(times)))


if __name__ == "__main__":
    main()
