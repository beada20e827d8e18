"""Scaling and sensitivity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from autoparallel.reporting.figures import style
from autoparallel.reporting.what_if import Case, Size


def scaling(sizes: Sequence[Size]) -> go.Figure:
    """Tokens a second over the number of GPUs, against a straight line through the smallest."""
    known = [s for s in sizes if s.tokens_per_s]
    figure = style.frame("GPUs (log)", "tokens/s (log)", height=400)
    if known:
        first = known[0]
        figure.add_scatter(
            x=[s.gpus for s in known],
            y=[(first.tokens_per_s or 0.0) / first.gpus * s.gpus for s in known],
            mode="lines",
            name="perfect",
            line={"color": style.GREY, "dash": "dash"},
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[s.gpus for s in known],
            y=[s.tokens_per_s for s in known],
            mode="lines+markers+text",
            name="best plan of each size",
            line={"color": style.BLUE},
            marker={"size": 9},
            text=[f"{s.efficiency:.0%}" for s in known],
            textposition="bottom right",
            customdata=[str(s.entry.layout) if s.entry else "" for s in known],
            hovertemplate=(
                "%{x:,} GPUs: %{y:,.0f} tokens/s, %{text}<br>%{customdata}<extra></extra>"
            ),
        )
    if known:
        rates = [s.tokens_per_s or 1.0 for s in known]
        room = [math.log10(min(rates)) - 0.2, math.log10(max(rates)) + 0.15]
        figure.update_yaxes(**(style.log_ticks(rates) | {"range": room}))
        ends = [math.log10(known[0].gpus) - 0.06, math.log10(known[-1].gpus) + 0.2]
        figure.update_xaxes(
            type="log",
            tickvals=[s.gpus for s in known],
            ticktext=[f"{s.gpus:,}" for s in known],
            range=ends,
        )
    return figure


def sensitivity(cases: Sequence[Case]) -> go.Figure:
    """Throughput when one thing changes: with the winner kept, and planned again."""
    figure = style.frame(
        "throughput against today, %",
        height=150 + 40 * len(cases),
        barmode="group",
        bargap=0.25,
    )
    names = [case.name for case in cases]
    kept = [c.kept * 100 if c.kept is not None and c.kept_fits else None for c in cases]
    planned = [c.planned * 100 if c.planned is not None else None for c in cases]
    for name, values, colour, hatch in (
        ("winner kept", kept, style.GREY, "/"),
        ("planned again", planned, style.BLUE, ""),
    ):
        figure.add_bar(
            orientation="h",
            y=names,
            x=values,
            name=name,
            marker=style.fill(colour, hatch),
            customdata=[c.layout if name == "planned again" else "the winner" for c in cases],
            hovertemplate="%{y}: %{x:+.1f} %<br>%{customdata}<extra></extra>",
        )
    for case in cases:
        if not case.kept_fits:
            figure.add_annotation(
                y=case.name,
                x=0,
                text="winner would not fit" if case.kept is not None else "winner not legal",
                showarrow=False,
                xanchor="left",
                yshift=9,
                xshift=4,
                font={"size": 11},
                name=style.WARNING,
            )
    figure.update_xaxes(ticksuffix=" %")
    figure.update_yaxes(autorange="reversed", type="category", title_text="")
    return figure
