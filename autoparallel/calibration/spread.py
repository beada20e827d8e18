"""How wide to be: spreads of the step's parts from the residuals of runs that were left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from autoparallel.constants import NORMAL_90
from autoparallel.cost.step import StepTime, part_shares
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
    size = np.broadcast_shapes(*(np.shape(s) for s in shares.values()))
    columns = np.stack([np.broadcast_to(shares[name], size) for name in PARTS])

    def loss(x: Column) -> float:
        variance = sigma_squared(columns, np.exp(x), layout, doubt)
        student = 2.5 * np.log1p(log_errors**2 / (4 * variance)) + 0.5 * np.log(variance)
        pull = np.sum(((x - np.log(PRIOR)) / PRIOR_WIDTH) ** 2)
        return float(np.sum(weights * student) + 0.5 * pull)

    found = np.exp(minimize(loss, np.log(PRIOR), method="L-BFGS-B").x)
    z = np.abs(log_errors) / np.sqrt(sigma_squared(columns, found, layout, doubt))
    scale = weighted_quantile(z, weights, COVERED) / NORMAL_90 if len(z) >= MIN_ROWS else 1.0
    scale = float(np.clip(scale, 0.6, 2.5))
    return Spread(**{n: float(v * scale) for n, v in zip(PARTS, found, strict=True)}, layout=layout)


def sigma_squared(shares: Column, spreads: Column, layout: float, doubt: Num = 1.0) -> Column:
    """Variance of the log of a step time from shares [parts, N] and spreads [parts]."""
    variance: Column = layout**2 + doubt * np.sum((shares * spreads[:, None]) ** 2, axis=0)
    return variance


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
