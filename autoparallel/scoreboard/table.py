"""Measured rows beside their predictions, as columns, and blocks of scores over parts of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoparallel.constants import FITS
from autoparallel.cost.unique import gathered
from autoparallel.measured.cases import Reading
from autoparallel.scoreboard.predictions import Predictions
from autoparallel.scoreboard.scores import (
    MIN_LAYOUTS_TO_RANK,
    Block,
    Column,
    Errors,
    GroupRanking,
    Mask,
    error_block,
    macro_block,
    out_of_memory_block,
    rank_group,
    ranking_block,
)
from autoparallel.units import GIB

MEMORY_KINDS = ("allocated", "reserved", "device")
NO_GROUP = "ungrouped"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """N measured rows with their predictions; every column is [N], NaN where nothing was measured.

    Attributes:
        group: Split group, or the source where a row has none.
        search_group: Rows of one job under different layouts; empty when a row belongs to none.
        layout: What tells two rows of a search group apart: layout and kernels.
        family: Framework family and GPU generation, whose constants the row is scored with.
    """

    predictions: Predictions
    seconds: Column
    memory_bytes: Column
    memory_kind: NDArray[np.str_]
    vocabulary_stated: Mask
    ran_out: Mask
    approximated: Mask
    suspect: Mask
    group: NDArray[np.str_]
    search_group: NDArray[np.str_]
    layout: NDArray[np.str_]
    family: NDArray[np.str_]
    num_gpus: Column

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def timed(self) -> Mask:
        """Rows with a step time."""
        return np.isfinite(self.seconds)

    @property
    def weighed(self) -> Mask:
        """Rows with a peak memory; that of a run that failed is no peak."""
        return np.isfinite(self.memory_bytes) & ~self.ran_out

    @property
    def ran(self) -> Mask:
        """Rows that were measured and did not run out of memory."""
        return (self.timed | self.weighed) & ~self.ran_out

    def take(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> Table:
        """The rows at `index`."""
        rows: Table = gathered(self, index)
        return rows


def table_of(readings: Sequence[Reading], predictions: Predictions) -> Table:
    """Readings and their predictions, in the same order, as a table."""
    runs = [r.run for r in readings]
    return Table(
        predictions=predictions,
        seconds=_numbers(x.seconds or np.nan for x in runs),
        memory_bytes=_numbers((x.peak_memory_gib or np.nan) * GIB for x in runs),
        memory_kind=_words(x.memory_kind or "reserved" for x in runs),
        vocabulary_stated=_flags(r.vocabulary_stated for r in readings),
        ran_out=_flags(bool(x.out_of_memory) for x in runs),
        approximated=_flags(r.approximated for r in readings),
        suspect=_flags(bool(x.suspect) for x in runs),
        group=_words(x.split_group or x.source or NO_GROUP for x in runs),
        search_group=_words(x.search_group for x in runs),
        layout=_words(f"{r.layout} {r.run.kernels}".strip() for r in readings),
        family=_words(r.family for r in readings),
        num_gpus=_numbers(x.num_gpus for x in runs),
    )


def _numbers(values: Iterable[float]) -> Column:
    return np.array(list(values), dtype=np.float64)


def _words(values: Iterable[str]) -> NDArray[np.str_]:
    return np.array(list(values), dtype=np.str_)


def _flags(values: Iterable[bool]) -> Mask:
    return np.array(list(values), dtype=np.bool_)


# --- blocks --------------------------------------------------------------------------------------


def time_errors(table: Table) -> Errors:
    """Predicted and measured step times."""
    rows, p = table.timed, table.predictions
    return Errors(
        predicted=p.seconds[rows],
        measured=table.seconds[rows],
        low=p.seconds_low[rows],
        high=p.seconds_high[rows],
    )


def memory_errors(table: Table) -> Errors:
    """Predicted and measured peaks."""
    rows, p = table.weighed, table.predictions
    return Errors(
        predicted=p.memory_bytes[rows],
        measured=table.memory_bytes[rows],
        low=p.memory_low[rows],
        high=p.memory_high[rows],
    )


def time_block(table: Table) -> Block:
    """Errors of the step time."""
    return error_block(time_errors(table))


def memory_block(table: Table) -> Block:
    """Errors of peak memory, over all and by what was measured."""
    kind = {name: table.take(table.memory_kind == name) for name in MEMORY_KINDS}
    allocated = kind["allocated"]
    parts = {
        "allocated": allocated,
        "allocated_vocab_stated": allocated.take(allocated.vocabulary_stated),
        "reserved": kind["reserved"],
        "device": kind["device"],
    }
    by_kind = {name: error_block(memory_errors(part)) for name, part in parts.items()}
    return {**error_block(memory_errors(table)), "by_kind": by_kind}


def fitting_block(table: Table) -> Block:
    """False alarms about fitting."""
    return out_of_memory_block(table.predictions.fits_probability, table.ran_out, table.ran)


def rankings(table: Table) -> dict[str, GroupRanking]:
    """Search groups with enough distinct timed layouts, ranked."""
    timed = table.take(table.timed & (table.search_group != ""))
    names, inverse = np.unique(timed.search_group, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(inverse, minlength=len(names)))[:-1])
    found = {
        str(name): _ranked(timed.take(rows))
        for name, rows in zip(names, parts, strict=False)
        if len(rows) >= MIN_LAYOUTS_TO_RANK
    }
    return {name: ranking for name, ranking in found.items() if ranking}


def _ranked(group: Table) -> GroupRanking | None:
    p = group.predictions
    return rank_group(group.layout.tolist(), p.seconds, group.seconds, p.fits_probability >= FITS)


def order_block(table: Table) -> Block:
    """How well the order of layouts holds."""
    return ranking_block(list(rankings(table).values()))


def split_group_block(table: Table) -> Block:
    """Time error, every split group counting alike."""
    return macro_block(time_errors(table).relative, table.group[table.timed])


def all_blocks(table: Table) -> Block:
    """What is reported of one split group."""
    return {
        "time": time_block(table),
        "memory": memory_block(table),
        "oom": fitting_block(table),
        "ranking": order_block(table),
    }
