"""What the screen shows: whole lines, aligned numbers, bars in proportion."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoparallel.cli import screen
from autoparallel.cli.screen import PARTS, Column
from autoparallel.reporting import wording

ROOT = Path(__file__).parents[2]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SEARCH = ("search", "--model", "deepseek-v3", "--gpus", "256", "--cluster", "dgx-h200")


def on_a_terminal(columns: int, tmp_path: Path, *argv: str) -> list[str]:
    """The lines of a run whose output is a terminal of that width."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(
        [sys.executable, "-m", "autoparallel", *argv],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment,
    ) as process:
        os.close(writer)
        text = b""
        while chunk := read(reader):
            text += chunk
        assert process.wait() == 0, process.stderr.read()
    os.close(reader)
    return text.decode().replace("\r\n", "\n").splitlines()


def read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_a_terminal_of_any_width_shows_whole_layouts(tmp_path, columns):
    from autoparallel.plan import load_plan

    lines = on_a_terminal(columns, tmp_path, *SEARCH)
    (folder,) = (tmp_path / "runs").iterdir()
    layouts = [str(entry.layout) for entry in load_plan(folder).entries]
    plain = [COLOUR.sub("", line) for line in lines]
    assert any(line != bare for line, bare in zip(lines, plain, strict=True))
    for layout in layouts:
        assert any(layout in line for line in plain), layout
    room = max(columns, 5 + max(map(len, layouts)))
    table = plain[: next(i for i, line in enumerate(plain) if line.startswith("step of 1"))]
    assert max(map(len, table)) <= room
    for line in plain:
        assert len(line) <= room or any(layout in line for layout in layouts), line


def test_numbers_stand_under_their_heads():
    columns = [
        Column(head="name", cells=["a", "longer"], right=False),
        Column(head="n", cells=["1.5", "10.5"]),
    ]
    lines = [screen.plain(line) for line in screen.rows(columns)]
    assert lines == ["name       n", "a        1.5", "longer  10.5"]


@given(st.lists(st.floats(0, 1e6), min_size=len(PARTS), max_size=len(PARTS)))
def test_a_bar_has_its_length_and_proportions(values):
    parts = dict(zip(PARTS, values, strict=True))
    line = screen.bar(parts, 20)
    total = sum(values)
    if total <= 0:
        assert line == []
        return
    assert sum(len(text) for text, _ in line) == 20
    shown = {text[0]: len(text) for text, _ in line}
    for name, value in parts.items():
        assert abs(shown.get(PARTS[name][0], 0) - value / total * 20) < 1


def test_letters_are_distinct():
    letters = [letter for letter, _, _ in PARTS.values()]
    assert len(set(letters)) == len(letters)


def test_prose_never_breaks_a_layout(monkeypatch):
    layout = "tp8 pp16 vpp8 cp2 mbs1 sp zero1"
    monkeypatch.setattr(screen, "width", lambda: 50)
    text = f"Take {screen.firm(layout)} because it is the fastest of all that fit on this machine."
    lines = [screen.plain(line) for line in screen.prose(text)]
    assert len(lines) > 1
    assert any(layout in line for line in lines)
    assert max(map(len, lines)) <= 50
    assert "\u00a0" not in "".join(lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(123.456, "123.5 s"), (17.4321, "17.43 s"), (1.5, "1.500 s"), (0.05, "50.00 ms")],
)
def test_times_have_four_digits(seconds, text):
    assert wording.time_text(seconds) == text
