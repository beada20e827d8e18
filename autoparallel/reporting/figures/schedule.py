"""The pipeline's timeline."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from autoparallel.reporting.figures import style
from autoparallel.reporting.timeline import NAMES, Piece, PipelineStep
from autoparallel.reporting.wording import time_scale

COLOURS = {
    "F": style.BLUE,
    "B": style.ORANGE,
    "W": style.GREEN,
    "D": style.PINK,
    "O": style.PURPLE,
}


def timeline(step: PipelineStep, shown: Sequence[Piece]) -> go.Figure:
    """What every pipeline rank does; later chunks of the model are lighter."""
    scale, unit, _ = time_scale(step.step_s)
    figure = style.frame(
        f"time in the step, {unit}",
        "pipeline rank",
        height=min(150 + 26 * step.ranks, 700),
        barmode="overlay",
        bargap=0.08,
    )
    for kind, name in NAMES.items():
        # Chunk 0 first: a legend shows the colour of the first piece.
        pieces = sorted((p for p in shown if p.kind == kind), key=lambda p: p.chunk)
        if not pieces:
            continue
        shades = [style.lighter(COLOURS[kind], _shade(p, step)) for p in pieces]
        figure.add_bar(
            orientation="h",
            name=name,
            y=[p.rank for p in pieces],
            x=[(p.end_s - p.start_s) * scale for p in pieces],
            base=[p.start_s * scale for p in pieces],
            marker={"color": shades, "line": {"width": 0}},
            customdata=[f"micro-batch {p.micro_batch}, chunk {p.chunk}" for p in pieces],
            hovertemplate=(
                f"rank %{{y}}: {name}<br>%{{customdata}}<br>"
                f"from %{{base:.4f}} {unit}, %{{x:.4f}} {unit} long<extra></extra>"
            ),
        )
    figure.update_yaxes(autorange="reversed", dtick=1 if step.ranks <= 16 else 4)
    return figure


def _shade(piece: Piece, step: PipelineStep) -> float:
    """How light a piece is: later chunks are lighter."""
    return 0.6 * piece.chunk / max(step.chunks - 1, 1)
