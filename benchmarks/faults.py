"""Inject faults into trials and drivers, and write down what happened.

    PYTHONPATH=. python benchmarks/faults.py --out benchmarks/faults_2026-11.md

Faults are real: processes are killed and stopped, exceptions raised inside a training step, memory
really runs out, disks really fill. Ranks are reached through a `sitecustomize.py` on their
`PYTHONPATH`, drivers through signals. After each one: did the trial end, with which outcome; are
all finished trials still in the journal; is any process left over; does the launcher still work.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from autoparallel import catalog
from autoparallel.layout import Layout
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.launcher import Launcher, run_trial
from autoparallel.profiling.store import Store
from autoparallel.profiling.subprocess_launcher import SubprocessLauncher

MARK = "AUTOPARALLEL_FAULT_RUN"
FAULT = "AUTOPARALLEL_FAULT"
GONE_S = 75.0
"""Ray's own agents look for a head that was killed with its driver for a minute, then end."""
BUDGET_S = 45.0
INJECTION = '''
"""Wait until this rank trains, then do what the environment says."""
import os, sys, threading, time


def victim():
    name = "autoparallel.profiling.worker.training"
    for number, frame in sys._current_frames().items():
        while frame is not None:
            if frame.f_globals.get("__name__") == name and frame.f_code.co_name == "train":
                return number
            frame = frame.f_back


def strike():
    kind, _, rank = os.environ["AUTOPARALLEL_FAULT"].partition("@")
    while os.environ.get("RANK") != rank or victim() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    if kind == "kill":
        os.kill(os.getpid(), 9)
    elif kind == "stop":
        os.kill(os.getpid(), 19)
    elif kind == "raise":
        import ctypes
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(victim()), ctypes.py_object(RuntimeError)
        )
    elif kind == "limit":
        import resource
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used, used))
        held, size = [], 1 << 24
        while True:
            try:
                held.append(bytearray(size))
            except MemoryError:
                size = max(size // 2, 64)
                if size == 64:
                    time.sleep(0.001)
    elif kind == "fill":
        held = []
        while True:
            held.append(b"x" * (64 << 20))
            time.sleep(0.02)


if "AUTOPARALLEL_FAULT" in os.environ:
    threading.Thread(target=strike, daemon=True).start()
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    fault: str
    launcher: str
    expected: str
    outcome: str
    seconds: float
    kept: str
    left_over: int
    works_again: str

    @property
    def good(self) -> bool:
        """Whether it went as it should."""
        clean = self.left_over == 0 and self.works_again in ("yes", "")
        return clean and self.outcome == self.expected and "lost" not in self.kept


@contextmanager
def marked() -> Iterator[str]:
    """Everything started inside carries a mark in its environment, by which it is found again."""
    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    try:
        yield mark
    finally:
        del os.environ[MARK]


def left_over(mark: str, patience_s: float = GONE_S) -> list[int]:
    """Processes with the mark that are still there after `patience_s`, this one aside."""
    end = time.monotonic() + patience_s
    while (found := _with_mark(mark)) and time.monotonic() < end:
        time.sleep(0.25)
    return found


def _with_mark(mark: str) -> list[int]:
    wanted = f"{MARK}={mark}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ended = (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            inside = wanted in (place / "environ").read_bytes().split(b"\0")
            if inside and not ended and int(place.name) != os.getpid():
                found.append(int(place.name))
    return found


def job(layout: str = "tp2 pp1 mbs4 zero1", *, fault: str = "", **changes: Any) -> Job:
    """A two-rank job of the tiny model, with a fault that strikes inside its steps."""
    environment = {}
    if fault:
        folder = Path(tempfile.gettempdir()) / "autoparallel-injection"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(INJECTION)
        # One heap for all threads: else a rank lives on from what its own heap has to spare.
        environment = {"PYTHONPATH": str(folder), FAULT: fault, "MALLOC_ARENA_MAX": "1"}
    values: dict[str, Any] = {
        "steps": 400 if fault else 2,
        "timeout_s": 300.0,
        "environment": environment,
        **changes,
    }
    return Job(
        model=catalog.model("gpt-tiny"),
        layout=Layout.parse(layout),
        num_gpus=2,
        global_batch_size=8,
        seq_length=64,
        device="cpu",
        **values,
    )


def ray_launcher() -> Launcher:
    """A local Ray with room for two ranks."""
    from autoparallel.profiling.ray_launcher import RayLauncher

    return RayLauncher(ranks=2)


LAUNCHERS: dict[str, Callable[[], Launcher]] = {
    "subprocess": SubprocessLauncher,
    "ray": ray_launcher,
}
RANK_FAULTS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("a rank is killed (SIGKILL)", "kill@1", "crash", {}),
    ("a rank raises inside a step", "raise@1", "crash", {}),
    ("a rank stops for ever (SIGSTOP), deadline 15 s", "stop@1", "timeout", {"timeout_s": 15.0}),
    (
        "a rank stops for ever, its peer gives up after 5 s",
        "stop@1",
        "timeout",
        {"collective_timeout_s": 5.0},
    ),
    ("a rank may allocate no more memory", "limit@1", "out_of_memory", {}),
)


def rank_fault(title: str, fault: str, expected: str, name: str, changes: dict[str, Any]) -> Row:
    """Run a trial with a fault in one rank, then a healthy one on the same launcher."""
    with marked() as mark, tempfile.TemporaryDirectory() as folder:
        launcher = LAUNCHERS[name]()
        start = time.monotonic()
        try:
            result = run_trial(launcher, job(fault=fault, **changes), Path(folder) / "a")
            seconds = time.monotonic() - start
            after = run_trial(launcher, job(), Path(folder) / "b")
        finally:
            launcher.close()
        left = left_over(mark)
    show(title, name, result)
    return Row(
        fault=title,
        launcher=name,
        expected=expected,
        outcome=result.outcome,
        seconds=seconds,
        kept="",
        left_over=len(left),
        works_again="yes" if after.ok else f"no: {after.message[:60]}",
    )


def host_memory() -> Row:
    """A rank fills the host until Ray's memory monitor ends it."""
    total, available = _memory_bytes()
    limit = (total - available + 1.6e9) / total
    monitor = {
        "RAY_memory_usage_threshold": f"{limit:.4f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    os.environ.update(monitor)
    try:
        title = "a rank fills the host's memory (Ray's monitor)"
        return rank_fault(title, "fill@1", "out_of_memory", "ray", {})
    finally:
        for variable in monitor:
            del os.environ[variable]


def _memory_bytes() -> tuple[float, float]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in lines}
    return sizes["MemTotal"], sizes["MemAvailable"]


def driver(run: Path, name: str, *more: str, code: str = "") -> subprocess.Popen[str]:
    """`autoparallel profile` in a process of its own, or `code` with the same arguments."""
    words = [str(run), "--device", "cpu", "--launcher", name, *more]
    program = ["-c", code] if code else ["-m", "autoparallel", "profile"]
    return subprocess.Popen(
        [sys.executable, *program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # a script started in the background hands on an ignored Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def searched(run: Path) -> Path:
    """A run directory with a plan of the tiny model on two ranks."""
    words = ["search", "--model", "gpt-tiny", "--cluster", "local-cpu", "--gpus", "2"]
    subprocess.run(
        [sys.executable, "-m", "autoparallel", *words, "--out", str(run), "--quiet"],
        check=True,
        capture_output=True,
    )
    return run


def wait_until(true: Callable[[], bool], patience_s: float = 120.0) -> bool:
    """Whether it became true in time."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def journal_lines(run: Path) -> int:
    """Whole lines of the journal."""
    path = run / "trials" / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def trains(run: Path) -> bool:
    """Whether a trial that is not in the journal yet has made its first step."""
    return len(list((run / "trials").glob("*/steps.jsonl"))) > journal_lines(run)


def killed_driver(name: str, *, inside: bool, sent: signal.Signals = signal.SIGKILL) -> Row:
    """End the driver inside its second trial, or right after its first; then run it again."""
    with marked() as mark, tempfile.TemporaryDirectory() as folder:
        run = searched(Path(folder) / "run")
        process = driver(run, name, "--top", "3", "--steps", "3")
        start = time.monotonic()
        wait_until(lambda: journal_lines(run) >= 1 and (not inside or trains(run)))
        process.send_signal(sent)
        said, _ = process.communicate(timeout=180)
        left = left_over(mark)
        seconds = time.monotonic() - start
        before = [trial.result.trial for trial in Store(run).trials()]
        again = driver(run, name, "--top", "2", "--steps", "3")
        output, _ = again.communicate(timeout=300)
        after = [trial.result.trial for trial in Store(run).trials()]
        left += left_over(mark)
    print(said[-600:], output[-1200:], sep="\n", flush=True)
    where = "inside a trial" if inside else "between trials"
    how = "Ctrl-C" if sent == signal.SIGINT else "kill -9"
    kept = after[: len(before)] == before and len(set(after)) == len(after) and bool(before)
    return Row(
        fault=f"the driver gets {how} {where}",
        launcher=name,
        expected="exit 130" if sent == signal.SIGINT else f"exit {-signal.SIGKILL}",
        outcome=f"exit {process.returncode}",
        seconds=seconds,
        kept=f"{len(before)} of {len(before)} trials" if kept else "lost",
        left_over=len(left),
        works_again="yes" if again.returncode == 0 else f"exit {again.returncode}",
    )


def spent_budget(name: str) -> Row:
    """The budget ends inside a long trial; then the run goes on with another one."""
    with marked() as mark, tempfile.TemporaryDirectory() as folder:
        run = searched(Path(folder) / "run")
        start = time.monotonic()
        process = driver(run, name, "--top", "3", "--steps", "9999", "--budget", f"{BUDGET_S:g}s")
        said, _ = process.communicate(timeout=300)
        seconds = time.monotonic() - start
        left = left_over(mark)
        before = Store(run).trials()
        cut = [t for t in before if any("cut by" in note for note in t.result.deviations)]
        again = driver(run, name, "--top", "2", "--steps", "3")
        again.communicate(timeout=300)
        left += left_over(mark)
    print(said[-1200:], flush=True)
    return Row(
        fault=f"the budget of {BUDGET_S:g} s ends inside a trial",
        launcher=name,
        expected="exit 0",
        outcome=f"exit {process.returncode}",
        seconds=seconds,
        kept=f"{len(cut)}, cut with its steps so far" if cut else "lost",
        left_over=len(left),
        works_again="yes" if again.returncode == 0 else f"exit {again.returncode}",
    )


def damaged_journal() -> Row:
    """Bytes change in one line and the last line is cut; then the run goes on."""
    with marked() as mark, tempfile.TemporaryDirectory() as folder:
        run = searched(Path(folder) / "run")
        start = time.monotonic()
        first = driver(run, "subprocess", "--top", "2", "--steps", "2")
        first.communicate(timeout=300)
        journal = run / "trials" / "journal.jsonl"
        lines = journal.read_bytes().splitlines(keepends=True)
        damaged = lines[0].replace(b'"steps"', b'"stepz"')
        journal.write_bytes(b"".join([damaged, *lines[1:], lines[-1][: len(lines[-1]) // 2]]))
        again = driver(run, "subprocess", "--top", "2", "--steps", "2")
        output, _ = again.communicate(timeout=300)
        store = Store(run)
        kept = [t.result.trial for t in store.trials()]
        left = left_over(mark)
    whole = [line.partition(b" ")[0] for line in lines[1:]]
    print(output[-800:], flush=True)
    return Row(
        fault="the journal has a changed line and half a line",
        launcher="subprocess",
        expected="2 lines left out, said",
        outcome="2 lines left out, said" if "2 damaged lines" in output else "not said",
        seconds=time.monotonic() - start,
        kept=f"{len(whole)} of {len(whole)} whole lines" if len(kept) >= len(whole) else "lost",
        left_over=len(left),
        works_again="yes" if again.returncode == 0 else f"exit {again.returncode}",
    )


def full_disk() -> Row:
    """The run directory is on a small tmpfs that is filled while a trial runs."""
    with marked() as mark, tempfile.TemporaryDirectory() as folder:
        disk = Path(folder)
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
        subprocess.run(mount, check=True, capture_output=True)
        try:
            run = searched(disk / "run")
            start = time.monotonic()
            process = driver(run, "subprocess", "--top", "3", "--steps", "60")
            wait_until(lambda: journal_lines(run) >= 1 and trains(run))
            filler = disk / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as stream:
                while True:
                    stream.write(b"x" * 4096)
            said, _ = process.communicate(timeout=300)
            seconds = time.monotonic() - start
            before = _trials(run)
            filler.unlink()
            again = driver(run, "subprocess", "--top", "3", "--steps", "3")
            again.communicate(timeout=300)
            after = _trials(run)
            left = left_over(mark)
        finally:
            subprocess.run(["umount", folder], check=False)
    print(said[-800:], flush=True)
    return Row(
        fault="the disk is full when a trial ends (4 MB tmpfs)",
        launcher="subprocess",
        expected="exit 2",
        outcome=f"exit {process.returncode}",
        seconds=seconds,
        kept=f"{len(before)} trials" if after[: len(before)] == before and before else "lost",
        left_over=len(left),
        works_again="yes" if again.returncode == 0 else f"exit {again.returncode}",
    )


def _trials(run: Path) -> list[str]:
    path = run / "trials" / "journal.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    found = []
    for line in lines:
        with suppress(ValueError, KeyError):
            found.append(json.loads(line.partition(" ")[2])["result"]["trial"])
    return found


KNOCKED = """
import os, signal, sys
from pathlib import Path
from autoparallel.cli import main
from autoparallel.profiling.ray_head import Head

answers, run = Head.answers, Path(sys.argv[1])

def strike(self, every_s):
    found = answers(self, every_s)
    if found and (run / "strike").exists():
        (run / "strike").unlink()
        for place in Path("/proc").glob("[0-9]*"):
            try:
                name, mark = (place / "comm").read_text().strip(), (place / "environ").read_bytes()
                ours = os.environ["AUTOPARALLEL_FAULT_RUN"].encode() in mark
                if ours and name in ("gcs_server", "raylet"):
                    os.kill(int(place.name), signal.SIGKILL)
            except OSError:
                pass
    return found

Head.answers = strike
main(["profile", *sys.argv[1:]])
"""
"""A driver that kills its head right after a knock that was answered, when told to."""


def killed_head(run: Path, mark: str) -> None:
    """Kill the head's processes of a local Ray."""
    for pid in _with_mark(mark):
        with suppress(OSError):
            name = (Path("/proc") / str(pid) / "comm").read_text().strip()
            if name in ("gcs_server", "raylet"):
                os.kill(pid, signal.SIGKILL)


def struck_after_a_knock(run: Path, mark: str) -> None:
    """Tell the driver to do it."""
    (run / "strike").touch()


def ray_head_gone(*, knocked: bool = False) -> Row:
    """The local Ray's head processes are killed inside a trial; then the run goes on.

    `knocked` kills them in the instant between a knock that is answered and the call after it.
    """
    with marked() as mark, tempfile.TemporaryDirectory() as folder:
        run = searched(Path(folder) / "run")
        start = time.monotonic()
        words = ("--top", "3", "--steps", "20")
        process = driver(run, "ray", *words, code=KNOCKED if knocked else "")
        wait_until(lambda: journal_lines(run) >= 1 and trains(run))
        before = _trials(run)
        (struck_after_a_knock if knocked else killed_head)(run, mark)
        try:
            said, _ = process.communicate(timeout=180)
            outcome = f"exit {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            outcome = "hangs"
        seconds = time.monotonic() - start
        left = left_over(mark)
        names = [(Path("/proc") / str(pid) / "comm").read_text().strip() for pid in left]
        print("left over:", names, flush=True)
        again = driver(run, "ray", "--top", "2", "--steps", "3")
        again.communicate(timeout=300)
        after = _trials(run)
        left += left_over(mark)
    print(said[-1500:], flush=True)
    return Row(
        fault="the Ray head is killed " + ("after a knock" if knocked else "inside a trial"),
        launcher="ray",
        expected="exit 4",
        outcome=outcome,
        seconds=seconds,
        kept=f"{len(before)} trials" if after[: len(before)] == before and before else "lost",
        left_over=len(left),
        works_again="yes" if again.returncode == 0 else f"exit {again.returncode}",
    )


def show(title: str, name: str, result: Result) -> None:
    """What a trial said of itself."""
    print(f"{title} [{name}]: {result.outcome}: {result.message[:300]}", flush=True)


def every() -> list[tuple[str, Callable[[], Row]]]:
    """Name and experiment of every fault."""
    found: list[tuple[str, Callable[[], Row]]] = []
    for name in LAUNCHERS:
        for number, (title, fault, expected, changes) in enumerate(RANK_FAULTS):
            trial = partial(rank_fault, title, fault, expected, name, changes)
            found.append((f"{name}-{number}-{fault}", trial))
        found += [
            (f"{name}-driver", partial(killed_driver, name, inside=True)),
            (f"{name}-between", partial(killed_driver, name, inside=False)),
            (
                f"{name}-interrupt",
                partial(killed_driver, name, inside=True, sent=signal.SIGINT),
            ),
        ]
    return [
        *found,
        ("ray-memory", host_memory),
        ("ray-head", ray_head_gone),
        ("ray-knocked", partial(ray_head_gone, knocked=True)),
        ("journal", damaged_journal),
        ("disk", full_disk),
        *((f"{name}-budget", partial(spent_budget, name)) for name in LAUNCHERS),
    ]


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| fault | launcher | ended as | s | finished trials kept | processes left | works again |",
        "|---|---|---|---:|---|---:|---|",
    ]
    lines += [
        f"| {r.fault} | {r.launcher} | {r.outcome}{'' if r.good else ' (**not as expected**)'} | "
        f"{r.seconds:.0f} | {r.kept or 'none before'} | {r.left_over} | {r.works_again} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the faults that are asked for; 0 when all went as they should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--out", type=Path, help="Markdown file to write the table into")
    given = parser.parse_args()
    rows = []
    for name, experiment in every():
        if given.only in name:
            print(f"== {name}", flush=True)
            rows.append(experiment())
            print(table(rows[-1:]), flush=True)
    text = table(rows)
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
