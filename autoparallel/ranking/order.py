"""Order: which candidates to keep while they stream by, and in which order to show them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from autoparallel.cost.memory import Memory
from autoparallel.cost.step import StepTime
from autoparallel.cost.unique import gathered
from autoparallel.layout import KNOB_FIELDS, Knobs
from autoparallel.ranking.evaluation import Evaluate, Scores

FITS = 0.5
"""Probability from which a layout is called fitting."""
KEPT = 20_000
SAMPLED = 20_000
WORKERS = 2
_SEED = 20_26


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Kept candidates with their scores, best first."""

    knobs: Knobs
    scores: Scores

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.knobs.size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranked:
    """What streaming through all candidates leaves.

    Attributes:
        best: The fitting candidates in order, at most `KEPT`.
        sample: A random sample of all evaluated ones, fitting or not, for plots.
        nearest_miss: The evaluated candidate that comes closest to fitting; None without any.
    """

    best: Table | None
    sample: Table | None
    nearest_miss: Table | None
    evaluated: int
    feasible: int


def ranked(blocks: Iterable[Knobs], evaluate: Evaluate, objective: str, keep: int = KEPT) -> Ranked:
    """Evaluate every block and keep the best, a sample, and the nearest miss."""
    best: list[Table] = []
    sample: list[Table] = []
    miss: Table | None = None
    evaluated = feasible = 0
    random = np.random.default_rng(_SEED)
    for knobs, scores in evaluated_blocks(blocks, evaluate):
        value, fits = objective_column(scores, objective), scores.fits_probability >= FITS
        evaluated, feasible = evaluated + knobs.size, feasible + int(fits.sum())
        best = _trimmed([*best, _table(knobs, scores, _lowest(value, fits, keep))], objective, keep)
        drawn = random.choice(knobs.size, size=min(knobs.size, SAMPLED // 8), replace=False)
        sample = [*sample, _table(knobs, scores, drawn)][-16:]
        miss = _closer(miss, _table(knobs, scores, np.argmax(scores.fits_probability)[None]))
    return Ranked(
        best=joined(best, objective) if feasible else None,
        sample=joined(sample, objective) if sample else None,
        nearest_miss=miss,
        evaluated=evaluated,
        feasible=feasible,
    )


def evaluated_blocks(
    blocks: Iterable[Knobs], evaluate: Evaluate
) -> Iterable[tuple[Knobs, Scores]]:
    """Blocks with their scores, in order, on as many threads as help (NumPy releases the lock)."""
    stream = iter(blocks)
    with ThreadPoolExecutor(WORKERS) as pool:
        while batch := list(islice(stream, WORKERS)):
            yield from zip(batch, pool.map(evaluate, batch), strict=True)


def objective_column(scores: Scores, objective: str) -> NDArray[np.float64]:
    """What the ranking makes small. Cost and energy of one job go with its time."""
    return scores.memory_bytes if objective == "memory_bytes" else scores.iteration_s


def _lowest(value: NDArray[np.float64], fits: NDArray[np.bool_], keep: int) -> NDArray[np.intp]:
    fitting = np.flatnonzero(fits)
    if len(fitting) <= keep:
        return fitting
    return fitting[np.argpartition(value[fitting], keep)[:keep]]


def _table(knobs: Knobs, scores: Scores, index: NDArray[np.intp]) -> Table:
    return Table(knobs=knobs.take(index), scores=taken(scores, index))


def taken(scores: Scores, index: NDArray[np.intp]) -> Scores:
    """The scores of the rows at `index`."""
    return Scores(
        step=gathered(scores.step, index),
        memory=gathered(scores.memory, index),
        iteration_s=scores.iteration_s[index],
        memory_bytes=scores.memory_bytes[index],
        fits_probability=scores.fits_probability[index],
    )


def _trimmed(tables: list[Table], objective: str, keep: int) -> list[Table]:
    """The tables merged down once they hold four times what is kept."""
    if sum(t.size for t in tables) <= 4 * keep:
        return tables
    whole = joined(tables, objective)
    return [_table(whole.knobs, whole.scores, np.arange(min(keep, whole.size)))]


def joined(tables: list[Table], objective: str) -> Table:
    """All rows of `tables`, best first; ties keep the thriftier layout first."""
    knobs = Knobs(
        **{f.name: _column([getattr(t.knobs, f.name) for t in tables], tables) for f in KNOB_FIELDS},
        stage_table=tables[0].knobs.stage_table,
    )
    scores = Scores(
        step=StepTime(**_records(tables, "step", StepTime)),
        memory=Memory(**_records(tables, "memory", Memory)),
        iteration_s=np.concatenate([t.scores.iteration_s for t in tables]),
        memory_bytes=np.concatenate([t.scores.memory_bytes for t in tables]),
        fits_probability=np.concatenate([t.scores.fits_probability for t in tables]),
    )
    order = np.lexsort((scores.memory_bytes, objective_column(scores, objective)))
    return _table(knobs, scores, order)


def _records(tables: list[Table], name: str, kind: type) -> dict[str, NDArray[np.float64]]:
    return {
        f.name: _column([getattr(getattr(t.scores, name), f.name) for t in tables], tables)
        for f in fields(kind)
    }


def _column(values: list[object], tables: list[Table]) -> NDArray[np.float64]:
    return np.concatenate(
        [
            np.broadcast_to(np.asarray(v, dtype=np.float64), (t.size,))
            for v, t in zip(values, tables, strict=True)
        ]
    )


def _closer(a: Table | None, b: Table) -> Table:
    if a is None or b.scores.fits_probability[0] > a.scores.fits_probability[0]:
        return b
    return a
