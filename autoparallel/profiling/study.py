"""Which trial next: Optuna's ask and tell over the candidates, with beliefs as its sampler.

The first trials go to the candidates that are likeliest to be best, one of each mesh before a mesh
gets its second turn, and one of each recomputation on it before that gets one; few steps each.
Those that may still be best then get more steps. A trial that is clearly beaten is stopped from its
partial steps, and one that ran out of memory takes with it what needs more.

Several may be asked for before the first is told. What runs counts as tried, and as measured at
what is believed of it, so that the next turn goes to what it will tell least about; nothing ends on
such a supposition.

The study is kept in Optuna's own storage, so that two drivers can share it: a candidate that the
other one runs is not started twice.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from autoparallel.counts import counted
from autoparallel.errors import ConfigError
from autoparallel.layout import GRANULARITIES, Layout
from autoparallel.profiling.beliefs import (
    CPU_TRIAL_SIGMA,
    TRIAL_SIGMA,
    UNKNOWN_STEP_SIGMA,
    Beliefs,
    Column,
)
from autoparallel.profiling.job import Result
from autoparallel.profiling.launcher import Progress, Watch
from autoparallel.profiling.store import Trial, handed_on, taken_up

TARGET_PROBABILITY = 0.9
"""P(best) from which the search for the best layout ends."""
SURVIVES = 0.05
"""P(best) from which a measured layout is worth more steps."""
MORE_STEPS = 3
BEATEN = 1.25
"""A trial is clearly beaten when even its fastest step is this much slower than the best layout."""
REPORTED = 30
"""Steps of a trial that Optuna is told of at the most: its storage is written for each."""
_OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_TRIALS = "trials"
"""Attribute of Optuna's trials that holds ours, as text."""
_WHOLE = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "micro_batch_size",
)
DISTRIBUTIONS: Mapping[str, BaseDistribution] = {
    **{name: IntDistribution(1, 1_000_000) for name in _WHOLE},
    "zero_stage": IntDistribution(0, 3),
    "sequence_parallel": CategoricalDistribution((False, True)),
    "recompute_granularity": CategoricalDistribution(GRANULARITIES),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layout that may be tried, with what is predicted of it."""

    layout: Layout
    predicted_s: float
    memory_bytes: float
    fits_probability: float

    @property
    def mesh(self) -> tuple[object, ...]:
        """What tells layouts apart first: how the ranks are arranged."""
        x = self.layout
        return (
            x.tensor_model_parallel_size,
            x.pipeline_model_parallel_size,
            x.context_parallel_size,
            x.expert_model_parallel_size,
        )

    @property
    def kind(self) -> tuple[object, ...]:
        """The mesh, with what is recomputed on it."""
        return (*self.mesh, self.layout.recompute_granularity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """What to run next: a candidate, how many timed steps, and Optuna's number for it."""

    candidate: int
    steps: int
    number: int


@dataclass(slots=True, kw_only=True)
class Seen:
    """What trials have told so far.

    Attributes:
        measured: Candidate -> its best-founded result.
        failed: Candidate -> outcome of what did not run.
        pruned: Candidates that need more memory than one that ran out of it.
    """

    measured: dict[int, Result] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    pruned: set[int] = field(default_factory=set)


class Study:
    """Asks and tells.

    Args:
        candidates: Likeliest first.
        beliefs: Of the candidates, in their order.
        storage: Optuna's, as a URL; empty keeps it in memory.
        name: Of the study in its storage: one a request.
        top: Layouts to measure.
        steps: Timed steps of a first trial.
        target_probability: P(best) at which to stop.
        confirmed: P(best) of every candidate by a longer computation, asked before the search ends
            because P(best) is high enough; None where there is none.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        beliefs: Beliefs,
        *,
        storage: str = "",
        name: str = "autoparallel",
        top: int = 3,
        steps: int = 3,
        target_probability: float = TARGET_PROBABILITY,
        confirmed: Callable[[], Column | None] = lambda: None,
    ) -> None:
        self.candidates = tuple(candidates)
        self.seen = Seen()
        self.reason = ""
        self._prior = beliefs
        self._top = top
        self._steps = steps
        self._target = target_probability
        self._confirmed = confirmed
        self._sampler = _Chosen()
        self._asked: dict[int, optuna.Trial] = {}
        self._running: dict[int, int] = {}
        self._more: set[int] = set()
        self._read: set[int] = set()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna.create_study(
            study_name=name,
            storage=storage or None,
            sampler=self._sampler,
            load_if_exists=True,
            direction="minimize",
        )
        self._release_dead()

    @property
    def running(self) -> tuple[int, ...]:
        """Candidates that were asked for and are not told yet, by this driver."""
        return tuple(self._running.values())

    def beliefs(self, *, supposing: bool = False) -> Beliefs:
        """What is believed now; `supposing` that what runs comes out as is believed of it.

        Such a supposition moves no mean and narrows what is related (the "kriging believer" of
        Ginsbourger, Le Riche and Carraro, "Kriging is well-suited to parallelize optimization").
        """
        trials = {i: (r.iteration_s or 0.0, noise(r)) for i, r in self.seen.measured.items()}
        now = self._prior.after(trials)
        if not supposing or not self._running:
            return now
        seconds = now.seconds()
        supposed = {i: (float(seconds[i]), TRIAL_SIGMA) for i in self.running if i not in trials}
        return self._prior.after(trials | supposed)

    def best_probability(self, *, supposing: bool = False) -> Column:
        """P(best) of every candidate now; see `beliefs`."""
        fits = np.array([c.fits_probability for c in self.candidates])
        fits[list(self.seen.measured)] = 1.0
        fits[[*self.seen.failed, *self.seen.pruned]] = 0.0
        return self.beliefs(supposing=supposing).best_probability(fits)

    def best(self) -> int | None:
        """The measured candidate with the shortest step."""
        found = {i: r.iteration_s or np.inf for i, r in self.seen.measured.items()}
        return min(found, key=lambda i: found[i]) if found else None

    def ask(self) -> Pick | None:
        """What to run next; None when there is enough, with the reason in `reason`.

        None without a reason means to ask again once something that runs has been told.
        """
        chosen = self._next()
        if chosen is None:
            return None
        index, steps = chosen
        self._sampler.values = _knobs(self.candidates[index].layout)
        try:
            trial = self._optuna.ask(dict(DISTRIBUTIONS))
            trial.set_user_attr("layout", str(self.candidates[index].layout))
            trial.set_user_attr("owner", f"{socket.gethostname()}:{os.getpid()}")
        except StorageInternalError as error:
            raise ConfigError(
                "--storage: cannot be written; free some space and run again, finished trials are "
                "kept"
            ) from error
        self._asked[trial.number] = trial
        self._running[trial.number] = index
        if steps > self._steps:
            self._more.add(index)
        return Pick(candidate=index, steps=steps, number=trial.number)

    def watch(self, pick: Pick) -> Watch:
        """Stops a trial once it is clearly beaten by the best layout so far, then and now."""

        def beaten(progress: Progress) -> bool:
            if not 2 <= len(progress.step_s) < pick.steps:
                return False
            best = self.best()
            if best is None or best == pick.candidate:
                return False
            limit = self.seen.measured[best].iteration_s or np.inf
            return min(progress.step_s) > BEATEN * limit

        return beaten

    def tell(self, pick: Pick, result: Result, trials: Sequence[Trial] = ()) -> None:
        """Take the result of a turn, and hand its `trials` to whoever shares the study."""
        self._running.pop(pick.number, None)
        self.learn(pick.candidate, result)
        with contextlib.suppress(StorageInternalError):  # the journal has it already
            trial = self._asked[pick.number]
            if trials:
                trial.set_user_attr(_TRIALS, [handed_on(one) for one in trials])
            for step in range(0, len(result.step_s), 1 + len(result.step_s) // REPORTED):
                trial.report(result.step_s[step], step)
            if not result.ok:
                self._optuna.tell(pick.number, state=TrialState.FAIL)
            elif result.stopped_early:
                self._optuna.tell(pick.number, state=TrialState.PRUNED)
            else:
                self._optuna.tell(pick.number, result.iteration_s)

    def learn(self, index: int, result: Result, steps: int = 0) -> None:
        """Take a result without having asked for it, such as one of an earlier run.

        `steps` were asked for when it was made: a layout gets more of them once, by any driver.
        """
        if steps >= MORE_STEPS * self._steps:
            self._more.add(index)
        if result.ok:
            known = self.seen.measured.get(index)
            if known is None or len(known.step_s) <= len(result.step_s):
                self.seen.measured[index] = result
            self.seen.failed.pop(index, None)
            self.seen.pruned.discard(index)
            return
        if index not in self.seen.measured:
            self.seen.failed[index] = result.outcome
        if result.outcome == "out_of_memory":
            needed = self.candidates[index].memory_bytes
            self.seen.pruned |= {
                i
                for i, c in enumerate(self.candidates)
                if c.memory_bytes > needed and i not in self.seen.measured
            }

    def give_up(self, pick: Pick) -> None:
        """A trial that was interrupted counts for nothing."""
        self._running.pop(pick.number, None)
        self._more.discard(pick.candidate)
        with contextlib.suppress(StorageInternalError):
            self._optuna.tell(pick.number, state=TrialState.FAIL)

    def trials_told(self) -> list[Trial]:
        """Trials that any driver has told with its turns, each once."""
        found = []
        for trial in self._optuna.get_trials(deepcopy=False, states=_OVER):
            if trial.number not in self._read:
                self._read.add(trial.number)
                with contextlib.suppress(ConfigError, TypeError, ValueError):
                    found += [taken_up(text) for text in trial.user_attrs.get(_TRIALS, ())]
        return found

    def _next(self) -> tuple[int, int] | None:
        """Candidate and steps: the short list first, then more steps for its survivors."""
        coming = {*self.seen.measured, *self.running}
        if len(self.seen.measured) < self._top:
            open_ = self._open()
            if open_ and len(coming) < self._top:
                return self._likeliest(open_), self._steps
            if self._running:
                return None
            if not self.seen.measured:
                self.reason = "no candidate is left that runs"
                return None
        chances = self.best_probability()
        best = self.best()
        if best is not None and chances[best] >= self._target:
            longer = self._confirmed()
            chances = chances if longer is None else longer
        if best is not None and chances[best] >= self._target:
            self.reason = f"P(best) of {self.candidates[best].layout} is {chances[best]:.2f}"
            return None
        if (again := self._survivor(chances)) is not None:
            return again, MORE_STEPS * self._steps
        if self._running:
            return None
        measured = len(self.seen.measured)
        asked = "asked for" if measured <= self._top else f"where {self._top} were asked for,"
        verb = "is" if measured == 1 else "are"
        self.reason = f"the {counted(measured, 'layout')} {asked} {verb} measured"
        return None

    def _open(self) -> list[int]:
        taken = {*self.seen.measured, *self.seen.failed, *self.seen.pruned, *self._elsewhere()}
        return [i for i in range(len(self.candidates)) if i not in taken]

    def _likeliest(self, open_: Sequence[int]) -> int:
        """Of the meshes and kinds least tried, the candidate with the highest P(best)."""
        known = (*self.seen.measured, *self.seen.failed, *self.running)
        tried = [self.candidates[i] for i in known]
        meshes, kinds = [c.mesh for c in tried], [c.kind for c in tried]
        chances, seconds = self.best_probability(supposing=True), self.beliefs().seconds()

        def place(i: int) -> tuple[float, ...]:
            c = self.candidates[i]
            return meshes.count(c.mesh), kinds.count(c.kind), -chances[i], seconds[i]

        return min(open_, key=place)

    def _survivor(self, chances: Column) -> int | None:
        """The measured layout that may still be best and has the fewest steps behind it.

        Once each: a program of the user's own may run as many steps as it likes.
        """
        elsewhere = self._elsewhere()
        short = [
            i
            for i, result in self.seen.measured.items()
            if len(result.step_s) < MORE_STEPS * self._steps
            and not result.stopped_early
            and i not in self.seen.failed
            and i not in self._more
            and i not in elsewhere
            and chances[i] >= SURVIVES
        ]
        return max(short, key=lambda i: chances[i]) if short else None

    def _elsewhere(self) -> set[int]:
        """Candidates that another driver of this study runs at the moment."""
        running = self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        layouts = {trial.user_attrs.get("layout") for trial in running}
        return {i for i, c in enumerate(self.candidates) if str(c.layout) in layouts}

    def _release_dead(self) -> None:
        """Trials whose driver on this machine is gone will never be told."""
        here = socket.gethostname()
        for trial in self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, _, pid = str(trial.user_attrs.get("owner", "")).rpartition(":")
            if host == here and not _alive(int(pid)):
                self._optuna.tell(trial.number, state=TrialState.FAIL)


class _Chosen(BaseSampler):
    """Hands Optuna the knobs of the candidate that the study has chosen."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return dict(DISTRIBUTIONS)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {name: self.values[name] for name in search_space}

    def sample_independent(
        self, study: Any, trial: Any, param_name: str, param_distribution: Any
    ) -> Any:
        return self.values[param_name]


def noise(result: Result) -> float:
    """Standard deviation of the log of a measured step time, as another trial would find it.

    Two parts: the median of the steps of one trial, from their own spread, and the assumed
    difference between trials of one layout, which more steps of the same trial do not lessen.
    """
    between = CPU_TRIAL_SIGMA if result.device == "cpu" else TRIAL_SIGMA
    steps = len(result.step_s)
    if not result.iteration_s or result.iteration_s_mad is None or steps < 2:
        return math.hypot(between, UNKNOWN_STEP_SIGMA)
    # MAD -> sigma of a step, its bias in few steps (Croux and Rousseeuw 1992), sigma of a median
    spread = 1.4826 * result.iteration_s_mad / result.iteration_s * steps / (steps - 0.8)
    return math.hypot(between, spread * math.sqrt(math.pi / 2 / steps))


def _knobs(layout: Layout) -> dict[str, Any]:
    return {name: getattr(layout, name) for name in DISTRIBUTIONS}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
