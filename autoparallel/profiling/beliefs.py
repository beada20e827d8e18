"""What is believed of the candidates' step times before and after trials.

The analytic estimate is the prior: its logarithm is normal, with a covariance that says which
layouts share their errors. A trial conditions it (Gaussian regression), so a measured layout moves
its relatives as well. Everything in logarithms of seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]

COMMON_SIGMA = 0.7
"""Assumed: how far all predictions of one job may be off together; says nothing of their order."""
OWN_SIGMA = 0.08
"""Assumed: how far one layout may be off by itself, at the least."""
TRIAL_SIGMA = 0.03
"""Assumed: standard deviation of the log between trials of one layout on GPUs, at the least."""
CPU_TRIAL_SIGMA = 0.10
"""Assumed: the same on CPUs, which trials share with whatever else runs."""
UNKNOWN_STEP_SIGMA = 0.1
"""Assumed: of a step within a trial too short to show it."""
SAMPLES = 2_000
_SEED = 11


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Beliefs:
    """Means [N] and covariance [N, N] of the log of candidates' step times."""

    mean: Column
    covariance: Column

    def seconds(self) -> Column:
        """Medians of the step times [N]."""
        return np.asarray(np.exp(self.mean))

    def interval_s(self, z: float) -> tuple[Column, Column]:
        """Step times `z` standard deviations below and above, [N] each."""
        sigma = np.sqrt(np.diag(self.covariance))
        return np.asarray(np.exp(self.mean - z * sigma)), np.asarray(np.exp(self.mean + z * sigma))

    def after(self, trials: Mapping[int, tuple[float, float]]) -> Beliefs:
        """Beliefs once candidates have been measured.

        Args:
            trials: Candidate -> measured seconds, and the standard deviation of their log.
        """
        if not trials:
            return self
        at = np.array(sorted(trials), dtype=np.intp)
        found = np.log([trials[int(i)][0] for i in at])
        noise = np.array([max(trials[int(i)][1], TRIAL_SIGMA) for i in at])
        shared = self.covariance[:, at]
        among = self.covariance[np.ix_(at, at)] + np.diag(noise**2)
        gain = np.linalg.solve(among, shared.T).T
        return Beliefs(
            mean=self.mean + gain @ (found - self.mean[at]),
            covariance=self.covariance - gain @ shared.T,
        )

    def best_probability(self, fits: Column) -> Column:
        """How often each candidate is the fastest of those that run, [N].

        Args:
            fits: Probability that each candidate runs at all [N].
        """
        random = np.random.default_rng(_SEED)
        size = len(self.mean)
        sigma = np.sqrt(np.maximum(np.diag(self.covariance), 1e-12))
        root = np.linalg.cholesky(self.covariance + np.diag(1e-9 + 1e-6 * sigma**2))
        drawn = self.mean + random.standard_normal((SAMPLES, size)) @ root.T
        runs = random.random((SAMPLES, size)) < fits
        raced = np.where(runs, drawn, np.inf)
        winners = np.argmin(raced, axis=1)[np.isfinite(raced).any(axis=1)]
        return np.bincount(winners, minlength=size) / max(len(winners), 1)


def prior(predicted_s: Column, samples: Column) -> Beliefs:
    """The analytic estimate as beliefs.

    Args:
        predicted_s: Predicted step times [N].
        samples: Step times drawn under the estimate's own uncertainty [samples, N].
    """
    logs = np.log(samples)
    spread = np.atleast_2d(np.cov(logs, rowvar=False))
    size = len(predicted_s)
    covariance = spread + COMMON_SIGMA**2 * np.ones((size, size)) + OWN_SIGMA**2 * np.eye(size)
    return Beliefs(mean=np.log(predicted_s), covariance=covariance)
