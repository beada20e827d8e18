"""Colours that mean something, and the frame every figure shares.

The hues are those of Okabe and Ito, which people with colour blindness tell apart; every one has a
contrast of at least 3:1 against the white and the near-black page. Causes that share a hue differ
in their hatching.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    "held_bytes": ("held for communication", GREY, "x"),
}
GOOD, BAD = GREEN, RED
WARNING, PLATE = "warning", "plate"
"""Names of annotations: the page gives the one its colour of warnings, the other a background."""


def fill(colour: str, hatch: str = "") -> dict[str, Any]:
    """A bar's marker: its colour, and hatching over it."""
    pattern = {
        "shape": hatch,
        "fillmode": "overlay",
        "fgcolor": "rgba(255,255,255,.8)",
        "size": 6,
        "solidity": 0.3,
    }
    return {"color": colour, "line": {"width": 0}, "pattern": pattern}


def lighter(colour: str, share: float) -> str:
    """A colour on its way to white."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)


def log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis over these values: its range, and marks at 1, 2 and 5 of every decade."""
    low, high = min(values), max(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [m * 10.0**d for d in decades for m in (1, 2, 5)]
    shown = [mark for mark in marks if 0.7 * low <= mark <= 1.4 * high]
    return {
        "type": "log",
        "tickvals": shown,
        "ticktext": [f"{mark:,.0f}" if mark >= 1 else f"{mark:g}" for mark in shown],
        "range": [math.log10(low) - 0.06, math.log10(high) + 0.08],
    }


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
