"""How wide to be: spreads of the step's parts from the residuals of runs that were left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from autoparallel.constants import NORMAL_90
from autoparallel.cost.step import StepTime, log_variance, part_shares
from autoparallel.profiles import Spread
from autoparallel.units import Num

Column = NDArray[np.float64]

PARTS = ("compute", "communication", "bubble", "launch")
PRIOR = np.array([0.10, 0.40, 0.25, 0.30])
PRIOR_WIDTH = 0.5
COVERED = 0.90
MIN_ROWS = 8


def fit_spread(
    step: StepTime, log_errors: Column, weights: Column, layout: float, doubt: Num = 1.0
) -> Spread:
    """The part spreads that make left-out residuals most likely, then scaled to cover 90 %.

    A residual's variance is the sum over parts of (share x spread) squared. Its likelihood is
    Student's with 4 degrees of freedom, so a few odd runs do not widen every interval.

    Args:
        step: Predictions of the left-out runs, with their parts [N].
        log_errors: log(predicted / measured) of the same runs [N].
        weights: Weight of each run [N].
        layout: Spread between two layouts of one job.
        doubt: Share of the parts' variance that measured runs nearby leave, scalar or [N].
    """
    shares = part_shares(step)

    def spread(x: Column, scale: float = 1.0) -> Spread:
        parts = {n: float(v * scale) for n, v in zip(PARTS, np.exp(x), strict=True)}
        return Spread(**parts, layout=layout)

    def loss(x: Column) -> float:
        variance = log_variance(shares, spread(x), doubt)
        student = 2.5 * np.log1p(log_errors**2 / (4 * variance)) + 0.5 * np.log(variance)
        pull = np.sum(((x - np.log(PRIOR)) / PRIOR_WIDTH) ** 2)
        return float(np.sum(weights * student) + 0.5 * pull)

    found = minimize(loss, np.log(PRIOR), method="L-BFGS-B").x
    z = np.abs(log_errors) / np.sqrt(log_variance(shares, spread(found), doubt))
    scale = weighted_quantile(z, weights, COVERED) / NORMAL_90 if len(z) >= MIN_ROWS else 1.0
    return spread(found, float(np.clip(scale, 0.6, 2.5)))


def weighted_quantile(values: Column, weights: Column, q: float) -> float:
    """Quantile of a weighted sample."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    at = np.searchsorted(cumulative, q * cumulative[-1])
    return float(values[order][min(int(at), len(values) - 1)])


def layout_spread(
    log_errors: Column, search_groups: NDArray[np.str_], default: float = 0.04
) -> float:
    """Robust spread of residuals within search groups: what differs between layouts of one job."""
    inside: list[float] = []
    for name in np.unique(search_groups):
        rows = log_errors[search_groups == name]
        if name and len(rows) >= 4:
            inside += list(np.abs(rows - np.median(rows)))
    return float(np.clip(1.4826 * np.median(inside), 0.01, 0.2)) if len(inside) >= 8 else default
