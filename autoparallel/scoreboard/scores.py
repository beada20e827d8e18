"""Scores: how far predictions are from measurements, as pure functions of arrays.

Errors are relative: predicted / measured - 1. Rates are fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoparallel.constants import FITS

Column = NDArray[np.float64]
Mask = NDArray[np.bool_]
Block = dict[str, Any]

MIN_LAYOUTS_TO_RANK = 4
MIN_ROWS_FOR_MACRO = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Errors:
    """Predictions with their 5-95 % interval beside measurements of one quantity; all [N]."""

    predicted: Column
    measured: Column
    low: Column
    high: Column

    @property
    def relative(self) -> Column:
        """Signed relative error."""
        return self.predicted / self.measured - 1

    def at(self, mask: Mask) -> Errors:
        """The rows of `mask`."""
        return Errors(
            predicted=self.predicted[mask],
            measured=self.measured[mask],
            low=self.low[mask],
            high=self.high[mask],
        )


ERROR_FIGURES = (
    "mape",
    "median_ape",
    "p90_ape",
    "bias",
    "coverage_90",
    "median_relative_width",
)


def error_block(errors: Errors) -> Block:
    """Mean, median and tail error, bias (median), and how honest the intervals are.

    Figures are None without rows.
    """
    if not len(errors.measured):
        return {"n": 0, **dict.fromkeys(ERROR_FIGURES)}
    size = np.abs(errors.relative)
    inside = (errors.low <= errors.measured) & (errors.measured <= errors.high)
    width = (errors.high - errors.low) / errors.predicted
    return {
        "n": len(size),
        "mape": float(size.mean()),
        "median_ape": float(np.median(size)),
        "p90_ape": float(np.quantile(size, 0.9)),
        "bias": float(np.median(errors.relative)),
        "coverage_90": float(inside.mean()),
        "median_relative_width": float(np.median(width)),
    }


def out_of_memory_block(fits_probability: Column, ran_out: Mask, ran: Mask) -> Block:
    """False alarms both ways and the Brier score of P(fits)."""
    fits = fits_probability >= FITS
    known = ran_out | ran
    return {
        "n_oom": int(ran_out.sum()),
        "n_ran": int(ran.sum()),
        "false_fit_rate": _rate(fits, ran_out),
        "false_oom_rate": _rate(~fits, ran),
        "brier": _rate((fits_probability - ran) ** 2, known),
    }


def _rate(event: Mask | Column, among: Mask) -> float | None:
    return float(event[among].mean()) if among.any() else None


def macro_block(relative: Column, groups: NDArray[np.str_]) -> Block:
    """Every split group of at least 3 rows counts alike."""
    medians = [
        float(np.median(np.abs(relative[groups == name])))
        for name in dict.fromkeys(groups.tolist())
        if np.count_nonzero(groups == name) >= MIN_ROWS_FOR_MACRO
    ]
    if not medians:
        return {
            "groups": 0,
            "median_of_medians": None,
            "mean_of_medians": None,
            "within_15pct": None,
        }
    return {
        "groups": len(medians),
        "median_of_medians": float(np.median(medians)),
        "mean_of_medians": float(np.mean(medians)),
        "within_15pct": float(np.mean([m <= 0.15 for m in medians])),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRanking:
    """One search group: how our order of its layouts compares with the measured order."""

    layouts: int
    top1: bool
    top1_within_3pct: bool
    top3: bool
    regret: float
    spearman: float


def rank_group(
    layouts: Sequence[str], predicted: Column, measured: Column, fits: Mask
) -> GroupRanking | None:
    """Compare orders within one search group.

    Identical layouts are collapsed to their median first. Our pick is the fastest layout that we
    call fitting (of all, when we call none fitting).

    Returns:
        None with fewer than 4 distinct layouts.
    """
    names = list(dict.fromkeys(layouts))
    if len(names) < MIN_LAYOUTS_TO_RANK:
        return None
    where = [np.array([x == name for x in layouts]) for name in names]
    guess = np.array([np.median(predicted[w]) for w in where])
    truth = np.array([np.median(measured[w]) for w in where])
    fitting = np.array([bool(fits[w].any()) for w in where])
    offered = np.where(fitting if fitting.any() else np.ones_like(fitting), guess, np.inf)
    order = np.argsort(offered, kind="stable")
    regret = float(truth[order[0]] / truth.min() - 1)
    best = int(np.argmin(truth))
    return GroupRanking(
        layouts=len(names),
        top1=int(order[0]) == best,
        top1_within_3pct=regret <= 0.03,
        top3=best in order[:3].tolist(),
        regret=regret,
        spearman=spearman(guess, truth),
    )


def spearman(a: Column, b: Column) -> float:
    """Rank correlation; equal values share their mean rank, and 0 where all are equal."""
    x, y = ranks(a), ranks(b)
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def ranks(values: Column) -> Column:
    """Rank of each value from 0, equal values at their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[inverse], dtype=np.float64)


def ranking_block(groups: Sequence[GroupRanking]) -> Block:
    """Means over search groups."""

    def mean(value: Callable[[GroupRanking], float]) -> float | None:
        return float(np.mean([value(g) for g in groups])) if groups else None

    return {
        "groups": len(groups),
        "distinct_layouts": sum(g.layouts for g in groups),
        "top1": mean(lambda g: g.top1),
        "top1_within_3pct": mean(lambda g: g.top1_within_3pct),
        "top3": mean(lambda g: g.top3),
        "mean_regret": mean(lambda g: g.regret),
        "max_regret": max((g.regret for g in groups), default=None),
        "spearman": mean(lambda g: g.spearman),
    }
