"""Colours that mean something, and the frame every figure shares.

The hues are those of Okabe and Ito, which people with colour blindness tell apart; every one has a
contrast of at least 3:1 against the white and the near-black page. Causes that share a hue differ
in their hatching.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

BLUE, ORANGE, GREEN, RED = "#1f77b4", "#c77700", "#1a8a68", "#d1495b"
SKY, PURPLE, GREY, PINK = "#3d94c9", "#8e6bbf", "#808890", "#b5609a"

PARTS: dict[str, tuple[str, str, str]] = {
    "compute_s": ("compute", BLUE, ""),
    "recompute_s": ("recompute", SKY, "/"),
    "tp_comm_s": ("tensor parallel", ORANGE, ""),
    "cp_comm_s": ("context parallel", ORANGE, "\\"),
    "ep_comm_s": ("expert parallel", ORANGE, "x"),
    "dp_comm_s": ("data parallel", GREEN, ""),
    "pp_comm_s": ("pipeline", GREEN, "/"),
    "bubble_s": ("bubble", GREY, "."),
    "optimizer_s": ("optimizer", PURPLE, ""),
    "launch_s": ("launch", PINK, "-"),
    "checkpoints_s": ("checkpoints", PINK, ""),
    "lost_work_s": ("repeated work", RED, ""),
    "restarts_s": ("restarts", RED, "/"),
}
"""Part of a step or a run: its name, its colour, its hatching."""
MEMORY_PARTS: dict[str, tuple[str, str, str]] = {
    "weights_bytes": ("weights", BLUE, ""),
    "gradients_bytes": ("gradients", GREEN, ""),
    "optimizer_bytes": ("optimizer", PURPLE, ""),
    "activations_bytes": ("activations", ORANGE, ""),
    "logits_bytes": ("logits", PINK, ""),
    "buffers_bytes": ("buffers", SKY, "/"),
    "context_bytes": ("context", GREY, "."),
    "fragmentation_bytes": ("fragmentation", GREY, "/"),
}
GOOD, WARN, BAD, QUIET = GREEN, ORANGE, RED, GREY
MARKER_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross")


def frame(
    x: str, y: str = "", *, height: int = 360, legend: bool = True, **layout: Any
) -> go.Figure:
    """An empty figure with named axes; colours of text and grid are left to the page."""
    figure = go.Figure(layout=go.Layout(template="plotly_white"))
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 16, "t": 24, "b": 8},
        showlegend=legend,
        legend={
            "orientation": "h",
            "yanchor": "bottom",
            "y": 1.02,
            "x": 0,
            "traceorder": "normal",
        },
        hoverlabel={"align": "left"},
        **layout,
    )
    figure.update_xaxes(title_text=x, automargin=True)
    figure.update_yaxes(title_text=y, automargin=True)
    return figure
