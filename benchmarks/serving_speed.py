"""How fast a serving plan is: the whole command, best of a few.

    python benchmarks/serving_speed.py [--quick]

Prints markdown: wall time, and processor time of the process, which other work on the machine
disturbs less.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = ("--input-tokens", "4000", "--output-tokens", "1000")
LIMITS = ("--ttft-ms", "1000", "--tpot-ms", "40")
ASKED = (
    ("--model", "llama-3.1-70b", "--gpus", "8", *LENGTHS, *LIMITS),
    ("--model", "llama-3.1-405b", "--gpus", "64", *LENGTHS, *LIMITS),
    ("--model", "llama-3.1-70b", "--gpus", "16", *LENGTHS, *LIMITS, "--request-rate", "3"),
    ("--model", "llama-3.1-70b", "--gpus", "auto", *LENGTHS, *LIMITS, "--request-rate", "20"),
    ("--model", "deepseek-v3", "--cluster", "dgx-h200", "--gpus", "32", *LENGTHS, *LIMITS),
    ("--model", "deepseek-v3", "--cluster", "gb200-nvl72", "--gpus", "72", *LENGTHS, *LIMITS),
)


def spent_s(command: Sequence[str]) -> tuple[float, float]:
    """Wall and processor time of a command; it may find no plan, but not fail."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def main() -> None:
    """Print the table."""
    times = 2 if "--quick" in sys.argv else 5
    print(f"Measured {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, ", end="")
    print(f"{platform.machine()}, best of {times}.\n")
    print("| command | wall s | processor s |\n| --- | --- | --- |")
    for flags in ASKED:
        command = [sys.executable, "-m", "autoparallel", "infer", *flags, "--json"]
        runs = [spent_s(command) for _ in range(times)]
        wall, cpu = (min(column) for column in zip(*runs, strict=True))
        print(f"| infer {' '.join(flags)} | {wall:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
