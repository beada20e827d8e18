"""Figures of all candidates: time against memory, parallel coordinates, tp x pp, the sieve."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from autoparallel.constants import FITS
from autoparallel.reporting.candidates import Candidates, Grid, Lines, front
from autoparallel.reporting.figures import style
from autoparallel.reporting.figures.plans import with_capacity
from autoparallel.reporting.wording import time_scale
from autoparallel.units import GIB


def time_against_memory(found: Candidates, capacity_bytes: float) -> go.Figure:
    """Every candidate as a point, and the fitting ones that nothing beats in both."""
    scale, unit, _ = time_scale(float(found.iteration_s[0]))
    figure = style.frame(f"step time, {unit} (log)", "memory, GiB (log)", height=460)
    fits = found.fits_probability >= FITS
    kinds = (
        ("does not fit", ~fits, style.GREY, "x-thin-open", 0.35),
        ("fits", fits, style.BLUE, "circle", 0.5),
    )
    for name, mask, colour, symbol, opacity in kinds:
        rows = np.flatnonzero(mask)
        figure.add_scatter(
            x=found.iteration_s[rows] * scale,
            y=found.memory_bytes[rows] / GIB,
            mode="markers",
            name=name,
            marker={"size": 5, "color": colour, "symbol": symbol, "opacity": opacity},
            customdata=[found.words(int(row)) for row in rows],
            hovertemplate=f"%{{customdata}}<br>%{{x:.3f}} {unit}, %{{y:.1f}} GiB<extra></extra>",
        )
    edge = front(found)
    figure.add_scatter(
        x=found.iteration_s[edge] * scale,
        y=found.memory_bytes[edge] / GIB,
        mode="lines+markers",
        name="Pareto front",
        line={"color": style.ORANGE, "width": 2, "shape": "vh"},
        marker={"size": 8, "symbol": "diamond", "color": style.ORANGE},
        customdata=[found.words(int(row)) for row in edge],
        hovertemplate=f"%{{customdata}}<br>%{{x:.3f}} {unit}, %{{y:.1f}} GiB<extra></extra>",
    )
    figure.update_xaxes(**style.log_ticks(list(found.iteration_s * scale)))
    sizes = [*(found.memory_bytes / GIB), capacity_bytes / GIB]
    figure.update_yaxes(**style.log_ticks(sizes))
    return with_capacity(figure, capacity_bytes, upright=False, log=True)


BAND_COLOURS = (style.BLUE, style.ORANGE, style.GREY)


def parallel_coordinates(lines: Lines) -> go.Figure:
    """Candidates as lines through one axis a knob; a click in the legend hides a band."""
    figure = style.frame("", height=440)
    heights = np.array([axis.heights for axis in lines.axes])
    places = np.arange(len(lines.axes), dtype=float)
    for band in reversed(range(len(lines.bands))):
        rows = [i for i, b in enumerate(lines.band) if b == band]
        if not rows:
            continue
        xs, ys, words = [], [], []
        for row in rows:
            xs += [*places, None]
            ys += [*heights[:, row], None]
            words += [lines.words[row]] * (len(places) + 1)
        figure.add_scatter(
            x=xs,
            y=ys,
            mode="lines",
            name=lines.bands[band],
            line={"color": BAND_COLOURS[band], "width": 1.2},
            opacity=(0.8, 0.6, 0.45)[band],
            customdata=words,
            hovertemplate="%{customdata}<extra></extra>",
            legendrank=band,
        )
    for place, axis in zip(places, lines.axes, strict=True):
        figure.add_vline(x=place, line={"width": 1, "color": style.GREY})
        for at, text in axis.marks:
            figure.add_annotation(
                x=place,
                y=at,
                text=text,
                showarrow=False,
                xanchor="right" if place else "left",
                xshift=-3 if place else 3,
                yshift=7,
                font={"size": 10},
                name=style.PLATE,
                borderpad=1,
            )
    figure.update_yaxes(visible=False, range=[-0.05, 1.08])
    figure.update_xaxes(
        tickvals=list(places),
        ticktext=[axis.name for axis in lines.axes],
        showgrid=False,
        zeroline=False,
        tickangle=0,
        range=[-0.25, len(places) - 0.7],
    )
    return figure


def best_by_mesh(cells: Grid) -> go.Figure:
    """The best fitting step time of every tp and pp."""
    known = [s for row in cells.seconds for s in row if s is not None]
    scale, unit, digits = time_scale(min(known)) if known else (1.0, "s", 1)
    texts = [
        [f"{s * scale:.{digits}f}" if s is not None else "" for s in row] for row in cells.seconds
    ]
    figure = style.frame(
        "tensor parallel", "pipeline parallel", height=120 + 44 * len(cells.pp), legend=False
    )
    shown = [[s * scale if s is not None else None for s in row] for row in cells.seconds]
    figure.add_trace(
        go.Heatmap(
            x=[f"tp{t}" for t in cells.tp],
            y=[f"pp{p}" for p in cells.pp],
            z=shown,
            text=texts,
            texttemplate="%{text}",
            customdata=cells.words,
            colorscale="Cividis",
            reversescale=True,
            zmin=min(known, default=0.0) * scale,
            zmax=min(max(known, default=1.0), 1.5 * min(known, default=1.0)) * scale,
            xgap=2,
            ygap=2,
            hoverongaps=False,
            colorbar={"title": {"text": unit}, "thickness": 12},
            hovertemplate=f"%{{customdata}}<br>%{{z:.3f}} {unit}<extra></extra>",
        )
    )
    for pp, row, counts in zip(cells.pp, cells.seconds, cells.considered, strict=True):
        for tp, seconds, count in zip(cells.tp, row, counts, strict=True):
            if seconds is None and count:
                place = {"x": f"tp{tp}", "y": f"pp{pp}"}
                figure.add_annotation(text="no fit", showarrow=False, **place)
    figure.update_yaxes(type="category", showgrid=False)
    figure.update_xaxes(type="category", showgrid=False)
    return figure


def left_out(
    pruned: Mapping[str, int], misfits: int, feasible: int, reason: str = "memory"
) -> go.Figure:
    """How many candidates every rule left out, by memory, and what is left."""
    rows = [*sorted(pruned.items(), key=lambda item: -item[1]), (reason, misfits)]
    rows = [(name, count) for name, count in rows if count]
    figure = style.frame("candidates", height=130 + 24 * (len(rows) + 1), legend=False)
    figure.add_bar(
        orientation="h",
        y=[*(name for name, _ in rows), "fit"],
        x=[*(count for _, count in rows), feasible],
        marker={"color": [*[style.GREY] * len(rows), style.BLUE]},
        cliponaxis=False,
        text=[f"{count:,}" for _, count in [*rows, ("fit", feasible)]],
        textposition="auto",
        hovertemplate="%{y}: %{x:,}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", type="category", title_text="")
    return figure
