"""Figures of a serving plan: each takes (label, description, entry) rows, the best first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import plotly.graph_objects as go

from autoparallel.reporting.breakdown import Bar
from autoparallel.reporting.figures import style
from autoparallel.reporting.figures.plans import stacked, with_capacity
from autoparallel.reporting.front import Point
from autoparallel.serving_plan import ROLES, ServingEntry
from autoparallel.units import GIB

Rows: TypeAlias = Sequence[tuple[str, str, ServingEntry]]

PARTS: dict[str, tuple[str, str, str]] = {
    "gemm_s": ("matrix products", style.BLUE, ""),
    "attention_s": ("attention", style.SKY, ""),
    "experts_s": ("experts", style.PURPLE, ""),
    "tp_comm_s": ("tensor parallel", style.ORANGE, ""),
    "ep_comm_s": ("expert parallel", style.ORANGE, "x"),
    "pp_comm_s": ("pipeline", style.GREEN, "/"),
    "elementwise_s": ("elementwise", style.GREEN, ""),
    "launch_s": ("launch", style.PINK, "-"),
    "host_s": ("host", style.GREY, "."),
}
ROLE_COLOURS = (style.BLUE, style.ORANGE, style.GREEN)
MODES = (("aggregated", style.BLUE, "circle"), ("disaggregated", style.ORANGE, "diamond"))


def _ranked(figure: go.Figure) -> go.Figure:
    """One row a deployment, the best on top."""
    figure.update_yaxes(autorange="reversed", type="category", title_text="")
    return figure


def rates(rows: Rows) -> go.Figure:
    """Output tokens a second and GPU."""
    figure = style.frame("tokens/s a GPU", height=120 + 30 * len(rows), legend=False)
    figure.add_bar(
        orientation="h",
        y=[label for label, _, _ in rows],
        x=[e.tokens_per_s_per_gpu for _, _, e in rows],
        marker=style.fill(style.BLUE),
        customdata=[about for _, about, _ in rows],
        hovertemplate="%{y}: %{x:,.0f} tokens/s a GPU<br>%{customdata}<extra></extra>",
    )
    return _ranked(figure)


def front(rows: Rows, points: Sequence[Point]) -> go.Figure:
    """Throughput of a GPU against the speed that one user sees: the front and the short list."""
    figure = style.frame("tokens/s a user", "tokens/s a GPU", height=420)
    if points:
        figure.add_scatter(
            x=[p.per_user for p in points],
            y=[p.per_gpu for p in points],
            mode="lines+markers",
            name="front",
            line={"color": style.GREY, "width": 1},
            marker={"size": 5},
            customdata=[p.about for p in points],
            hovertemplate="%{customdata}<br>%{y:,.0f} a GPU, %{x:.1f} a user<extra></extra>",
        )
    for mode, colour, symbol in MODES:
        own = [row for row in rows if row[2].mode == mode]
        if own:
            figure.add_scatter(
                x=[e.tokens_per_s_per_user for _, _, e in own],
                y=[e.tokens_per_s_per_gpu for _, _, e in own],
                mode="markers",
                name=mode,
                marker={"size": 11, "color": colour, "symbol": symbol},
                customdata=[f"{label} {about}" for label, about, _ in own],
                hovertemplate="%{customdata}<br>%{y:,.0f} a GPU, %{x:.1f} a user<extra></extra>",
            )
    return figure


def latency(rows: Rows, name: str, limit_ms: float | None) -> go.Figure:
    """Mean and percentiles of `ttft_ms` or `tpot_ms`, and the limit."""
    figure = style.frame("ms", height=140 + 30 * len(rows))
    for kind, suffix, colour, symbol in (
        ("mean", "", style.BLUE, "circle"),
        ("p50", "_p50", style.GREEN, "diamond"),
        ("p90", "_p90", style.ORANGE, "square"),
        ("p99", "_p99", style.RED, "triangle-up"),
    ):
        figure.add_scatter(
            x=[getattr(e, name + suffix) for _, _, e in rows],
            y=[label for label, _, _ in rows],
            mode="markers",
            name=kind,
            marker={"size": 9, "color": colour, "symbol": symbol},
            customdata=[about for _, about, _ in rows],
            hovertemplate=f"%{{y}} {kind}: %{{x:.1f}} ms<br>%{{customdata}}<extra></extra>",
        )
    if limit_ms is not None:
        figure.add_vline(x=limit_ms, line={"color": style.RED, "dash": "dash", "width": 2})
    figure.update_xaxes(rangemode="tozero")
    return _ranked(figure)


def step_parts(bars: Sequence[Bar]) -> go.Figure:
    """Milliseconds of one step by cause."""
    return stacked(bars, PARTS, 1e3, "ms", "step, ms")


def gpus(rows: Rows) -> go.Figure:
    """GPUs of every role."""
    figure = style.frame("GPUs", height=140 + 30 * len(rows), barmode="stack")
    for role, colour in zip(ROLES, ROLE_COLOURS, strict=True):
        counts = [sum(w.replicas * w.gpus for w in e.workers if w.role == role) for _, _, e in rows]
        if any(counts):
            figure.add_bar(
                orientation="h",
                y=[label for label, _, _ in rows],
                x=counts,
                name=role,
                marker=style.fill(colour),
                customdata=[about for _, about, _ in rows],
                hovertemplate=f"%{{x}} GPUs: {role}<br>%{{customdata}}<extra></extra>",
            )
    return _ranked(figure)


def memory(rows: Rows, capacity_bytes: float) -> go.Figure:
    """GiB of the fullest GPU."""
    figure = style.frame("memory, GiB", height=120 + 30 * len(rows), legend=False)
    figure.add_bar(
        orientation="h",
        y=[label for label, _, _ in rows],
        x=[(e.memory_bytes or 0.0) / GIB for _, _, e in rows],
        marker=style.fill(style.PURPLE),
        customdata=[f"{about}, fits with P {e.fits_probability}" for _, about, e in rows],
        hovertemplate="%{y}: %{x:.1f} GiB<br>%{customdata}<extra></extra>",
    )
    return with_capacity(_ranked(figure), capacity_bytes, upright=True)
