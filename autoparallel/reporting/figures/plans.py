"""Figures of the short list: intervals, parts of the step, the memory and the hours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import plotly.graph_objects as go

from autoparallel.plan import PlanEntry
from autoparallel.reporting.breakdown import Bar
from autoparallel.reporting.differences import Hop
from autoparallel.reporting.figures import style
from autoparallel.reporting.wording import short, time_scale
from autoparallel.units import GIB


def short_list(entries: Sequence[tuple[str, PlanEntry]], equal: Sequence[bool]) -> go.Figure:
    """Step time of every layout with its 5-95 % range, as trials corrected it if there were any.

    Those tied with the first are filled.
    """
    scale, unit, _ = time_scale(entries[0][1].iteration_s or 0.0)
    figure = style.frame(f"step time, {unit}", height=120 + 26 * len(entries))
    kinds = (
        ("cannot be told from the best", style.BLUE, "circle", True),
        ("slower", style.GREY, "diamond-open", False),
    )
    for name, colour, symbol, wanted in kinds:
        rows = [
            (label, e) for (label, e), same in zip(entries, equal, strict=True) if same == wanted
        ]
        if not rows:
            continue
        now = [e.corrected or e for _, e in rows]
        times = [(one.iteration_s or 0.0) * scale for one in now]
        ranges = [one.iteration_s_interval or (0.0, 0.0) for one in now]
        figure.add_scatter(
            x=times,
            y=[label for label, _ in rows],
            mode="markers",
            name=name,
            marker={"size": 10, "color": colour, "symbol": symbol},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [high * scale - t for (_, high), t in zip(ranges, times, strict=True)],
                "arrayminus": [t - low * scale for (low, _), t in zip(ranges, times, strict=True)],
                "color": colour,
                "thickness": 1.5,
            },
            customdata=[str(e.layout) for _, e in rows],
            hovertemplate=f"%{{customdata}}<br>%{{x:.3f}} {unit}<extra></extra>",
        )
    labels = [label for label, _ in entries]
    figure.update_yaxes(
        categoryorder="array", categoryarray=labels[::-1], type="category", title_text=""
    )
    return figure


def step_parts(bars: Sequence[Bar]) -> go.Figure:
    """Seconds of one step by cause."""
    scale, unit, _ = time_scale(bars[0].total)
    return stacked(bars, style.PARTS, scale, unit, f"step time, {unit}")


def shares(bars: Sequence[Bar]) -> go.Figure:
    """Parts of a step in percent."""
    parts = [
        replace(bar, parts={name: 100 * part / bar.total for name, part in bar.parts.items()})
        for bar in bars
    ]
    return stacked(parts, style.PARTS, 1.0, "%", "share of the step, %")


def memory_parts(bars: Sequence[Bar], capacity_bytes: float | None) -> go.Figure:
    """GiB on the fullest GPU by cause, and what the GPU has where all have the same."""
    figure = stacked(bars, style.MEMORY_PARTS, 1 / GIB, "GiB", "memory, GiB")
    return with_capacity(figure, capacity_bytes, upright=True) if capacity_bytes else figure


def hours(bars: Sequence[Bar]) -> go.Figure:
    """Days of a whole run by cause."""
    return stacked(bars, style.PARTS, 1.0, "days", "wall time, days")


def stacked(
    bars: Sequence[Bar],
    kinds: Mapping[str, tuple[str, str, str]],
    scale: float,
    unit: str,
    title: str,
) -> go.Figure:
    """Lying bars, one a layout, the first on top; causes that nobody has are left out."""
    figure = style.frame(title, height=150 + 34 * len(bars), barmode="stack")
    labels = [bar.label for bar in bars]
    for part, (name, colour, hatch) in kinds.items():
        values = [bar.parts.get(part, 0.0) * scale for bar in bars]
        if not any(values):
            continue
        figure.add_bar(
            orientation="h",
            y=labels,
            x=values,
            name=name,
            marker=style.fill(colour, hatch),
            customdata=[bar.layout for bar in bars],
            hovertemplate=f"{name} %{{x:.3g}} {unit}<br>%{{customdata}}<extra></extra>",
        )
    figure.update_yaxes(
        categoryorder="array", categoryarray=labels[::-1], type="category", title_text=""
    )
    return figure


def with_capacity(
    figure: go.Figure, capacity_bytes: float, *, upright: bool, log: bool = False
) -> go.Figure:
    """A dashed line at the memory of one GPU."""
    at = capacity_bytes / GIB
    line = {"color": style.RED, "dash": "dash", "width": 2}
    note = {"text": f"GPU {at:.0f} GiB", "showarrow": False, "name": style.WARNING}
    if upright:
        figure.add_vline(x=at, line=line)
        figure.add_annotation(
            x=at, y=0, yref="paper", xanchor="right", yanchor="bottom", xshift=-3, **note
        )
    else:
        figure.add_hline(y=at, line=line)
        place = math.log10(at) if log else at
        figure.add_annotation(x=1, xref="paper", y=place, xanchor="right", yanchor="bottom", **note)
    return figure


def stages(bars: Sequence[Bar], capacity_bytes: float) -> go.Figure:
    """GiB of every pipeline rank by cause."""
    figure = style.frame("pipeline rank", "memory, GiB", height=400, barmode="stack")
    for part, (name, colour, hatch) in style.MEMORY_PARTS.items():
        values = [bar.parts.get(part, 0.0) / GIB for bar in bars]
        if any(values):
            figure.add_bar(
                x=[bar.label for bar in bars],
                y=values,
                name=name,
                marker=style.fill(colour, hatch),
                hovertemplate=f"rank %{{x}}<br>{name} %{{y:.2f}} GiB<extra></extra>",
            )
    figure.update_xaxes(type="category")
    return with_capacity(figure, capacity_bytes, upright=False)


def way(hops: Sequence[Hop], start_s: float, names: tuple[str, str]) -> go.Figure:
    """Step time from one layout to another, change by change."""
    scale, unit, digits = time_scale(start_s)
    labels = [names[0], *(short(hop.name) for hop in hops), names[1]]
    texts = [f"{start_s * scale:.{digits}f}"]
    texts += [f"{hop.delta_s * scale:+.{digits}f}" for hop in hops]
    end = (hops[-1].after.iteration_s or 0.0) if hops else start_s
    figure = style.frame(f"step time, {unit}", height=120 + 36 * len(labels), legend=False)
    figure.add_trace(
        go.Waterfall(
            orientation="h",
            y=labels,
            x=[start_s * scale, *(hop.delta_s * scale for hop in hops), 0.0],
            measure=["absolute", *["relative"] * len(hops), "total"],
            text=[*texts, f"{end * scale:.{digits}f}"],
            textposition="auto",
            decreasing={"marker": {"color": style.GOOD}},
            increasing={"marker": {"color": style.BAD}},
            totals={"marker": {"color": style.BLUE}},
            connector={"line": {"color": style.GREY, "width": 1}},
            hovertemplate=f"%{{y}}<br>%{{text}} {unit}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", type="category", title_text="")
    return figure


def worth(names: Sequence[str], deltas: Sequence[float], fits: Sequence[bool]) -> go.Figure:
    """What the step time becomes without each knob, in percent."""
    figure = style.frame("step time without it, %", height=130 + 30 * len(names), barmode="overlay")
    for kind, wanted, colour, hatch in (
        ("fits", True, style.BLUE, ""),
        ("would not fit", False, style.GREY, "/"),
    ):
        rows = [i for i, fit in enumerate(fits) if fit == wanted]
        if rows:
            figure.add_bar(
                orientation="h",
                y=[names[i] for i in rows],
                x=[deltas[i] * 100 for i in rows],
                name=kind,
                marker=style.fill(colour, hatch),
                hovertemplate="%{y}: %{x:+.1f} %<extra></extra>",
            )
    figure.update_yaxes(
        categoryorder="array", categoryarray=list(names)[::-1], type="category", title_text=""
    )
    figure.update_xaxes(ticksuffix=" %")
    return figure
