"""Pages made from the code and the scoreboard while the site is built; none of them is kept.

MkDocs calls `on_files`. Each function below returns one page as Markdown.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from autoparallel import layout, rules
from autoparallel.cli import program
from autoparallel.constants import Constants, MemoryConstants

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/commands.md": commands(),
        "reference/layout.md": layouts(),
        "reference/rules.md": rule_table(),
        "reference/constants.md": constants(),
        "accuracy.md": accuracy(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are made safe for it."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """One line without what Markdown or HTML would take for its own; code is left as it is."""
    parts = " ".join(text.split()).split("`")
    for i, plain in enumerate(parts[::2]):
        escaped = plain.replace("|", "\\|").replace("<", "&lt;")
        parts[2 * i] = escaped.replace("*", "\\*").replace("[", "\\[")
    return "`".join(parts)


def commands() -> str:
    """Every verb with its arguments and options."""
    group: Any = typer.main.get_command(program())
    text = "# Commands\n\nMade from the program; `autoparallel VERB --help` prints the same.\n"
    return text + "".join(verb(name, group.commands[name]) for name in sorted(group.commands))


def verb(name: str, command: Any) -> str:
    """One verb, or the verbs of a group."""
    if hasattr(command, "commands"):
        return "".join(verb(f"{name} {each}", found) for each, found in command.commands.items())
    rows = [parameter(p) for p in command.params if not getattr(p, "hidden", False)]
    about = textwrap.dedent(command.help or "").strip()
    return f"\n## {name}\n\n{about}\n\n" + table(["option", "takes", "is"], rows)


def parameter(found: Any) -> tuple[str, str, str]:
    """Name, metavar and meaning of one argument or option."""
    flag = found.opts[0].startswith("-")
    shown = found.opts[0] if flag else (found.metavar or found.name.upper())
    takes = "" if getattr(found, "is_flag", False) else (found.metavar or "")
    takes = "" if shown == takes else takes
    return f"`{shown}`", f"`{takes}`" if takes else "", getattr(found, "help", None) or ""


CHOICES = {
    "cpcomm": layout.CP_COMM_TYPES,
    "recompute": ("none", "full/uniform/N", "full/block/N", *layout.RECOMPUTE_MODULES),
    "sched": layout.SCHEDULES,
    "prec": layout.PRECISIONS,
    "grad": layout.GRAD_DTYPES,
    "graph": layout.GRAPH_SCOPES,
    "overlap": ("none", *layout.OVERLAPS),
}


def layouts() -> str:
    """The words of the grammar with what each may hold."""
    kind = {"sp": "alone", "stages": "layers of every virtual stage: `7,8*6,7`"}
    numbers = {"offload": "`opt` and a share: `opt0.5`", "fw": "a framework of the catalog"}
    rows = [
        (
            f"`{name}`",
            ", ".join(f"`{c}`" for c in CHOICES[name])
            if name in CHOICES
            else (kind | numbers).get(name, "a whole number"),
        )
        for name in layout.GRAMMAR
    ]
    plain = str(layout.Layout())
    text = "# Layout grammar\n\nWords in any order, each at most once; a layout at its defaults is "
    text += f"`{plain}`. What each word means stands in the [contracts](../contracts.md).\n\n"
    return text + table(["word", "holds"], rows)


def rule_table() -> str:
    """Every rule of legality."""
    rows = [
        (f"`{r.id}`", ", ".join(r.fields), r.source, r.versions, ", ".join(r.frameworks) or "all")
        for r in rules.RULES
    ]
    text = "# Rules\n\nA layout is legal when it breaks none; the first field is blamed.\n\n"
    return text + table(["rule", "fields", "source", "read in", "frameworks"], rows)


def constants() -> str:
    """Every calibrated constant: its prior and its bounds."""
    text = "# Constants\n\nThe defaults are priors; `profiles/training/` holds what was fitted.\n"
    for title, kind in (("Time", Constants), ("Memory", MemoryConstants)):
        rows = [
            (f"`{f.name}`", f"{f.default:g}", f"{low:g} to {high:g}", f.metadata["meaning"])
            for f in fields(kind)
            for low, high in [(f.metadata["low"], f.metadata["high"])]
        ]
        text += f"\n## {title}\n\n" + table(["constant", "prior", "bounds", "is"], rows)
    return text


def accuracy() -> str:
    """The newest files of the scoreboard, as they were measured."""
    parts = []
    for stem in ("accuracy", "leave_one_out", "memory_accuracy", "serving_accuracy", "recommended"):
        newest = sorted((ROOT / "benchmarks").glob(f"{stem}_*.md"))[-1:]
        parts += [local(path.read_text(encoding="utf-8")) for path in newest]
    return "\n\n".join(parts)


def local(text: str) -> str:
    """Links to files outside the site become their names; headings keep their order."""
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"`\1`", text)
