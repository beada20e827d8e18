"""Replay measured search groups as if they were profiled, and print regret against runs spent.

python benchmarks/replay.py [--out FILE]

A search group of `benchmarks/measured/training.csv` is one job measured under many layouts. Here
its layouts are candidates whose times are hidden; a strategy names the next one to run, the
recorded time (or that it ran out of memory) is revealed, and the regret after k runs is the best
time seen over the best of the group, minus 1. Three strategies: predicted order, the same while
learning from every run, and a random order. Twice: calibrated to the runs of all other split groups
(minutes), and with the priors of a machine nobody has calibrated. Prints Markdown and writes it to
benchmarks/replay_<yyyy-mm>.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pages import publish

from autoparallel.calibration.training import (
    fit_everything,
    known_without,
    time_family,
    timed_rows,
)
from autoparallel.constants import FITS, Constants
from autoparallel.cost.step import part_shares, step_time
from autoparallel.measured.cases import Reading, case
from autoparallel.nearby import Nearby
from autoparallel.profiles import Calibration, Spread
from autoparallel.scoreboard.predictions import calibration_of, folders, predict_family
from autoparallel.scoreboard.score import read_files
from autoparallel.scoreboard.scores import MIN_LAYOUTS_TO_RANK
from autoparallel.scoreboard.text import Text, percent

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "benchmarks" / "measured" / "training.csv"
RUNS = (1, 2, 3, 4, 6, 8, 12)
GOAL_RUNS, GOAL_REGRET = 12, 0.02
SEEDS = 20
PARTS = ("compute", "communication", "bubble", "launch")

Column = NDArray[np.float64]
Choose = Callable[["Job", Sequence[int]], int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One search group: its distinct layouts, what is predicted of them and what was measured.

    Attributes:
        seconds: Median measured step time [N]; inf where the layout ran out of memory.
        predicted: Predicted step time [N].
        fits: P(fits) [N].
        shares: Shares of the predicted step by kind of error [parts, N].
        spread: How far those parts are off.
    """

    name: str
    seconds: Column
    predicted: Column
    fits: Column
    shares: Column
    spread: Spread

    @property
    def size(self) -> int:
        """Number of distinct layouts."""
        return len(self.seconds)


# --- strategies ----------------------------------------------------------------------------------


def hopeful(job: Job, seconds: Column, tried: Sequence[int]) -> int:
    """The untried layout of least `seconds`; those called too big only when no other is left."""
    value = np.where(job.fits >= FITS, 0.0, 1e6) + np.log(seconds)
    value[list(tried)] = np.inf
    return int(np.argmin(value))


def predicted_order(job: Job, tried: Sequence[int]) -> int:
    """Fastest predicted first."""
    return hopeful(job, job.predicted, tried)


def learning(job: Job, tried: Sequence[int]) -> int:
    """Fastest first by predictions that every run so far has corrected."""
    return hopeful(job, job.predicted * np.exp(corrections(job, tried)), tried)


def corrections(job: Job, tried: Sequence[int]) -> Column:
    """Expected log of measured over predicted time of every layout, given the runs `tried` [N].

    The parts of all layouts are off by common factors with the spreads of the calibration, each
    layout by one of its own: a Gaussian in logs, conditioned on what was seen.
    """
    seen = np.array([i for i in tried if np.isfinite(job.seconds[i])], dtype=np.intp)
    if not len(seen):
        return np.zeros(job.size)
    width = np.array([getattr(job.spread, name) for name in PARTS])
    scaled = job.shares * width[:, None]
    common = scaled.T @ scaled[:, seen]
    own = job.spread.layout**2 * np.eye(len(seen))
    error = np.log(job.seconds[seen] / job.predicted[seen])
    expected: Column = common @ np.linalg.solve(common[seen] + own, error)
    return expected


def at_random(seed: int) -> Choose:
    """Any untried layout, those called too big included: nothing is predicted."""
    random = np.random.default_rng(seed)

    def choose(job: Job, tried: Sequence[int]) -> int:
        return int(random.choice(np.setdiff1d(np.arange(job.size), tried)))

    return choose


def replay(job: Job, choose: Choose, runs: int = GOAL_RUNS) -> Column:
    """Regret after 1, 2, ... `runs` runs; inf while nothing has run to its end."""
    tried: list[int] = []
    while len(tried) < min(runs, job.size):
        tried.append(choose(job, tried))
    best = np.minimum.accumulate(job.seconds[tried]) / job.seconds.min() - 1
    return np.concatenate([best, np.full(runs - len(best), best[-1])])


# --- jobs ----------------------------------------------------------------------------------------


def blind(readings: Sequence[Reading]) -> Callable[[Reading], Calibration]:
    """The calibration of a row without any timed run of its split group.

    Its spreads and its memory constants are those in force.
    """
    rows = timed_rows(readings)

    @cache
    def everything(group: str) -> Constants:
        return fit_everything(rows, rows.data.groups != group).constants

    @cache
    def known(group: str, family: str) -> tuple[Constants, Nearby | None]:
        return known_without(rows, family, rows.data.groups != group, everything(group))

    def calibration(reading: Reading) -> Calibration:
        constants, nearby = known(reading.run.split_group, time_family(reading.family))
        in_force = calibration_of(reading, folders(None))
        return replace(in_force, constants=constants, nearby=nearby)

    return calibration


def uncalibrated(reading: Reading) -> Calibration:
    """The priors."""
    return Calibration(family=reading.family)


def jobs(readings: Sequence[Reading], calibrated: Callable[[Reading], Calibration]) -> list[Job]:
    """The search groups with enough distinct timed layouts, as `validate` ranks them."""
    groups: dict[str, list[Reading]] = {}
    for reading in readings:
        run = reading.run
        if run.search_group and (run.seconds or run.out_of_memory):
            groups.setdefault(run.search_group, []).append(reading)
    found = (_job(name, rows, calibrated(rows[0])) for name, rows in groups.items())
    return [job for job in found if np.isfinite(job.seconds).sum() >= MIN_LAYOUTS_TO_RANK]


def _job(name: str, readings: Sequence[Reading], chosen: Calibration) -> Job:
    """Rows of one group, identical layouts collapsed to their median."""
    alike: dict[str, list[Reading]] = {}
    for reading in readings:
        alike.setdefault(f"{reading.layout} {reading.run.kernels}", []).append(reading)
    first = [rows[0] for rows in alike.values()]
    predicted = predict_family(first, chosen)
    shares = part_shares(step_time(case(first, chosen.constants)))
    return Job(
        name=name,
        seconds=np.array([_median(rows) for rows in alike.values()]),
        predicted=predicted.seconds,
        fits=predicted.fits_probability,
        shares=np.stack([np.broadcast_to(shares[part], (len(first),)) for part in PARTS]),
        spread=chosen.spread,
    )


def _median(readings: Sequence[Reading]) -> float:
    timed = [s for reading in readings if (s := reading.run.seconds)]
    return float(np.median(timed)) if timed else float("inf")


# --- the page ------------------------------------------------------------------------------------


def regrets(found: Sequence[Job]) -> dict[str, Column]:
    """Regret of every job after every number of runs [jobs, runs], by strategy."""
    return {
        "predicted order": np.array([replay(job, predicted_order) for job in found]),
        "learning": np.array([replay(job, learning) for job in found]),
    }


def random_regret(found: Sequence[Job]) -> Column:
    """The same of random orders, `SEEDS` times as many rows."""
    return np.array([replay(job, at_random(seed)) for seed in range(SEEDS) for job in found])


def table(by_strategy: Mapping[str, Column]) -> Text:
    """A row a strategy and figure, a column a number of runs."""
    rows = []
    for name, regret in by_strategy.items():
        at = [regret[:, k - 1] for k in RUNS]
        within = [percent(float(np.mean(r <= GOAL_REGRET))) for r in at]
        ended = [percent(float(r[np.isfinite(r)].mean())) for r in at]
        rows.append((name, "within 2 % of the best", *within))
        rows.append((name, "mean regret where any run ended", *ended))
    return Text(
        title="Regret against runs spent",
        columns=("strategy", "figure", *(f"{k} run{'s' * (k > 1)}" for k in RUNS)),
        rows=tuple(rows),
    )


def missed(found: Sequence[Job], regret: Column) -> Text:
    """The jobs whose regret after the last run is above the goal."""
    late = [(job, r[-1]) for job, r in zip(found, regret, strict=True) if r[-1] > GOAL_REGRET]
    late.sort(key=lambda pair: -pair[1])
    return Text(
        title=f"Above {GOAL_REGRET:.0%} after {GOAL_RUNS} runs (calibrated, learning)",
        columns=("search group", "layouts", "regret"),
        rows=tuple((job.name, str(job.size), f"{r:.2%}") for job, r in late),
    )


def page() -> str:
    """The whole page."""
    readings, _ = read_files([MEASURED])
    found = jobs(readings, blind(readings))
    calibrated, priors = regrets(found), regrets(jobs(readings, uncalibrated))
    by_strategy = {f"calibrated, {name}": r for name, r in calibrated.items()}
    by_strategy |= {f"priors, {name}": r for name, r in priors.items()}
    by_strategy[f"random, {SEEDS} orders"] = random_regret(found)
    sizes = [job.size for job in found]
    head = (
        f"# Replay of measured search groups, {datetime.now(UTC):%Y-%m}\n\n"
        "    python benchmarks/replay.py\n\n"
        f"{len(found)} search groups of {MEASURED.relative_to(ROOT)} with {sum(sizes)} distinct\n"
        f"layouts, {max(sizes)} in the largest. Calibrated: to the timed runs of all other split\n"
        "groups (memory: to all runs, `profiles/`); priors never saw a run.\n"
        "A layout that runs out of memory is a run spent.\n"
        f"The goal: within {GOAL_REGRET:.0%} of the best in at most {GOAL_RUNS} runs.\n\n"
    )
    return head + table(by_strategy).markdown() + missed(found, calibrated["learning"]).markdown()


if __name__ == "__main__":
    publish("replay", __doc__, page)
