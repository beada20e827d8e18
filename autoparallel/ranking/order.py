"""Order: which candidates to keep while they stream by, and in which order to show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from autoparallel.constants import FITS
from autoparallel.cost.memory import Memory
from autoparallel.cost.step import StepTime
from autoparallel.cost.unique import gathered, later
from autoparallel.layout import KNOB_FIELDS, Knobs, Product
from autoparallel.ranking.evaluation import Evaluate, Scores
from autoparallel.ranking.sample import largest_stratum, lucks, stratified

KEPT = 20_000
SAMPLED = 20_000
LAZY = 8
"""Blocks keep what is taken of them alive when it is more than a part in this."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Kept candidates with their scores, best first."""

    knobs: Knobs
    scores: Scores

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.scores.iteration_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranked:
    """What streaming through all candidates leaves.

    Attributes:
        best: The fitting candidates in order, at most `KEPT`.
        sample: Some of all evaluated ones, fitting or not, as even over the meshes as they allow.
        nearest_miss: The evaluated candidate that comes closest to fitting; None without any.
    """

    best: Table | None
    sample: Table | None
    nearest_miss: Table | None
    evaluated: int
    feasible: int


def ranked(blocks: Iterable[Knobs], evaluate: Evaluate, objective: str, keep: int = KEPT) -> Ranked:
    """Evaluate every block and keep the best, a sample, and the nearest miss."""
    kept = _Kept()
    for knobs in blocks:
        part = _of_block(knobs, kept.cut, kept.quota, evaluate, objective, keep)
        kept = _merged(kept, part, objective, keep)
    return Ranked(
        best=_trimmed(kept.best, objective, keep) if kept.feasible else None,
        sample=_of_sample(kept.sample, objective) if kept.sample else None,
        nearest_miss=kept.miss,
        evaluated=kept.evaluated,
        feasible=kept.feasible,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sample:
    """Some candidates, with the luck by which they were drawn."""

    table: Table
    luck: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Kept:
    """What is kept of the blocks so far.

    Attributes:
        cut: Value and memory of the last of the best; later ones must be better.
        quota: Candidates of one mesh beyond which the sample needs no more.
    """

    best: tuple[Table, ...] = ()
    sample: tuple[_Sample, ...] = ()
    miss: Table | None = None
    evaluated: int = 0
    feasible: int = 0
    cut: tuple[float, float] = (np.inf, np.inf)
    quota: int = SAMPLED


def _of_block(
    knobs: Knobs,
    cut: tuple[float, float],
    quota: int,
    evaluate: Evaluate,
    objective: str,
    keep: int,
) -> _Kept:
    scores = evaluate(knobs)
    closest = np.array([np.argmax(scores.fits_probability)])
    luck = lucks(knobs)
    drawn = stratified([knobs], SAMPLED, quota, luck)
    return _Kept(
        best=(_table(knobs, scores, _lowest(scores, objective, keep, cut)),),
        sample=(_Sample(table=_table(knobs, scores, drawn), luck=luck.take(drawn)),),
        miss=Table(knobs=knobs.take(closest), scores=taken(scores, closest)),
        evaluated=knobs.size,
        feasible=int(np.count_nonzero(scores.fits_probability >= FITS)),
    )


def _merged(a: _Kept, b: _Kept, objective: str, keep: int) -> _Kept:
    """What is kept of two: merged down once it holds twice as much as is wanted in the end."""
    best, cut = (*a.best, *b.best), a.cut
    if sum(t.size for t in best) > 2 * keep:
        best = (_trimmed(best, objective, keep),)
        cut = _worst(best[0].scores, objective)
    sample, quota = (*a.sample, *b.sample), a.quota
    if sum(s.table.size for s in sample) > 2 * SAMPLED:
        sample = (_thinned(sample),)
        quota = largest_stratum([sample[0].table.knobs])
    return _Kept(
        best=best,
        sample=sample,
        miss=_closer(a.miss, b.miss),
        evaluated=a.evaluated + b.evaluated,
        feasible=a.feasible + b.feasible,
        cut=cut,
        quota=quota,
    )


def evaluated_blocks(blocks: Iterable[Knobs], evaluate: Evaluate) -> Iterable[tuple[Knobs, Scores]]:
    """Blocks with their scores, in order."""
    return ((knobs, evaluate(knobs)) for knobs in blocks)


def objective_column(scores: Scores, objective: str) -> NDArray[np.float64]:
    """What the ranking makes small. Cost and energy of one job go with its time."""
    return scores.memory_bytes if objective == "memory_bytes" else scores.iteration_s


def _lowest(
    scores: Scores, objective: str, keep: int, cut: tuple[float, float]
) -> NDArray[np.intp]:
    """The `keep` best fitting rows that are better than `cut`; of equal ones the thriftier."""
    value, used = objective_column(scores, objective), scores.memory_bytes
    better = (value < cut[0]) | ((value == cut[0]) & (used < cut[1]))
    rows = np.flatnonzero(better & (scores.fits_probability >= FITS))
    if len(rows) <= keep:
        return rows
    own = value[rows]
    last = np.partition(own, keep - 1)[keep - 1]
    tied = rows[own == last]
    thriftiest = tied[np.argsort(used[tied], kind="stable")]
    below = rows[own < last]
    return np.concatenate([below, thriftiest[: keep - len(below)]])


def _table(knobs: Knobs, scores: Scores, index: NDArray[np.intp]) -> Table:
    """The rows at `index`. Many of a block stay where they are, to be looked up if they last."""
    if isinstance(knobs, Product) and len(index) * LAZY > knobs.size:
        return Table(knobs=knobs.at(index), scores=_looked_up(scores, index))
    return Table(knobs=knobs.take(index), scores=taken(scores, index))


def _looked_up(scores: Scores, index: NDArray[np.intp]) -> Scores:
    return Scores(
        step=later(scores.step, index),
        memory=later(scores.memory, index),
        iteration_s=scores.iteration_s[index],
        memory_bytes=scores.memory_bytes[index],
        fits_probability=scores.fits_probability[index],
    )


def taken(scores: Scores, index: NDArray[np.intp]) -> Scores:
    """The scores of the rows at `index`."""
    rows: Scores = gathered(scores, index)
    return rows


def _worst(scores: Scores, objective: str) -> tuple[float, float]:
    """Value and memory of the last row."""
    return float(objective_column(scores, objective)[-1]), float(scores.memory_bytes[-1])


def _trimmed(tables: Sequence[Table], objective: str, keep: int) -> Table:
    """The best rows of all tables, in order."""
    return _rows(tables, _order(tables, objective)[:keep])


def _thinned(samples: Sequence[_Sample]) -> _Sample:
    """A stratified sample of all samples."""
    luck = np.concatenate([sample.luck for sample in samples])
    tables = [sample.table for sample in samples]
    rows = np.sort(stratified([t.knobs for t in tables], SAMPLED, luck=luck))
    return _Sample(table=_rows(tables, rows), luck=luck.take(rows))


def _of_sample(samples: Sequence[_Sample], objective: str) -> Table:
    """What a sample has in the end, best first."""
    if sum(sample.table.size for sample in samples) > SAMPLED:
        samples = [_thinned(samples)]
    return joined([sample.table for sample in samples], objective)


def joined(tables: Sequence[Table], objective: str) -> Table:
    """All rows of `tables`, best first; ties keep the thriftier layout first."""
    return _rows(tables, _order(tables, objective))


def _order(tables: Sequence[Table], objective: str) -> NDArray[np.intp]:
    value = np.concatenate([objective_column(t.scores, objective) for t in tables])
    return np.lexsort((np.concatenate([t.scores.memory_bytes for t in tables]), value))


def _rows(tables: Sequence[Table], order: NDArray[np.intp]) -> Table:
    """The rows numbered `order` of all tables one after the other."""
    owner = np.repeat(np.arange(len(tables)), [t.size for t in tables])[order]
    starts = np.cumsum([0, *(t.size for t in tables)])
    places = [np.flatnonzero(owner == i) for i in range(len(tables))]
    parts = [
        _table(t.knobs, t.scores, order[p] - s)
        for t, p, s in zip(tables, places, starts, strict=False)
    ]
    back = np.empty(len(order), dtype=np.intp)
    back[np.concatenate(places)] = np.arange(len(order))

    def column(values: Iterable[object]) -> NDArray[np.float64]:
        return _column(values, parts).take(back)

    return Table(
        knobs=Knobs(
            **{f.name: column(getattr(t.knobs, f.name) for t in parts) for f in KNOB_FIELDS},
            stage_table=tables[0].knobs.stage_table,
        ),
        scores=Scores(
            step=_record(
                StepTime, lambda name: column(getattr(t.scores.step, name) for t in parts)
            ),
            memory=_record(
                Memory, lambda name: column(getattr(t.scores.memory, name) for t in parts)
            ),
            iteration_s=column(t.scores.iteration_s for t in parts),
            memory_bytes=column(t.scores.memory_bytes for t in parts),
            fits_probability=column(t.scores.fits_probability for t in parts),
        ),
    )


Record = TypeVar("Record", StepTime, Memory)


def _record(kind: type[Record], column: Callable[[str], NDArray[np.float64]]) -> Record:
    return kind(**{f.name: column(f.name) for f in fields(kind)})


def _column(values: Iterable[object], tables: Sequence[Table]) -> NDArray[np.float64]:
    return np.concatenate(
        [
            np.broadcast_to(np.asarray(v, dtype=np.float64), (t.size,))
            for v, t in zip(values, tables, strict=True)
        ]
    )


def _closer(a: Table | None, b: Table | None) -> Table | None:
    if a is None or b is None:
        return a or b
    return b if b.scores.fits_probability[0] > a.scores.fits_probability[0] else a
