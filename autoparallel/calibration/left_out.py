"""Every split group predicted from the others, several groups at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields
from multiprocessing import get_context

import numpy as np

from autoparallel.calibration.training import LeftOut, Rows, leave_one_group_out
from autoparallel.cost.step import StepTime
from autoparallel.counts import counted

Progress = Callable[[str], None]

_rows: Rows | None = None
"""The runs, in a worker process."""


def left_out(rows: Rows, *, workers: int = 2, progress: Progress = lambda text: None) -> LeftOut:
    """`leave_one_group_out` over all split groups, in `workers` processes."""
    groups = list(dict.fromkeys(rows.data.groups.tolist()))
    if workers == 1 or len(groups) < 2 * workers:
        return leave_one_group_out(rows, progress)
    found = []
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _remember, (rows,))
    try:
        waiting = [pool.submit(_one, group) for group in groups]
        for done, future in enumerate(as_completed(waiting), start=1):
            found.append(future.result())
            progress(f"{done} of {counted(len(groups), 'split group')} left out")
    finally:
        pool.shutdown(cancel_futures=True)
    return merged(found)


def _remember(rows: Rows) -> None:
    global _rows
    _rows = rows


def _one(group: str) -> LeftOut:
    assert _rows is not None
    return leave_one_group_out(_rows, groups=(group,))


def merged(parts: Sequence[LeftOut]) -> LeftOut:
    """Predictions of disjoint groups as one; each part is 0 on rows of the others."""
    step = {
        f.name: np.sum([np.asarray(getattr(p.step, f.name)) for p in parts], axis=0)
        for f in fields(StepTime)
    }
    return LeftOut(
        log_errors=np.sum([p.log_errors for p in parts], axis=0),
        doubt=np.sum([p.doubt for p in parts], axis=0),
        step=StepTime(**step),
    )
