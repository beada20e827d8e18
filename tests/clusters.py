"""Fake programs of Slurm and Kubernetes, first in PATH, for tests of what uses them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FAKES = Path(__file__).parent / "profiling" / "fakes"
WORKER = f'#!/bin/sh\nexec {sys.executable} -m autoparallel.profiling.worker "$@"\n'


def program(path: Path, fake: str, *flags: str) -> None:
    """An executable that is a file of `fakes/`, run by this Python."""
    text = f"#!{' '.join((sys.executable, *flags))}\n" + (FAKES / f"{fake}.py").read_text()
    executable(path, text)


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _folders(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> tuple[Path, Path]:
    programs, home = folder / "bin", folder / name
    programs.mkdir()
    home.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv(variable, str(home))
    return programs, home


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder that holds its state. `python3` of its nodes is the real one."""
    programs, home = _folders(folder, monkeypatch, "slurm", "FAKE_SLURM")
    for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun"):
        program(programs / name, "slurm", "-S")
    program(programs / "fake-python", "rank")
    executable(programs / "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    return home


def fake_kubernetes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder of its objects. `python3` of its pods starts real ranks of one node."""
    programs, home = _folders(folder, monkeypatch, "objects", "FAKE_KUBERNETES")
    program(programs / "kubectl", "kubectl", "-S")
    program(programs / "fake-python", "torchrun", "-S")
    program(programs / "fake-rank", "rank")
    real = programs / "real"
    real.mkdir()
    program(real / "torchrun", "torchrun", "-S")
    executable(real / "fake-rank", WORKER)
    executable(programs / "python3", f'#!/bin/sh\nexec {real / "torchrun"} "$@"\n')
    return home
