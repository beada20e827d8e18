"""How far to trust the numbers: predicted against measured, and what they rest on."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from autoparallel.counts import counted
from autoparallel.plan import PlanEntry
from autoparallel.reporting.figures import style
from autoparallel.reporting.origins import Constant
from autoparallel.reporting.wording import time_scale


def predicted_and_measured(entries: Sequence[tuple[str, PlanEntry]]) -> go.Figure:
    """Predicted step times with their range beside what trials measured."""
    scale, unit, _ = time_scale(entries[0][1].iteration_s or 0.0)
    figure = style.frame(f"step time, {unit}", height=130 + 30 * len(entries))
    labels = [label for label, _ in entries]
    times = [(e.iteration_s or 0.0) * scale for _, e in entries]
    ranges = [e.iteration_s_interval or (0.0, 0.0) for _, e in entries]
    figure.add_scatter(
        x=times,
        y=labels,
        mode="markers",
        name="predicted, 5-95 %",
        marker={"size": 9, "color": style.BLUE},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high * scale - t for (_, high), t in zip(ranges, times, strict=True)],
            "arrayminus": [t - low * scale for (low, _), t in zip(ranges, times, strict=True)],
            "color": style.BLUE,
        },
    )
    taken = [(label, e.measured) for label, e in entries if e.measured is not None]
    timed = [(label, m) for label, m in taken if m.iteration_s is not None]
    figure.add_scatter(
        x=[(m.iteration_s or 0.0) * scale for _, m in timed],
        y=[label for label, _ in timed],
        mode="markers",
        name="measured",
        marker={"size": 11, "color": style.ORANGE, "symbol": "diamond"},
        customdata=[
            f"{m.mode} on {m.device}, {m.impl}, {counted(m.steps, 'step')}" for _, m in timed
        ],
        hovertemplate=f"%{{y}}: %{{x:.3f}} {unit}<br>%{{customdata}}<extra></extra>",
    )
    figure.update_yaxes(
        categoryorder="array", categoryarray=labels[::-1], type="category", title_text=""
    )
    return figure


def origins(entries: Sequence[tuple[str, PlanEntry]]) -> go.Figure:
    """Shares of the predicted step that rest on measured, published and assumed constants."""
    rows = [(label, e.origin) for label, e in entries if e.origin is not None]
    figure = style.frame("share of the step, %", height=140 + 28 * len(rows), barmode="stack")
    for name, colour, hatch in (
        ("measured", style.BLUE, ""),
        ("published", style.GREEN, "/"),
        ("assumed", style.GREY, "."),
    ):
        figure.add_bar(
            orientation="h",
            y=[label for label, _ in rows],
            x=[getattr(origin, name) * 100 for _, origin in rows],
            name=name,
            marker=style.fill(colour, hatch),
            hovertemplate=f"%{{y}}: {name} %{{x:.0f}} %<extra></extra>",
        )
    figure.update_xaxes(range=[0, 100], ticksuffix=" %")
    figure.update_yaxes(autorange="reversed", type="category", title_text="")
    return figure


def constants(found: Sequence[Constant]) -> go.Figure:
    """Every constant between its physical bounds, with the range that the runs leave."""
    figure = style.frame(
        "place between its physical bounds, %", height=130 + 20 * len(found), bargap=0.5
    )
    for state, colour, symbol in (
        ("measured", style.BLUE, "circle"),
        ("assumed", style.GREY, "diamond-open"),
    ):
        rows = [c for c in found if c.state == state]
        if not rows:
            continue
        places = [c.place(c.value) for c in rows]
        figure.add_scatter(
            x=places,
            y=[c.name for c in rows],
            mode="markers",
            name=state,
            marker={"size": 8, "color": colour, "symbol": symbol},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [
                    c.place(c.value if c.high is None else c.high) - p
                    for c, p in zip(rows, places, strict=True)
                ],
                "arrayminus": [
                    p - c.place(c.value if c.low is None else c.low)
                    for c, p in zip(rows, places, strict=True)
                ],
                "color": colour,
                "thickness": 1,
            },
            customdata=[f"{c.value:.4g}: {c.meaning}" for c in rows],
            hovertemplate="%{y} = %{customdata}<extra></extra>",
        )
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=[c.name for c in found][::-1],
        type="category",
        title_text="",
        tickfont={"size": 10},
        dtick=1,
    )
    figure.update_xaxes(range=[-3, 103], ticksuffix=" %")
    return figure
