"""Robust fit of bounded constants to measured step times.

Constants move in log space between their physical bounds; the residual is the log of predicted over
measured, softened so that a few odd runs do not bend the physics; every split group counts alike
up to a cap; and each constant is pulled to its prior, so what the data cannot tell stays where it
was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from autoparallel.constants import Constants, bounds
from autoparallel.cost.case import Case
from autoparallel.cost.step import step_time
from autoparallel.nearby import Nearby

Column = NDArray[np.float64]

RESIDUAL_SCALE = 0.04
"""Log error at which the loss turns from quadratic to linear: about a run's own repeatability."""
GROUP_WEIGHT_CAP = 25.0
"""Rows after which a split group gains no further weight."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """Measured runs ready to fit: a case, and of every row [N] seconds, split group and doubt.

    A row that looks odd (`suspect`) is scored but teaches nothing of time.
    """

    case: Case
    seconds: Column
    groups: NDArray[np.str_]
    suspect: NDArray[np.bool_]

    def weights(self) -> Column:
        """Weight of each row: a group of n rows weighs min(n, cap) in all, a suspect row nothing.

        Where every row is suspect they all count: they are all there is.
        """
        kept = ~self.suspect if not self.suspect.all() else self.suspect
        _, inverse = np.unique(self.groups, return_inverse=True)
        n = np.maximum(np.bincount(inverse, weights=kept)[inverse], 1.0)
        return kept * np.minimum(n, GROUP_WEIGHT_CAP) / n


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """Fitted constants and how well the data determine each.

    Attributes:
        deviations: Standard deviation of each free constant's log given data and prior; close to
            the prior's own where the data say nothing.
    """

    constants: Constants
    deviations: Mapping[str, float]


def fit(
    data: Data,
    names: Sequence[str],
    prior: Constants,
    prior_width: float | Column,
    near: Constants | None = None,
) -> Fit:
    """The constants `names` that best explain `data`; the others stay at `prior`.

    Args:
        data: Measured runs.
        names: Constants that may move.
        prior: What they are pulled to.
        prior_width: Standard deviation of a constant's log around its prior, of all or of each.
        near: Where the search begins, when something better than the prior is known.
    """
    low = np.array([np.log(_floor(bounds(n)[0])) for n in names])
    span = np.array([np.log(bounds(n)[1]) for n in names]) - low
    start = np.array([np.log(_floor(float(getattr(prior, n)))) for n in names])
    root_weight = np.sqrt(data.weights())

    def residuals(u: Column) -> Column:
        x = low + (u - 1) * span
        error = log_error(data, constants_at(names, x, prior)) / RESIDUAL_SCALE
        return np.concatenate([root_weight * soften(error), (x - start) / prior_width])

    # Constants run over [1, 2], so that one relative step suits every difference quotient.
    first = np.array([np.log(_floor(float(getattr(near or prior, n)))) for n in names])
    begin = np.clip(1 + (first - low) / span, 1 + 1e-4, 2 - 1e-4)
    found = least_squares(
        residuals, begin, bounds=(1, 2), diff_step=np.array(1e-4), ftol=1e-5, xtol=1e-5, max_nfev=60
    )
    return Fit(
        constants=constants_at(names, low + (found.x - 1) * span, prior),
        deviations=dict(zip(names, _deviations(found.jac / span), strict=True)),
    )


def _deviations(jacobian: Column) -> Column:
    """Standard deviations from the curvature of the loss (the prior keeps it invertible)."""
    return np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))


def constants_at(names: Sequence[str], x: Column, base: Constants) -> Constants:
    """`base` with the constants `names` at exp(x)."""
    return replace(base, **{n: float(np.exp(v)) for n, v in zip(names, x, strict=True)})


def log_error(data: Data, constants: Constants, nearby: Nearby | None = None) -> Column:
    """log(predicted / measured) of every row."""
    predicted = step_time(replace(data.case, constants=constants, nearby=nearby)).iteration_s
    return np.log(np.asarray(predicted) / data.seconds)


def soften(r: Column) -> Column:
    """Soft-L1: r near zero, growing as the root of |r| far away, so that its square is |r|."""
    softened: Column = np.sign(r) * np.sqrt(2 * (np.sqrt(1 + r * r) - 1))
    return softened


def _floor(value: float) -> float:
    return max(value, 1e-6)
