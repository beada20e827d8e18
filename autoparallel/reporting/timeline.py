"""One step of the winner's pipeline, event by event, and the trace file that holds all of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from autoparallel.cost.layer import layer_time
from autoparallel.cost.schedule import Stages, pipeline_time
from autoparallel.cost.simulator import simulate_stages
from autoparallel.cost.step import stages
from autoparallel.layout import Layout
from autoparallel.reporting.run import TrainingRun

TRACE_ENDING = ".trace.json"
DRAWN_EVENTS = 5_000
FILL_BACKWARDS = 4
TRACED_EVENTS = 200_000
NAMES = {
    "F": "forward",
    "B": "backward",
    "W": "weight gradient",
    "D": "gradients",
    "O": "optimizer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece of work on one rank, in seconds from the start of the step."""

    rank: int
    kind: str
    start_s: float
    end_s: float
    micro_batch: int
    chunk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStep:
    """What every pipeline rank does in one step.

    Attributes:
        pieces: In order of their start.
        pipeline_s: The simulator's time of the pipeline.
        closed_form_s: The closed form's, which the ranking used.
        step_s: With the exposed gradient traffic and the optimizer after it.
        idle_share: Share of the pipeline in which the ranks wait, on average.
    """

    pieces: tuple[Piece, ...]
    ranks: int
    chunks: int
    pipeline_s: float
    closed_form_s: float
    step_s: float
    idle_share: float

    @property
    def drawn(self) -> tuple[Piece, ...]:
        """The first pieces, as many as a browser draws at once."""
        return self.pieces[:DRAWN_EVENTS]

    @property
    def first(self) -> tuple[Piece, ...]:
        """Until the first rank has run a few backwards: how the pipeline fills."""
        backwards = [p.end_s for p in self.pieces if p.rank == 0 and p.kind == "B"]
        end_s = backwards[:FILL_BACKWARDS][-1]
        return tuple(p for p in self.drawn if p.start_s < end_s)


def pipeline_step(run: TrainingRun, layout: Layout) -> PipelineStep:
    """Run the pipeline of a layout through the event simulator."""
    case = run.case(layout)
    shape = _scalars(stages(case, layer_time(case)))
    beside = float(shape.p2p_overlapped) > 0.5
    found = simulate_stages(shape, overlap=beside)
    pieces = [
        Piece(
            rank=rank,
            kind=e.kind,
            start_s=e.start_s,
            end_s=e.end_s,
            micro_batch=e.micro_batch,
            chunk=e.chunk,
        )
        for rank, events in enumerate(found.ranks)
        for e in events
    ]
    last = max(p.end_s for p in pieces)
    ends, step_s = _after(run, layout, last)
    return PipelineStep(
        pieces=tuple(sorted([*pieces, *ends], key=lambda p: (p.start_s, p.rank))),
        ranks=len(found.ranks),
        chunks=int(shape.vpp),
        pipeline_s=found.total_s,
        closed_form_s=float(pipeline_time(shape).total_s),
        step_s=step_s,
        idle_share=float(np.mean(found.idle_s)) / found.total_s,
    )


def _scalars(shape: Stages) -> Stages:
    """A record of one row as plain numbers."""
    values = {f.name: np.asarray(getattr(shape, f.name)).reshape(-1)[0] for f in fields(shape)}
    return Stages(**{name: float(value) for name, value in values.items()})


def _after(run: TrainingRun, layout: Layout, start_s: float) -> tuple[list[Piece], float]:
    """Exposed gradient traffic and the optimizer, which every rank does last."""
    entry = next((e for e in run.plan.entries if e.layout == layout), run.winner)
    parts = entry.parts or {}
    found, now = [], start_s
    for kind, seconds in (("D", parts.get("dp_comm_s", 0.0)), ("O", parts.get("optimizer_s", 0.0))):
        if seconds > 0:
            found += [
                Piece(
                    rank=rank,
                    kind=kind,
                    start_s=now,
                    end_s=now + seconds,
                    micro_batch=0,
                    chunk=0,
                )
                for rank in range(layout.pipeline_model_parallel_size)
            ]
            now += seconds
    return found, now


def trace_text(step: PipelineStep, title: str) -> str:
    """The step in the Trace Event Format, which Perfetto and chrome://tracing open.

    Times are microseconds; a pipeline rank is a thread. A step of more than `TRACED_EVENTS` pieces
    is cut after them, and its title says so.
    """
    kept = step.pieces[:TRACED_EVENTS]
    cut = "" if len(kept) == len(step.pieces) else f" (first {len(kept):,} of {len(step.pieces):,})"
    head: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 0, "args": {"name": title + cut}}
    ]
    head += [
        {
            "name": "thread_name",
            "ph": "M",
            "pid": 0,
            "tid": rank,
            "args": {"name": f"pipeline rank {rank}"},
        }
        for rank in range(step.ranks)
    ]
    events = [*head, *(_traced(p) for p in kept)]
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":"))


def _traced(p: Piece) -> dict[str, Any]:
    plain = p.kind in "DO"
    name = NAMES[p.kind] if plain else f"{p.kind} {p.micro_batch}"
    return {
        "name": name,
        "cat": NAMES[p.kind],
        "ph": "X",
        "pid": 0,
        "tid": p.rank,
        "ts": round(p.start_s * 1e6, 3),
        "dur": round((p.end_s - p.start_s) * 1e6, 3),
        "args": {} if plain else {"micro_batch": p.micro_batch, "chunk": p.chunk},
    }
