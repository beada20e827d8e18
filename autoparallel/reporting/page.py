"""The page: one HTML template, filled with sections of prose, tables and figures.

Every shown text is escaped here and nowhere else. The page holds its style sheet, its script and
plotly, asks the network for nothing (its content security policy forbids it), and takes light or
dark from the reader's system.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files as package_files
from string import Template
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import plotly.graph_objects as go

GENERATOR = "autoparallel report"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prose:
    """A paragraph; `kind` is "", "note" or "warning"."""

    text: str
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of cells.

    Attributes:
        caption: What the table holds.
        words: Columns that hold words and stand left; the others are numbers.
        folded: Whether it starts closed.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure.

    Attributes:
        name: Unique on the page; lower case with hyphens.
        caption: What it shows and how to read it; what a reader who cannot see it gets.
    """

    name: str
    title: str
    caption: str
    figure: go.Figure


Item: TypeAlias = Prose | Table | Drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A titled part of the page."""

    name: str
    title: str
    items: Sequence[Item]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A whole report.

    Attributes:
        decision: The one sentence it opens with, and what belongs to it.
        facts: Name and value of the few numbers beside the decision.
        asked: What was asked, and what was assumed.
    """

    title: str
    decision: str
    asked: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    footer: str

    @property
    def drawings(self) -> list[Drawing]:
        """All its figures, in order."""
        return [i for s in self.sections for i in s.items if isinstance(i, Drawing)]


def html(page: Page) -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs

    shown = [section for section in page.sections if section.items]
    return Template(_asset("page.html")).substitute(
        generator=GENERATOR,
        title=escape(page.title),
        style=_asset("page.css"),
        decision=escape(page.decision),
        asked=escape(page.asked),
        facts="".join(map(_fact, page.facts)),
        contents="".join(
            f'<li><a href="#{escape(s.name)}">{escape(s.title)}</a></li>' for s in shown
        ),
        sections="".join(map(_section, shown)),
        footer=escape(page.footer),
        figures="".join(map(_data, page.drawings)),
        plotly=get_plotlyjs().replace("</script", "<\\/script"),
        script=_asset("page.js"),
    )


@cache
def _asset(name: str) -> str:
    return package_files("autoparallel.reporting").joinpath(name).read_text(encoding="utf-8")


def _fact(fact: tuple[str, str]) -> str:
    name, value = fact
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"


def _section(section: Section) -> str:
    name = escape(section.name)
    body = "".join(map(_item, section.items))
    title = f'<h2 id="{name}-title">{escape(section.title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{title}{body}</section>'


def _item(item: Item) -> str:
    if isinstance(item, Prose):
        return f'<p class="{escape(item.kind)}">{escape(item.text)}</p>'
    return _table(item) if isinstance(item, Table) else _drawing(item)


def _drawing(drawing: Drawing) -> str:
    name, label = escape(drawing.name), escape(f"{drawing.title}. {drawing.caption}")
    return (
        f"<figure><h3>{escape(drawing.title)}</h3>"
        f'<div class="chart" id="{name}" role="img" tabindex="0" aria-label="{label}"></div>'
        f"<figcaption>{escape(drawing.caption)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    head = "".join(_cell("th", i, text, table) for i, text in enumerate(table.head))
    rows = "".join(f"<tr>{''.join(_cells(row, table))}</tr>" for row in table.rows)
    label = escape(table.caption)
    grid = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    if table.folded:
        return f"<details><summary>{label}</summary>{grid}</details>"
    return f"<h3>{label}</h3>{grid}"


def _cells(row: Sequence[str], table: Table) -> Iterator[str]:
    return (_cell("td", i, text, table) for i, text in enumerate(row))


def _cell(tag: str, column: int, text: str, table: Table) -> str:
    kind = "word" if column in table.words else "number"
    scope = ' scope="col"' if tag == "th" else ""
    return f'<{tag} class="{kind}"{scope}>{escape(text)}</{tag}>'


def _data(drawing: Drawing) -> str:
    """A figure's data in a block that is no code; `<` is spelled so that nothing can end it."""
    content = json.loads(drawing.figure.to_json())
    content["layout"].pop("template", None)
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    return f'<script type="application/json" data-for="{escape(drawing.name)}">{text}</script>\n'
