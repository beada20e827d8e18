"""Serving constants fitted to measured figures: one fit to all of them, then one a family.

The fit to all runs is the prior of every family (backend and GPU generation), so that what a
family's runs do not tell stays where all runs put it. Residuals are logs of predicted over
measured, softened; a cell (one model, GPU, release and metric) weighs the root of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from autoparallel.calibration.fit import soften
from autoparallel.calibration.serving_cases import ServingReading, predicted
from autoparallel.constants import NORMAL_90
from autoparallel.inference.calibrated import (
    EVERYTHING,
    ServingCalibration,
    ServingSpread,
    chosen,
)
from autoparallel.inference.constants import (
    CONSTANT_NAMES,
    ServingConstants,
    bounds,
    expected,
)
from autoparallel.inference.setting import Setting
from autoparallel.model import active_parameters
from autoparallel.units import MS

Column = NDArray[np.float64]
Known = Mapping[str, ServingCalibration]

HELD = (
    "expert_imbalance",
    "gemm_ramp_waves",
    "attention_half_tokens",
    "kernels_per_layer",
    "stream_s",
)
"""Constants that stay at their prior: no row has expert parallelism; the ramp of bf16 products and
of attention over length come from isolated kernels; kernels a layer only scale `kernel_s`; no
server streams faster than the fastest one measured, which a fit to all rows would contradict."""
FITTED = tuple(name for name in CONSTANT_NAMES if name not in HELD)
PRIOR_WIDTH, FAMILY_WIDTH = 0.5, 0.5
"""Standard deviation of a constant's log around its prior: of all runs, and of a family."""
ISOLATED_WIDTH = 0.3
"""Share of that width for constants that isolated kernels or the links say, and for two that one
model with experts must not bend for the next: how well its grouped products go."""
ISOLATED = (
    "gemm_efficiency",
    "fp8_efficiency",
    "fp4_efficiency",
    "memory_bandwidth",
    "kv_bandwidth",
    "all_reduce",
    "moe_efficiency",
    "upcast_efficiency",
    "prompts_in_line",
)
RESIDUAL_SCALE = {"ttft_ms": 0.25, "tpot_ms": 0.08}
THROUGHPUT_SCALE = 0.08
"""Log error at which the loss turns from quadratic to linear."""
STEP = 1e-4
"""Share of a constant's range by which it is moved to see what it does."""
MAX_CELL_ROWS = 30
"""Rows of one cell that are fitted, evenly taken: more tell nothing new."""
MEASURED_SHRINK = 0.7
"""A constant is called measured when the runs narrow it to less than this share of its prior."""
BEST_GEMM = 0.70
"""Share of the peak above which no published 8-bit product runs (`microbench.csv`): a figure that
needs more did not compute all of its prompt."""
METRICS = {"ttft_ms": "ttft", "tpot_ms": "tpot"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingFit:
    """Fitted constants, and the standard deviation of each one's log."""

    constants: ServingConstants
    deviations: Mapping[str, float]


def metric(reading: ServingReading) -> str:
    """`ttft`, `tpot` or `throughput`."""
    return METRICS.get(reading.run.metric, "throughput")


def fit_serving(
    readings: Sequence[ServingReading],
    prior: ServingConstants,
    width: float,
    per_setting: Callable[[ServingConstants, Setting], ServingConstants],
) -> ServingFit:
    """The constants that best explain `readings`.

    Args:
        readings: Measured figures.
        prior: What the constants are pulled to.
        width: Standard deviation of a constant's log around its prior.
        per_setting: Constants of a setting, from those that are fitted.
    """
    rows, weight = _weighed(readings)
    measured = np.array([r.run.value for r in rows])
    scale = np.array([RESIDUAL_SCALE.get(r.run.metric, THROUGHPUT_SCALE) for r in rows])
    low = np.array([np.log(_floor(bounds(n)[0])) for n in FITTED])
    span = np.array([np.log(bounds(n)[1]) for n in FITTED]) - low
    start = np.array([np.log(_floor(float(getattr(prior, n)))) for n in FITTED])
    widths = np.array([prior_width(n, width) for n in FITTED])

    def at(points: Column) -> ServingConstants:
        values = np.exp(low + (points - 1) * span)
        return replace(prior, **{n: values[..., i, None] for i, n in enumerate(FITTED)})

    def residuals(points: Column) -> Column:
        found = at(points)
        guess = predicted(rows, lambda setting: per_setting(found, setting), points.shape[:-1])
        error = np.log(np.maximum(guess, 1e-12) / measured) / scale
        pull = (low + (points - 1) * span - start) / widths
        return np.concatenate([weight * soften(error), pull], axis=-1)

    def jacobian(point: Column) -> Column:
        return slopes(residuals, point)

    begin = np.clip(1 + (start - low) / span, 1 + STEP, 2 - STEP)
    best = least_squares(
        residuals, begin, jac=jacobian, bounds=(1, 2), ftol=1e-3, xtol=1e-3, max_nfev=15
    )
    scaled = best.jac / span
    deviations = np.sqrt(np.diag(np.linalg.inv(scaled.T @ scaled)))
    values = np.exp(low + (best.x - 1) * span)
    return ServingFit(
        constants=replace(prior, **dict(zip(FITTED, values.tolist(), strict=True))),
        deviations=dict(zip(FITTED, deviations.tolist(), strict=True)),
    )


def slopes(function: Callable[[Column], Column], point: Column) -> Column:
    """Slopes of `function` [*, M] of points [*, N] at one `point` [N], all in one call: [M, N].

    Steps go down where one up would leave the unit interval above 1.
    """
    step = np.where(point + STEP > 2, -STEP, STEP)
    values = function(np.vstack([point, point + np.diag(step)]))
    found: Column = (values[1:] - values[0]).T / step
    return found


def prior_width(name: str, width: float) -> float:
    """Standard deviation of the log of constant `name` around its prior."""
    return width * (ISOLATED_WIDTH if name in ISOLATED else 1.0)


def _floor(value: float) -> float:
    return max(value, 1e-7)


def cell(reading: ServingReading) -> tuple[str, ...]:
    """What a figure shares with others of its sweep."""
    run = reading.run
    return (reading.family, reading.case.model.name, run.gpu, run.framework_version, run.metric)


def _weighed(readings: Sequence[ServingReading]) -> tuple[list[ServingReading], Column]:
    """Rows to fit with the root of their weight."""
    cells: dict[tuple[str, ...], list[ServingReading]] = {}
    for reading in readings:
        cells.setdefault(cell(reading), []).append(reading)
    rows: list[ServingReading] = []
    weights: list[float] = []
    for members in cells.values():
        taken = members[:: -(-len(members) // MAX_CELL_ROWS)]
        rows += taken
        weights += [len(taken) ** -0.25] * len(taken)
    return rows, np.array(weights)


# --- what cannot be fitted ------------------------------------------------------------------------


def fittable(readings: Sequence[ServingReading]) -> list[ServingReading]:
    """Readings without sweeps in which some run did more work than any GPU of its kind can do.

    Closed loop: `concurrency` requests pass in `ttft + (osl - 1) tpot`. Where that takes more than
    `BEST_GEMM` of the peak, prompts came from a prefix cache that the row does not mention.
    """
    pairs: dict[tuple[object, ...], dict[str, ServingReading]] = {}
    for reading in readings:
        run = reading.run
        key = (
            *cell(reading)[:-1],
            run.precision,
            run.tensor_parallel,
            run.isl,
            run.osl,
            run.concurrency,
        )
        pairs.setdefault(key, {})[run.metric] = reading
    odd = {
        cell(r)[:-1]
        for pair in pairs.values()
        if len(pair) == 2 and _work_share(pair) > BEST_GEMM
        for r in pair.values()
    }
    return [r for r in readings if cell(r)[:-1] not in odd]


def _work_share(pair: Mapping[str, ServingReading]) -> float:
    """Share of the peak that the linear layers of a closed loop need."""
    reading = pair["tpot_ms"]
    run, case = reading.run, reading.case
    seconds = (pair["ttft_ms"].run.value + (run.osl - 1) * run.value) * MS
    tokens = (run.concurrency or 1.0) * (run.isl + run.osl)
    flops = 2.0 * float(active_parameters(case.shape)) * tokens
    peaks = case.cluster.gpu.peak_flops_per_s
    kind = {"bf16": "bf16", "nvfp4": "nvfp4"}.get(case.precision, "fp8")
    return flops / seconds / (peaks.get(kind, peaks["bf16"]) * run.num_gpus)


# --- calibrations ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingOutcome:
    """Calibrations by family, `all` among them, and the fits behind them."""

    found: Known
    fits: Mapping[str, ServingFit]


def calibrate_serving(
    readings: Sequence[ServingReading], source: str = "", families: Iterable[str] | None = None
) -> ServingOutcome:
    """One calibration of all runs, and one of every family that has any.

    Args:
        readings: Measured figures.
        source: What a profile says of where they are from.
        families: Only these, when not all are wanted.
    """
    rows = fittable(readings)
    every = fit_serving(
        rows, ServingConstants(), PRIOR_WIDTH, lambda c, s: expected(c, *_family(s))
    )
    fits = {EVERYTHING: every}
    found = {EVERYTHING: _calibration(EVERYTHING, every, rows, source, PRIOR_WIDTH)}
    for family in dict.fromkeys(r.family for r in rows):
        if families is not None and family not in families:
            continue
        own = [r for r in rows if r.family == family]
        prior = expected(every.constants, *_family(own[0].case))
        fits[family] = fit_serving(own, prior, FAMILY_WIDTH, lambda c, s: c)
        found[family] = _calibration(family, fits[family], own, source, FAMILY_WIDTH)
    return ServingOutcome(found=found, fits=fits)


def _family(setting: Setting) -> tuple[str, str]:
    """Backend and GPU generation."""
    return setting.backend.name, setting.cluster.gpu.generation


def _calibration(
    family: str, fit: ServingFit, rows: Sequence[ServingReading], source: str, width: float
) -> ServingCalibration:
    return ServingCalibration(
        family=family,
        constants=fit.constants,
        state="measured",
        rows=len(rows),
        measured_names=tuple(
            n for n, d in fit.deviations.items() if d < MEASURED_SHRINK * prior_width(n, width)
        ),
        gpus=tuple(dict.fromkeys(r.case.cluster.gpu.name for r in rows)),
        source=source,
    )


def predicted_with(known: Known, readings: Sequence[ServingReading]) -> Column:
    """Figures of `readings` by calibrations `known`, borrowed where a family has none [N]."""
    return predicted(
        readings,
        lambda s: chosen(known, *_family(s)).constants,
    )


# --- left out -------------------------------------------------------------------------------------

LEFT_OUT: Mapping[str, Callable[[ServingReading], str]] = {
    "model": lambda r: r.case.model.name,
    "gpu": lambda r: r.run.gpu,
    "backend": lambda r: r.case.backend.name,
}
"""What is left out at a time, and how a row says which it belongs to."""


def left_out_predictions(
    readings: Sequence[ServingReading],
    by: str,
    *,
    workers: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> Column:
    """Every row predicted by calibrations that saw nothing of its model, GPU or backend [N].

    NaN where nothing is left to learn from.
    """
    labels = [LEFT_OUT[by](r) for r in readings]
    names = list(dict.fromkeys(labels))
    out = np.full(len(readings), np.nan)
    if len(names) < 2:
        return out
    if workers == 1:
        for name in names:
            progress(f"serving: {by} {name} left out")
            out = _filled(out, _one_left_out(readings, by, name))
        return out
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting = [pool.submit(_one_left_out, readings, by, name) for name in names]
        for done, future in enumerate(as_completed(waiting), start=1):
            out = _filled(out, future.result())
            progress(f"serving: {done} of {len(names)} left out by {by}")
    return out


def _one_left_out(readings: Sequence[ServingReading], by: str, name: str) -> Column:
    """Predictions of the rows that are `name`; NaN elsewhere."""
    mine = [LEFT_OUT[by](r) == name for r in readings]
    here = [r for r, own in zip(readings, mine, strict=True) if own]
    others = [r for r, own in zip(readings, mine, strict=True) if not own]
    wanted = {r.family for r in here}
    enough = wanted <= {r.family for r in others}
    known = calibrate_serving(others, families=wanted if enough else None).found
    out = np.full(len(readings), np.nan)
    out[np.array(mine)] = predicted_with(known, here)
    return out


def _filled(column: Column, more: Column) -> Column:
    return np.where(np.isfinite(more), more, column)


def with_spread(
    found: Known, readings: Sequence[ServingReading], blind: Column
) -> dict[str, ServingCalibration]:
    """Calibrations with spreads from predictions of left-out models.

    The spread is what covers 90 % of a family's log errors, of all rows' where the family has few;
    rows that cannot be fitted say nothing of it.
    """
    error = np.log(blind / np.array([r.run.value for r in readings]))
    possible = {id(r) for r in fittable(readings)}
    kinds = np.array([metric(r) for r in readings])
    families = np.array([r.family for r in readings])
    usable = np.isfinite(error) & np.array([id(r) in possible for r in readings])

    def deviation(family: str, kind: str) -> float:
        mine = usable & (kinds == kind)
        own = mine & (families == family)
        rows = own if np.count_nonzero(own) >= MIN_SPREAD_ROWS else mine
        if not rows.any():
            return float(getattr(ServingSpread(), kind))
        return float(np.quantile(np.abs(error[rows]), 0.9)) / NORMAL_90

    kinds_known = ("ttft", "tpot", "throughput")
    return {
        name: replace(c, spread=ServingSpread(**{k: deviation(name, k) for k in kinds_known}))
        for name, c in found.items()
    }


MIN_SPREAD_ROWS = 10
