"""Memory over the pipeline: what every rank holds at its peak."""

from __future__ import annotations

import numpy as np

from autoparallel.cost.memory import PARTS, Memory, memory_of_rank
from autoparallel.layout import Layout
from autoparallel.reporting.breakdown import Bar
from autoparallel.reporting.run import TrainingRun


def rank_bars(run: TrainingRun, layout: Layout) -> tuple[Bar, ...]:
    """One bar a pipeline rank, in bytes."""
    case = run.case(layout)
    return tuple(
        Bar(
            label=str(rank),
            layout=f"pipeline rank {rank}",
            parts=_plain(memory_of_rank(case, rank)),
            interval=None,
        )
        for rank in range(layout.pipeline_model_parallel_size)
    )


def _plain(used: Memory) -> dict[str, float]:
    return {name: float(np.asarray(getattr(used, name)).reshape(-1)[0]) for name in PARTS}
