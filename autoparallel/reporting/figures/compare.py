"""Several runs in one figure."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from autoparallel.plan import PlanEntry
from autoparallel.reporting.candidates import Candidates, front
from autoparallel.reporting.figures import style
from autoparallel.units import GIB

HUES = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.PINK, style.RED, style.GREY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star")


def rates(winners: Sequence[tuple[str, PlanEntry]]) -> go.Figure:
    """Tokens a second and GPU, with the range of the step time."""
    figure = style.frame("tokens/s a GPU", height=120 + 36 * len(winners), legend=False)
    values = [e.tokens_per_s_per_gpu or 0.0 for _, e in winners]
    ends = [
        tuple(
            rate * (e.iteration_s or 0.0) / time
            for time in (e.iteration_s_interval or (1.0, 1.0))[::-1]
        )
        for rate, (_, e) in zip(values, winners, strict=True)
    ]
    figure.add_bar(
        orientation="h",
        y=[label for label, _ in winners],
        x=values,
        marker=style.fill(style.BLUE),
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high - v for (_, high), v in zip(ends, values, strict=True)],
            "arrayminus": [v - low for (low, _), v in zip(ends, values, strict=True)],
            "color": style.GREY,
        },
        customdata=[str(e.layout) for _, e in winners],
        hovertemplate="%{y}: %{x:,.0f}<br>%{customdata}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", type="category", title_text="")
    return figure


def utilisation(winners: Sequence[tuple[str, PlanEntry]]) -> go.Figure:
    """Share of the dense half-precision peak that the model's own FLOPs make."""
    figure = style.frame("MFU, %", height=120 + 36 * len(winners), legend=False)
    figure.add_bar(
        orientation="h",
        y=[label for label, _ in winners],
        x=[100 * (e.model_flops_utilization or 0.0) for _, e in winners],
        marker=style.fill(style.GREEN),
        hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
    )
    figure.update_xaxes(ticksuffix=" %")
    figure.update_yaxes(autorange="reversed", type="category", title_text="")
    return figure


def fronts(runs: Sequence[tuple[str, Candidates]]) -> go.Figure:
    """The front of time against memory of every run."""
    figure = style.frame("step time, s (log)", "memory, GiB (log)", height=460)
    times: list[float] = []
    sizes: list[float] = []
    for i, (label, found) in enumerate(runs):
        edge = front(found)
        x, y = found.iteration_s[edge], found.memory_bytes[edge] / GIB
        times += list(x)
        sizes += list(y)
        hue, symbol = HUES[i % len(HUES)], SYMBOLS[i % len(SYMBOLS)]
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines+markers",
            name=label,
            line={"color": hue, "shape": "vh"},
            marker={"symbol": symbol, "size": 8, "color": hue},
            customdata=[found.words(int(row)) for row in edge],
            hovertemplate="%{customdata}<br>%{x:.3f} s, %{y:.1f} GiB<extra></extra>",
        )
    if times:
        figure.update_xaxes(**style.log_ticks(times))
        figure.update_yaxes(**style.log_ticks(sizes))
    return figure
