"""Robust fit of the memory constants to measured peaks and out-of-memory labels.

As the time fit: constants move in (shifted) log space between physical bounds, the residual of a
peak is the softened log of predicted over measured, split groups weigh alike up to a cap, and every
constant is pulled to its prior. A run that did or did not fit counts through the probability the
model gave it (logarithmic score), so labels teach without a measured number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from autoparallel.calibration.fit import Column, soften
from autoparallel.constants import Constants, MemoryConstants, memory_bounds
from autoparallel.cost.case import Case
from autoparallel.cost.memory import Memory, fits_probability, memory, memory_of_stage
from autoparallel.measured import cases
from autoparallel.measured.cases import Reading
from autoparallel.model import embedding_parameters, parameters
from autoparallel.units import GIB

RESIDUAL_SCALE = 0.04
"""Log error at which the loss turns from quadratic to linear: one release to the next."""
GROUP_WEIGHT_CAP = 25.0
"""Rows after which a split group gains no further weight."""
LABEL_WEIGHT = 4.0
"""Weight of one label's logarithmic score against one measured peak."""
OUT_OF_MEMORY_WEIGHT = 3.0
"""How much dearer a promise to a run that fails is than turning down one that would run."""
RAN_WEIGHT = 0.1
"""Weight of a run that is only known to have run: it bounds memory from one side, and what it
leaves unsaid (recomputation above all) may be why it ran."""
GUESSED_VOCABULARY_SHARE = 0.1
"""Share of the parameters in a guessed vocabulary from which on a row teaches nothing."""
SIGMA_FLOOR = 0.05
"""Least deviation of predicted from needed memory that a fit may claim."""

LOG_FLOOR = 0.1
"""Constants move as log(value + this share of their upper bound), so that they can leave zero."""
PRIOR_WIDTH_FACTOR = {"context_bytes": 0.3}
"""How much tighter than the rest a constant is held that most rows do not show."""

DIFFERENCE_STEP = np.array(1e-3)
RARE = ("gathered_inputs", "embedding_copies")
RARE_PEAKS = 100
"""Copies that few code bases keep are fitted only by a family with at least this many peaks."""
FITTED = (
    "workspace_bytes",
    "extra_gradient_bytes",
    "activation_copies",
    "gathered_inputs",
    "embedding_copies",
    "logits_copies",
    "fragmentation",
    "context_bytes",
)
"""Constants that rows can tell apart; the others stay at their prior."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemoryData:
    """Runs ready to fit or to score; every column is [N].

    Attributes:
        peak_bytes: Measured peak, NaN where the run has none.
        kind: `allocated`, `reserved` or `device`: which of the three totals was measured.
        rank_zero: Whether it was measured on global rank 0, not on the fullest rank.
        out_of_memory: Whether the run failed for want of memory.
        teaches: Whether the row may be fitted: not where a guessed vocabulary is much of the model,
            or where experts come on top of the guess.
    """

    case: Case
    peak_bytes: Column
    kind: NDArray[np.str_]
    rank_zero: NDArray[np.bool_]
    out_of_memory: NDArray[np.bool_]
    vocabulary_stated: NDArray[np.bool_]
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
            rank_zero=self.rank_zero[rows],
            out_of_memory=self.out_of_memory[rows],
            vocabulary_stated=self.vocabulary_stated[rows],
            teaches=self.teaches[rows],
            groups=self.groups[rows],
        )


def memory_data(readings: Sequence[Reading]) -> MemoryData:
    """The rows as columns, whatever they measured."""
    runs = [r.run for r in readings]
    case = cases.case(readings, Constants())
    stated = np.array([r.vocabulary_stated for r in readings])
    vocabulary = embedding_parameters(case.model) / parameters(case.model)
    return MemoryData(
        case=case,
        peak_bytes=np.array([(x.peak_memory_gib or np.nan) * GIB for x in runs]),
        kind=np.array([x.memory_kind or "reserved" for x in runs]),
        rank_zero=np.array([x.memory_rank == "0" for x in runs]),
        out_of_memory=np.array([bool(x.out_of_memory) for x in runs]),
        vocabulary_stated=stated,
        teaches=stated
        | ((vocabulary < GUESSED_VOCABULARY_SHARE) & (np.asarray(case.model.E) == 0)),
        groups=np.array([x.split_group for x in runs]),
    )


def with_noted_reserved(readings: Sequence[Reading]) -> list[Reading]:
    """The rows, and once more those that state `reserved x GiB` beside an allocated peak."""
    extra = []
    for reading in readings:
        noted = re.search(r"reserved (\d{1,4}(?:\.\d{1,6})?) GiB", reading.run.notes)
        if noted and reading.run.memory_kind == "allocated":
            run = replace(reading.run, peak_memory_gib=float(noted[1]), memory_kind="reserved")
            extra.append(replace(reading, run=run))
    return [*readings, *extra]


def memory_family(reading: Reading) -> str:
    """Which memory constants a row is scored with: its software, whatever the GPU.

    What a rank keeps is decided by the code that runs.
    """
    return reading.software


# --- prediction ---------------------------------------------------------------------------------


def predicted(data: MemoryData, constants: MemoryConstants) -> tuple[Column, Memory]:
    """Bytes of the kind and rank that each row measured, and the fullest rank's memory."""
    case = replace(data.case, memory=constants)
    fullest, first = memory(case), memory_of_stage(case, "first")
    bytes_ = np.select(
        [data.kind == "allocated", data.kind == "device"],
        [
            np.where(data.rank_zero, first.allocated_bytes, fullest.allocated_bytes),
            np.where(data.rank_zero, first.total_bytes, fullest.total_bytes),
        ],
        np.where(data.rank_zero, first.reserved_bytes, fullest.reserved_bytes),
    )
    return bytes_, fullest


def log_error(data: MemoryData, constants: MemoryConstants) -> Column:
    """log(predicted / measured) of every row, NaN where nothing was measured."""
    return np.log(predicted(data, constants)[0] / data.peak_bytes)


def row_fits_probability(data: MemoryData, constants: MemoryConstants) -> Column:
    """P(fits) of every row on its own GPU."""
    fullest = predicted(data, constants)[1]
    return np.asarray(fits_probability(fullest, data.case.machine.memory_bytes, constants))


# --- fit ----------------------------------------------------------------------------------------


def fit_memory(
    data: MemoryData,
    prior: MemoryConstants,
    prior_width: float = 0.7,
    names: Sequence[str] = FITTED,
) -> MemoryConstants:
    """The constants `names` that best explain peaks and labels; then the deviation that is left.

    Args:
        data: Measured rows of one family.
        prior: Where constants start, what they are pulled to, and the value of those not fitted.
        prior_width: Standard deviation of a constant's log around its prior.
        names: Constants to fit; those of `RARE` only where many peaks show them.
    """
    if (np.isfinite(data.peak_bytes) & data.teaches).sum() < RARE_PEAKS:
        names = [n for n in names if n not in RARE]
    floor = np.array([LOG_FLOOR * memory_bounds(n)[1] for n in names])
    low = np.log(floor + [memory_bounds(n)[0] for n in names])
    high = np.log(floor + [memory_bounds(n)[1] for n in names])
    at_prior = np.log(floor + [float(getattr(prior, n)) for n in names])
    start = np.clip(at_prior, low + 1e-6, high - 1e-6)
    width = np.array([prior_width * PRIOR_WIDTH_FACTOR.get(n, 1.0) for n in names])

    def residuals(x: Column) -> Column:
        pull = (x - start) / width
        return np.concatenate([_residuals(data, _at(names, np.exp(x) - floor, prior)), pull])

    found = least_squares(
        residuals, start, bounds=(low, high), diff_step=DIFFERENCE_STEP, max_nfev=60
    )
    fitted = _at(names, np.exp(found.x) - floor, prior)
    return replace(fitted, error_sigma=_deviation(data, fitted))


def _at(names: Sequence[str], x: Column, base: MemoryConstants) -> MemoryConstants:
    return replace(base, **{n: float(v) for n, v in zip(names, x, strict=True)})


def _residuals(data: MemoryData, constants: MemoryConstants) -> Column:
    """Softened log errors of peaks, then the roots of the logarithmic scores of labels."""
    root_weight = np.sqrt(data.weights())
    bytes_, fullest = predicted(data, constants)
    measured = np.isfinite(data.peak_bytes)
    error = np.log(bytes_ / np.where(measured, data.peak_bytes, bytes_)) / RESIDUAL_SCALE
    fits = fits_probability(fullest, data.case.machine.memory_bytes, constants)
    right = np.where(data.out_of_memory, 1 - np.asarray(fits), fits)
    told = np.isin(data.groups, data.groups[data.out_of_memory])
    ran = np.where(told, 1.0, RAN_WEIGHT)
    cost = LABEL_WEIGHT * np.where(data.out_of_memory, OUT_OF_MEMORY_WEIGHT, ran)
    score = np.sqrt(-2 * cost * np.log(np.clip(right, 1e-9, 1 - 1e-12)))
    labelled = ~measured | data.out_of_memory
    return np.concatenate([root_weight * soften(error), root_weight * score * labelled])


def _deviation(data: MemoryData, constants: MemoryConstants) -> float:
    """Standard deviation of the log error, from its median magnitude; the prior's without peaks."""
    error = log_error(data, constants)
    error = error[np.isfinite(error) & data.teaches]
    if len(error) < 8:
        return float(constants.error_sigma)
    low, high = memory_bounds("error_sigma")
    spread = max(
        1.48 * float(np.median(np.abs(error))), float(np.quantile(np.abs(error), 0.9)) / 1.64
    )
    return float(np.clip(spread, max(low, SIGMA_FLOOR), high))


def fit_families(
    data: MemoryData, families: NDArray[np.str_], prior: MemoryConstants, prior_width: float = 0.7
) -> dict[str, MemoryConstants]:
    """One fit a family, each pulled to `prior`.

    The entry "" is for frameworks without rows: `prior` itself, as uncertain as it is on all rows.
    Copies that one code base keeps say nothing of another, so families do not pull each other.
    """
    unknown = replace(prior, error_sigma=_deviation(data, prior))
    found = {
        str(f): fit_memory(data.take(families == f), prior, prior_width)
        for f in np.unique(families)
    }
    return {"": unknown, **found}


def leave_one_group_out(
    data: MemoryData, families: NDArray[np.str_], prior: MemoryConstants, prior_width: float = 0.7
) -> tuple[Column, Column]:
    """(predicted bytes, P(fits)) of every row from constants fitted without its split group.

    A family that has no other group is predicted with the prior.
    """
    bytes_, fits = np.full(len(families), np.nan), np.full(len(families), np.nan)
    for group in np.unique(data.groups):
        held = data.groups == group
        others = fit_families(data.take(~held), families[~held], prior, prior_width)
        for family in np.unique(families[held]):
            rows = held & (families == family)
            constants = others.get(str(family), others[""])
            part = data.take(rows)
            bytes_[rows] = predicted(part, constants)[0]
            fits[rows] = row_fits_probability(part, constants)
    return bytes_, fits
