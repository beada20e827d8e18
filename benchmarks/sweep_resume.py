"""A sweep of 64 cases on a local Ray, killed with signal 9 and resumed: nothing is lost.

    PYTHONPATH=. python benchmarks/sweep_resume.py [FOLDER]

Runs the sweep, kills its driver and every process of its Ray once some cases are done, runs it
again, and compares with the same sweep in one process. Writes the table to
`benchmarks/sweep_2026-11.md`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TABLE = HERE / "sweep_2026-11.md"
AXES = {
    "--model": "llama-3.1-70b,gpt-175b",
    "--gpus": "256,512,1000,1024",
    "--cluster": "dgx-a100-80gb,dgx-h100,dgx-h200,dgx-b200",
    "--global-batch-size": "1024,2048",
}
CASES = 64
KILL_AT = 20
"""Finished cases at which the first run is killed."""
NOT_COMPARED = {"search_s"}


def command(folder: Path, *more: str) -> list[str]:
    """The sweep into `folder`."""
    axes = [word for pair in AXES.items() for word in pair]
    start = [sys.executable, "-m", "autoparallel", "sweep"]
    return [*start, *axes, "--out", str(folder), "--quiet", *more]


def environment() -> dict[str, str]:
    """The sweep's environment: this checkout, one thread a process."""
    return {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}


def done(folder: Path) -> dict[str, float]:
    """Finished cases, with when their files were written."""
    return {path.name: path.stat().st_mtime for path in (folder / "cases").glob("*.json")}


def descendants(root: int) -> list[int]:
    """A process and all that it started, by /proc."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def killed(folder: Path) -> dict[str, float]:
    """Start the sweep and kill it with all its processes at `KILL_AT` cases; what is left."""
    process = subprocess.Popen(
        command(folder, "--ray-address", "local"), env=environment(), stdout=subprocess.DEVNULL
    )
    while len(done(folder)) < KILL_AT:
        if process.poll() is not None:
            raise SystemExit("the sweep ended before it could be killed")
        time.sleep(0.05)
    for victim in descendants(process.pid):
        os.kill(victim, signal.SIGKILL)
    process.wait()
    return done(folder)


def whole(folder: Path, *more: str) -> tuple[float, dict[str, Any]]:
    """Run the sweep to its end; seconds, and its results by case."""
    start = time.perf_counter()
    subprocess.run(command(folder, *more), env=environment(), stdout=subprocess.DEVNULL, check=True)
    cases = json.loads((folder / "sweep.json").read_text())["cases"]
    plain = {c["id"]: {k: v for k, v in c.items() if k not in NOT_COMPARED} for c in cases}
    return time.perf_counter() - start, plain


def main() -> None:
    """Kill, resume, compare, write the table."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    kept = killed(root / "ray")
    halves = list((root / "ray" / "cases").glob(".*.tmp"))
    resumed_s, resumed = whole(root / "ray", "--ray-address", "local")
    after = done(root / "ray")
    plain_s, plain = whole(root / "plain")
    checks = {
        "cases finished when everything was killed": len(kept),
        "of these, searched again by the second run": sum(after[n] != t for n, t in kept.items()),
        "files that hold half a result": sum(
            1 for n in after if not _reads(root / "ray" / "cases" / n)
        ),
        "temporary files left by the kill": len(halves),
        "cases after the second run": len(after),
        "cases that differ from one process without Ray": sum(
            resumed.get(name) != values for name, values in plain.items()
        ),
        "seconds of the second run (Ray start included)": round(resumed_s, 1),
        "seconds of all cases in one process": round(plain_s, 1),
    }
    text = table(checks)
    TABLE.write_text(text)
    print(text)
    good = len(after) == CASES == len(plain) and resumed == plain
    sys.exit(0 if good else 1)


def _reads(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()))
    except ValueError:
        return False


def table(checks: dict[str, object]) -> str:
    """The findings as Markdown."""
    axes = " ".join(f"{flag} {values}" for flag, values in AXES.items())
    rows = "\n".join(f"| {name} | {value} |" for name, value in checks.items())
    return (
        "# A sweep of 64 cases on a local Ray, killed and resumed\n\n"
        f"`autoparallel sweep {axes} --ray-address local --out DIR`, its driver and every process\n"
        f"of its Ray killed with signal 9 at {KILL_AT} finished cases, then run again;\n2 CPU "
        "cores. Made by `benchmarks/sweep_resume.py`.\n\n| | |\n|---|---|\n" + rows + "\n"
    )


if __name__ == "__main__":
    main()
