"""Measured peaks and out-of-memory labels as columns, and what memory accounting says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoparallel.calibration.fit import GROUP_WEIGHT_CAP, Column
from autoparallel.constants import NORMAL_90, Constants, MemoryConstants
from autoparallel.cost.case import Case
from autoparallel.cost.memory import Memory, fits_probability, memory, memory_of_stage
from autoparallel.layout import Knobs
from autoparallel.measured import cases, words
from autoparallel.measured.cases import Reading
from autoparallel.measured.rows import MeasuredRun
from autoparallel.model import embedding_parameters, parameters
from autoparallel.units import GIB

GUESSED_VOCABULARY_SHARE = 0.1
"""Share of the parameters in a guessed vocabulary from which on a row teaches nothing."""
VOCABULARY_SIGMA = 0.4
"""Standard deviation of the log of an unstated vocabulary: most have 32,000 to 152,000 tokens."""
VOCABULARY_STEP = 1.25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemoryData:
    """Runs ready to fit or to score; every column is [N].

    Attributes:
        peak_bytes: Measured peak, NaN where the run has none.
        kind: `allocated`, `reserved` or `device`: which of the three totals was measured.
        rank: Where it was measured: on the `first` or `last` rank, or the `max` over ranks.
        out_of_memory: Whether the run failed for want of memory.
        recompute_stated: Whether the row says what it recomputes.
        sharding_stated: Whether the row says its ZeRO stage, or its framework shards unasked.
        teaches: Whether the row may be fitted: not where a guessed vocabulary is much of the model,
            or where experts come on top of the guess.
    """

    case: Case
    peak_bytes: Column
    kind: NDArray[np.str_]
    rank: NDArray[np.str_]
    out_of_memory: NDArray[np.bool_]
    vocabulary_stated: NDArray[np.bool_]
    recompute_stated: NDArray[np.bool_]
    sharding_stated: NDArray[np.bool_]
    teaches: NDArray[np.bool_]
    groups: NDArray[np.str_]

    def weights(self) -> Column:
        """Weight of each row: a group of n rows weighs min(n, cap) in all."""
        _, inverse, counts = np.unique(self.groups, return_inverse=True, return_counts=True)
        n = counts[inverse].astype(np.float64)
        return np.minimum(n, GROUP_WEIGHT_CAP) / n * self.teaches

    def take(self, index: NDArray[Any]) -> MemoryData:
        """The rows at `index` (a mask or positions)."""
        rows = np.flatnonzero(index) if index.dtype == bool else index
        return MemoryData(
            case=cases.select(self.case, rows),
            peak_bytes=self.peak_bytes[rows],
            kind=self.kind[rows],
            rank=self.rank[rows],
            out_of_memory=self.out_of_memory[rows],
            vocabulary_stated=self.vocabulary_stated[rows],
            recompute_stated=self.recompute_stated[rows],
            sharding_stated=self.sharding_stated[rows],
            teaches=self.teaches[rows],
            groups=self.groups[rows],
        )


def memory_data(readings: Sequence[Reading]) -> MemoryData:
    """The rows as columns, whatever they measured."""
    runs = [r.run for r in readings]
    case = cases.case(readings, Constants())
    stated = np.array([r.vocabulary_stated for r in readings])
    known = np.array([words.has_gpt2_vocabulary(x.model, x.notes) for x in runs])
    vocabulary = embedding_parameters(case.model) / parameters(case.model)
    return MemoryData(
        case=case,
        peak_bytes=np.array([(x.peak_memory_gib or np.nan) * GIB for x in runs]),
        kind=np.array([x.memory_kind or "reserved" for x in runs]),
        rank=np.array([_rank(x) for x in runs]),
        out_of_memory=np.array([bool(x.out_of_memory) for x in runs]),
        vocabulary_stated=stated,
        recompute_stated=np.array([bool(x.recompute) for x in runs]),
        sharding_stated=np.array(
            [r.run.zero_stage is not None or r.layout.zero_stage > 0 for r in readings]
        ),
        teaches=stated
        | (known | (vocabulary < GUESSED_VOCABULARY_SHARE)) & (np.asarray(case.model.E) == 0),
        groups=np.array([x.split_group for x in runs]),
    )


def _rank(run: MeasuredRun) -> str:
    """The rank a peak was read on; in Megatron-LM's functional tests not the one they state."""
    if run.memory_rank == "0" and words.is_functional_test(run.notes):
        return words.rank_of_functional_test(run.model)
    return "first" if run.memory_rank == "0" else "max"


def with_noted_reserved(readings: Sequence[Reading]) -> list[Reading]:
    """The rows, and once more those that state `reserved x GiB` beside an allocated peak."""
    extra = []
    for reading in readings:
        noted = re.search(r"reserved (\d{1,4}(?:\.\d{1,6})?) GiB", reading.run.notes)
        if noted and reading.run.memory_kind == "allocated":
            run = replace(reading.run, peak_memory_gib=float(noted[1]), memory_kind="reserved")
            extra.append(replace(reading, run=run))
    return [*readings, *extra]


FILLED_AS: Mapping[str, str] = {"nanotron-early": "nanotron"}
"""Families that differ from another's in time alone, or in traits: its memory constants hold."""


def memory_code(family: str) -> str:
    """The framework part of the family whose runs give `family` its memory constants."""
    kind = family.rpartition("-")[0]
    return FILLED_AS.get(kind, kind)


def memory_family(reading: Reading) -> str:
    """Which memory constants a row is scored with: its software's and nodes', whatever the GPU.

    What a rank keeps is decided by the code that runs; what its streams hold, by the nodes too.
    """
    return memory_code(reading.family)


# --- prediction ---------------------------------------------------------------------------------


def predicted(data: MemoryData, constants: MemoryConstants) -> tuple[Column, Memory]:
    """Bytes of the kind and rank that each row measured, and the fullest rank's memory."""
    case = replace(data.case, memory=constants)
    fullest = memory(case)
    first, last = memory_of_stage(case, "first"), memory_of_stage(case, "last")

    def where_read(name: str) -> Column:
        at = [data.rank == "first", (data.rank == "last") & (np.asarray(case.knobs.pp) > 1)]
        own = [getattr(first, name), getattr(last, name)]
        alone = np.where(data.rank == "last", own[0], getattr(fullest, name))
        return np.asarray(np.select(at, own, alone))

    bytes_ = np.select(
        [data.kind == "allocated", data.kind == "device"],
        [where_read("allocated_bytes"), where_read("total_bytes")],
        where_read("reserved_bytes"),
    )
    return bytes_, fullest


def log_error(data: MemoryData, constants: MemoryConstants) -> Column:
    """log(predicted / measured) of every row, NaN where nothing was measured."""
    return np.log(predicted(data, constants)[0] / data.peak_bytes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecast:
    """What is said of N rows: bytes of what each measured, their 5-95 % interval, and P(fits)."""

    bytes: Column
    low: Column
    high: Column
    fits: Column


def forecast(data: MemoryData, constants: MemoryConstants) -> Forecast:
    """Everything said of every row. The context outside the allocator is taken as known."""
    bytes_, fullest = predicted(data, constants)
    outside = np.where(data.kind == "device", fullest.context_bytes, 0.0)
    guessed = VOCABULARY_SIGMA * _vocabulary_share(data, bytes_, constants)
    factor = np.exp(NORMAL_90 * np.hypot(constants.error_sigma, guessed))
    return Forecast(
        bytes=bytes_,
        low=(bytes_ - outside) / factor + outside,
        high=(bytes_ - outside) * factor + outside,
        fits=_fits(data, fullest, constants),
    )


def _vocabulary_share(data: MemoryData, bytes_: Column, constants: MemoryConstants) -> Column:
    """By how many percent memory grows with a percent more vocabulary, where that is guessed."""
    if data.vocabulary_stated.all():
        return np.zeros(len(bytes_))
    more = replace(data.case.model, V=np.asarray(data.case.model.V) * VOCABULARY_STEP)
    grown = predicted(replace(data, case=replace(data.case, model=more)), constants)[0]
    share = np.log(grown / bytes_) / np.log(VOCABULARY_STEP)
    return np.where(data.vocabulary_stated, 0.0, share)


def _fits(data: MemoryData, fullest: Memory, constants: MemoryConstants) -> Column:
    """P(fits) of every row on its own GPU.

    What a row does not say of recomputation and of sharding was chosen by whoever ran it, so that
    it fits: there it is what it is with every layer recomputed and the optimizer sharded.
    """
    capacity = data.case.machine.memory_bytes
    fits = np.asarray(fits_probability(fullest, capacity, constants))
    stated = data.recompute_stated & data.sharding_stated
    if stated.all():
        return fits
    case = replace(data.case, memory=constants, knobs=_least(data))
    least = np.asarray(fits_probability(memory(case), capacity, constants))
    return np.where(stated, fits, np.maximum(fits, least))


def _least(data: MemoryData) -> Knobs:
    """The layouts with what rows leave unsaid chosen to need the least memory."""
    k, free = data.case.knobs, ~data.recompute_stated
    return replace(
        k,
        granularity=np.where(free, 2.0, k.granularity),
        method=np.where(free, 0.0, k.method),
        recompute_layers=np.where(free, 1.0, k.recompute_layers),
        zero=np.where(data.sharding_stated, k.zero, np.maximum(k.zero, 1.0)),
    )
