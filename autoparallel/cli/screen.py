"""Drawing: styled lines, aligned tables, bars. It knows whether a person is reading.

A line is a list of (text, style). On a terminal lines are coloured by Rich and prose is wrapped,
never inside a layout; piped, every line is plain text of its own, so `grep` finds whole answers.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import typer

Line: TypeAlias = list[tuple[str, str]]
GAP = "  "
BAR_CELLS = 20
_FIRM = "\u00a0"
"""A space at which no line is broken."""

PARTS = {
    "compute_s": ("C", "compute", "black on green"),
    "recompute_s": ("R", "recompute", "black on bright_green"),
    "tp_comm_s": ("T", "tp", "black on cyan"),
    "cp_comm_s": ("K", "cp", "black on bright_cyan"),
    "ep_comm_s": ("E", "ep", "white on blue"),
    "dp_comm_s": ("D", "dp", "black on magenta"),
    "pp_comm_s": ("P", "pp", "black on bright_magenta"),
    "bubble_s": (".", "bubble", "white on red"),
    "optimizer_s": ("O", "optimizer", "black on yellow"),
    "launch_s": ("L", "launch", "black on bright_yellow"),
}
"""Letter, name and colour of a step's parts, in the order they are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table: its head, its cells, and whether they are numbers (aligned right)."""

    head: str
    cells: Sequence[str]
    right: bool = True

    @property
    def width(self) -> int:
        """Of its widest cell."""
        return max(map(len, (self.head, *self.cells)))

    def shown(self, row: int) -> str:
        """A cell, or the head for row -1, at full width."""
        text = self.head if row < 0 else self.cells[row]
        return text.rjust(self.width) if self.right else text.ljust(self.width)


def on_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def width() -> int:
    """Columns of the terminal; without one there is no limit."""
    return shutil.get_terminal_size().columns if on_terminal() else 1_000_000


def show(lines: Sequence[Line]) -> None:
    """Print the lines: coloured on a terminal, plain when piped."""
    if not lines:
        return
    if not on_terminal():
        typer.echo("\n".join(plain(line) for line in lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line in lines:
        console.print(Text.assemble(*line), soft_wrap=True)


def plain(line: Line) -> str:
    """The text of a line."""
    return "".join(text for text, _ in line).rstrip()


def firm(text: object) -> str:
    """Text that is never broken over two lines, such as a layout."""
    return str(text).replace(" ", _FIRM)


def prose(text: str, style: str = "", indent: str = "  ") -> list[Line]:
    """A paragraph as lines no wider than the terminal."""
    folded = textwrap.wrap(
        text,
        max(width(), 40),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [[(line.replace(_FIRM, " "), style)] for line in folded]


def rows(columns: Sequence[Column], bold_first: bool = True) -> list[Line]:
    """A table as lines, its head first."""
    count = len(columns[0].cells)
    head: Line = [(GAP.join(c.shown(-1) for c in columns), "bold")]
    body: list[Line] = [
        [(GAP.join(c.shown(row) for c in columns), "bold" if bold_first and row == 0 else "")]
        for row in range(count)
    ]
    return [head, *body]


def bar(parts: Mapping[str, float], cells: int = BAR_CELLS) -> Line:
    """A step as cells in proportion to its parts; what is under half a cell is left out."""
    total = sum(parts.values())
    if total <= 0:
        return []
    exact = {name: parts.get(name, 0.0) / total * cells for name in PARTS}
    whole = {name: int(value) for name, value in exact.items()}
    rest = sorted(exact, key=lambda name: whole[name] - exact[name])
    for name in rest[: cells - sum(whole.values())]:
        whole[name] += 1
    return [(PARTS[name][0] * n, PARTS[name][2]) for name, n in whole.items() if n]


def legend(parts: Mapping[str, float], of: str) -> list[Line]:
    """What the letters of a bar stand for, with the shares of one step."""
    total = sum(parts.values())
    named = [
        firm(f"{letter} {word} {parts[name] / total:.1%}")
        for name, (letter, word, _) in PARTS.items()
        if parts.get(name, 0.0) > 0.0005 * total
    ]
    return prose(f"step of {of}: " + ", ".join(named), "dim")
