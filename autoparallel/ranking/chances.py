"""P(best) and ties: how sure the order of the short list is.

The step's parts are wrong by factors common to all layouts of a job; what two layouts share cancels
in their order. Sampling those factors, and a small one of each layout's own, gives how often each
comes out best.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from autoparallel.constants import NORMAL_90
from autoparallel.cost.step import StepTime, part_shares
from autoparallel.profiles import Spread

SAMPLES = 2_000
_SEED = 7
TIE = 0.25
"""A layout ties with the best when it beats it in at least this share of the samples."""
FAILED_START = 0.1
"""Assumed: what a start that runs out of memory costs (the queue, people, the next try), as a share
of the run. It only chooses among layouts that tie; benchmarks/first_choice.py shows what for.
"""


def sampled_times(step: StepTime, spread: Spread, samples: int = SAMPLES) -> NDArray[np.float64]:
    """Step times [samples, N] under random part factors shared by all layouts, and own ones."""
    random = np.random.default_rng(_SEED)
    total = np.asarray(step.iteration_s, dtype=np.float64)
    own = np.exp(spread.layout * random.standard_normal((samples, total.size)))
    times = np.zeros((samples, total.size))
    for name, share in part_shares(step).items():
        factor = np.exp(getattr(spread, name) * random.standard_normal((samples, 1)))
        times += factor * (np.broadcast_to(share, total.shape) * total)
    return times * own


def best_probability(times: NDArray[np.float64], fits: NDArray[np.float64]) -> NDArray[np.float64]:
    """How often each layout is the fastest of those that turn out to fit, [N]."""
    random = np.random.default_rng(_SEED + 1)
    fitting = random.random(times.shape) < fits
    raced = np.where(fitting, times, np.inf)
    winners = np.argmin(raced, axis=1)[np.isfinite(raced).any(axis=1)]
    return np.bincount(winners, minlength=times.shape[1]) / max(len(winners), 1)


def ties(times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which layouts cannot be told from the first one: they beat it often enough."""
    beats = np.mean(times < times[:, :1], axis=0)
    beats[0] = 1.0
    return np.asarray(beats >= TIE)


def interval_ties(
    iteration_s: NDArray[np.float64], high_s: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which layouts cannot be told from the first one, by ranges that trials have left.

    Ranges are taken as independent and normal in the logarithm. What two layouts still share is in
    both, so that a few more may tie than should.

    Args:
        iteration_s: Medians of the step times, [N]; infinite for what did not run.
        high_s: Their 95th percentiles, [N].
    """
    with np.errstate(invalid="ignore"):  # infinite over infinite
        sigma = np.nan_to_num(np.log(high_s / iteration_s) / NORMAL_90)
        behind = np.log(iteration_s / iteration_s[0])
    most = NormalDist().inv_cdf(1 - TIE)
    found = (behind <= most * np.hypot(sigma, sigma[0])) & np.isfinite(behind)
    found[0] = True
    return np.asarray(found)


def surest_choice(
    tied: NDArray[np.bool_], iteration_s: NDArray[np.float64], fits: NDArray[np.float64]
) -> int:
    """Which of the layouts that tie with the fastest has the least expected cost.

    The order of a plan is by time. Among ties time says little, and a start that fails costs
    something too.

    Args:
        tied: Which layouts cannot be told from the first, [N].
        iteration_s: Predicted step times, [N].
        fits: Probability that each fits, [N].
    """
    expected = iteration_s * (1 + FAILED_START * (1 - fits))
    return int(np.argmin(np.where(tied, expected, np.inf)))
