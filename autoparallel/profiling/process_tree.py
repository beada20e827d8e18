"""Ending a program with everything it started, also what left its session.

torchrun starts every worker in a session of its own, so that killing its process group leaves the
workers on their GPUs. The tree is therefore read from `/proc` before anything is ended, and again
while it goes down.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

GRACE_S = 10.0
_PROC = Path("/proc")
_DIE_WITH_PARENT = 1  # prctl(PR_SET_PDEATHSIG)


def end_tree(process: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> None:
    """End `process` and all its descendants: asked first, after `grace_s` killed; reaped.

    No error when they have gone already. Descendants that `process` left behind when it died
    before this call are found by its process group alone.
    """
    tree = {process.pid, *descendants(process.pid)}
    _signal(process.pid, tree, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(_alive(process, pid) for pid in tree):
        tree |= set(descendants(process.pid))
        time.sleep(0.02)
    _signal(process.pid, tree, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5.0)


def dies_with_parent(sent: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """For `preexec_fn`: on Linux the program is asked to end when its driver is gone, however.

    It is asked, not killed, so that torchrun takes its workers with it. A rank has no workers and
    may sit in a collective: it is `sent` SIGKILL.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_DIE_WITH_PARENT, sent, 0, 0, 0)


def descendants(pid: int) -> list[int]:
    """Children of `pid`, theirs, and so on; empty where there is no `/proc`."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        if parent := _parent(folder):
            children.setdefault(parent, []).append(int(folder.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _parent(folder: Path) -> int:
    """Parent of a process; 0 when it has gone. The name in `stat` may hold anything but `)`."""
    try:
        return int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _alive(process: subprocess.Popen[bytes], pid: int) -> bool:
    """Whether a process of the tree still runs; one that waits to be reaped does not."""
    if pid == process.pid:
        return process.poll() is None
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
        state = stat.rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def _signal(leader: int, tree: set[int], number: signal.Signals) -> None:
    """Signal the leader's process group, then what has left it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
    for pid in tree:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
