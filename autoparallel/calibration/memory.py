"""Robust fit of the memory constants to measured peaks and out-of-memory labels.

As the time fit: constants move in (shifted) log space between physical bounds, the residual of a
peak is the softened log of predicted over measured, split groups weigh alike up to a cap, and every
constant is pulled to its prior. A run that did or did not fit counts through the probability the
model gave it (logarithmic score), so labels teach without a measured number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from autoparallel.calibration.fit import Column, soften
from autoparallel.calibration.memory_rows import MemoryData, log_error, predicted
from autoparallel.constants import MemoryConstants, memory_bounds
from autoparallel.cost.memory import fits_probability
from autoparallel.profiles import RELATIVES, lent_memory

RESIDUAL_SCALE = 0.04
"""Log error at which the loss turns from quadratic to linear: one release to the next."""
LABEL_WEIGHT = 4.0
"""Weight of one label's logarithmic score against one measured peak."""
OUT_OF_MEMORY_WEIGHT = 1.5
"""How much dearer a promise to a run that fails is than turning down one that would run."""
RAN_WEIGHT = 0.1
"""Weight of a run that is only known to have run: it bounds memory from one side, and what it
leaves unsaid (recomputation above all) may be why it ran."""
SIGMA_FLOOR = 0.05
"""Least deviation of predicted from needed memory that a fit may claim."""
MIN_PEAKS, MIN_LABELS = 8, 20
"""Peaks, or runs that failed, from which on they tell the deviation."""

LOG_FLOOR = 0.1
"""Constants move as log(value + this share of their upper bound), so that they can leave zero."""
PRIOR_WIDTH_FACTOR = {"context_bytes": 0.3, "workspace_bytes": 0.5}
"""How much tighter than the rest a constant is held that most rows do not show."""

DIFFERENCE_STEP = np.array(1e-3)
UNKNOWN = ""
"""The entry of families that neither have runs nor a relative with runs."""
RARE = ("held_tensors",)
RARE_PEAKS = 100
"""Copies that few code bases keep are fitted only by a family with at least this many peaks."""
FITTED = (
    "workspace_bytes",
    "extra_gradient_bytes",
    "residual_copies",
    "held_tensors",
    "logits_copies",
    "fragmentation",
    "context_bytes",
)
"""Constants that rows can tell apart; the others stay at their prior."""


# --- fit ----------------------------------------------------------------------------------------


def fit_memory(
    data: MemoryData,
    prior: MemoryConstants,
    prior_width: float = 0.7,
    names: Sequence[str] = FITTED,
) -> MemoryConstants:
    """The constants `names` that best explain peaks and labels; then the deviation that is left.

    Labels weigh by how near they are to the limit, measured in deviations. Where they are all there
    is, the deviation they show takes the prior's place in a second fit.

    Args:
        data: Measured rows of one family.
        prior: Where constants start, what they are pulled to, and the value of those not fitted.
        prior_width: Standard deviation of a constant's log around its prior.
        names: Constants to fit; those of `RARE` only where many peaks show them.
    """
    peaks = (np.isfinite(data.peak_bytes) & data.teaches).sum()
    if peaks < RARE_PEAKS:
        names = [n for n in names if n not in RARE]
    found = _fit(data, prior, prior_width, names)
    if peaks < MIN_PEAKS and data.out_of_memory.any():
        at_labels = replace(prior, error_sigma=found.error_sigma)
        return _fit(data, at_labels, prior_width, names)
    return found


def _fit(
    data: MemoryData, prior: MemoryConstants, prior_width: float, names: Sequence[str]
) -> MemoryConstants:
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
    ran = np.where(told, 1.0, RAN_WEIGHT) * data.recompute_stated
    cost = LABEL_WEIGHT * np.where(data.out_of_memory, OUT_OF_MEMORY_WEIGHT, ran)
    score = np.sqrt(-2 * cost * np.log(np.clip(right, 1e-9, 1 - 1e-12)))
    labelled = ~measured | data.out_of_memory
    return np.concatenate([root_weight * soften(error), root_weight * score * labelled])


def _deviation(data: MemoryData, constants: MemoryConstants) -> float:
    """Standard deviation of the log error, from its median and its tail.

    Without peaks it is what makes the labels likeliest, and without labels the prior's.
    """
    low, high = memory_bounds("error_sigma")
    low = max(low, SIGMA_FLOOR)
    error = log_error(data, constants)
    error = error[np.isfinite(error) & data.teaches]
    if len(error) >= MIN_PEAKS:
        size = np.abs(error)
        spread = max(1.48 * float(np.median(size)), float(np.quantile(size, 0.9)) / 1.64)
        return float(np.clip(spread, low, high))
    if data.out_of_memory.sum() < MIN_LABELS:
        return float(constants.error_sigma)
    grid = np.geomspace(low, high, 40)
    return float(grid[np.argmin([_surprise(data, constants, sigma) for sigma in grid])])


def _surprise(data: MemoryData, constants: MemoryConstants, sigma: float) -> float:
    """Logarithmic score of the labels when memory is known within `sigma`."""
    at = replace(constants, error_sigma=sigma)
    fullest = predicted(data, at)[1]
    fits = np.asarray(fits_probability(fullest, data.case.machine.memory_bytes, at))
    right = np.where(data.out_of_memory, 1 - fits, fits)
    return float(-np.log(np.clip(right, 1e-9, 1.0)).sum())


def fit_families(
    data: MemoryData, families: NDArray[np.str_], prior: MemoryConstants, prior_width: float = 0.7
) -> dict[str, MemoryConstants]:
    """One fit a family, each pulled to `prior`, or to its nearest relative's where it has few runs.

    The entry "" is for frameworks without runs or relatives: `prior` itself, as uncertain as it is
    on all rows.
    """
    unknown = replace(prior, error_sigma=_deviation(data, prior))
    parts = {str(f): data.take(families == f) for f in np.unique(families)}
    told = {f for f, part in parts.items() if _tells(part)}
    found = {UNKNOWN: unknown}
    found |= {f: fit_memory(parts[f], prior, prior_width) for f in parts if f in told}
    for family in parts.keys() - told:
        base = lent(family, {name: found[name] for name in (UNKNOWN, *sorted(told))})
        own = fit_memory(parts[family], base, prior_width)
        found[family] = replace(own, error_sigma=base.error_sigma)
    return found


def _tells(data: MemoryData) -> bool:
    """Whether runs tell a family's constants: enough peaks, or enough that did not fit."""
    peaks = np.isfinite(data.peak_bytes) & data.teaches
    return bool(peaks.sum() >= MIN_PEAKS or data.out_of_memory.sum() >= MIN_LABELS)


def lender(family: str, known: Collection[str]) -> str:
    """Whose memory constants `family` takes: its own, its nearest relative's, or `UNKNOWN`'s."""
    return next((f for f in (family, *RELATIVES.get(family, ())) if f in known), UNKNOWN)


def lent(family: str, fitted: Mapping[str, MemoryConstants]) -> MemoryConstants:
    """The constants `family` takes of those fitted, less certain where they are a relative's."""
    name = lender(family, fitted)
    return fitted[name] if name in (family, UNKNOWN) else lent_memory(fitted[name])
