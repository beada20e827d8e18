"""What the journal holds, brought into what a campaign knows.

A campaign recalls once what earlier runs measured, and then, whenever it decides or writes, what
other drivers of the same folder, or of the same study, have finished meanwhile. So all of them
decide on the same trials, and whoever writes last leaves all of them in the plan.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from autoparallel.campaign.budget import was_cut
from autoparallel.campaign.modes import combined
from autoparallel.campaign.outcome import Outcome
from autoparallel.errors import ConfigError
from autoparallel.plan import PlanEntry
from autoparallel.profiling.job import Job
from autoparallel.profiling.store import FOLDER, Store, Trial
from autoparallel.request import TrainingRequest

AGAIN = ("crash", "timeout")
"""Outcomes of an earlier run that are worth another try."""
_Name: TypeAlias = tuple[str, str, float]


def known_trials(store: Store, warm_start: Sequence[Path]) -> list[Trial]:
    """Trials of this directory and of those it starts from.

    Raises:
        ConfigError: a directory that has never been profiled.
    """
    found = store.trials()
    for run in warm_start:
        if not (run / FOLDER).is_dir():
            raise ConfigError(f"--warm-start: {str(run)!r} has no trials/; give a profiled run")
        found += Store(run).trials()
    return found


@dataclass(slots=True, kw_only=True)
class Recall:
    """Takes finished trials of a campaign's candidates into its outcome, each once.

    Attributes:
        jobs: The jobs that stand for a candidate.
        shared: Whether drivers of other folders may have the same study.
        subjects: Candidate -> what its jobs measure; without those that have no such jobs.
        earlier: Trials, by `_name`, that were finished before the campaign began.
        read: Trials of the journal that were looked at.
    """

    request: TrainingRequest
    store: Store
    jobs: Callable[[PlanEntry], tuple[Job, ...]]
    outcome: Outcome
    shared: bool = False
    subjects: dict[int, tuple[str, ...]] = field(default_factory=dict)
    earlier: frozenset[_Name] = frozenset()
    read: int = 0

    def begin(self, known: Sequence[Trial]) -> None:
        """Learn of earlier runs; what other folders gave is written down in this one too."""
        for index, entry in enumerate(self.outcome.found):
            with contextlib.suppress(ConfigError):
                self.subjects[index] = tuple(job.subject for job in self.jobs(entry))
        if self.shared:
            known = [*known, *self.outcome.study.trials_told()]
        self.earlier = frozenset(_name(trial) for trial in known)
        self._learn_of(known)
        with self.store.alone():
            self._keep(self.outcome.trials)

    def catch_up(self) -> None:
        """Learn what has been finished since, by whoever shares the folder or the study."""
        if self.shared:
            self._keep(self.outcome.study.trials_told())
        found = self.store.trials()
        if len(found) != self.read:
            self.read = len(found)
            self.outcome.damaged = self.store.damaged
            self._learn_of(found)

    def _keep(self, trials: Sequence[Trial]) -> None:
        """Write trials that came from elsewhere into this folder's journal, unless they are."""
        own = {_name(trial) for trial in self.store.trials()} if trials else frozenset()
        for trial in trials:
            if _name(trial) not in own:
                self.store.append(trial.job, trial.result)

    def _learn_of(self, known: Sequence[Trial]) -> None:
        by_subject: dict[str, list[Trial]] = {}
        for trial in known:
            by_subject.setdefault(trial.job.subject, []).append(trial)
        for index, subjects in self.subjects.items():
            found = [by_subject.get(subject, []) for subject in subjects]
            if all(found):
                with contextlib.suppress(ConfigError):
                    self._learn(index, [_fullest(trials) for trials in found])

    def _learn(self, index: int, trials: Sequence[Trial]) -> None:
        """Take the trials of one candidate, unless they are known already."""
        taken = {_name(trial) for trial in self.outcome.trials}
        fresh = [trial for trial in trials if _name(trial) not in taken]
        if not fresh or any(self._worth_another_try(trial) for trial in trials):
            return
        results = [trial.result for trial in trials]
        jobs = tuple(trial.job for trial in trials)
        whole = combined(self.request, self.outcome.found[index], jobs, results)
        steps = max(0 if was_cut(trial.result) else trial.job.steps for trial in trials)
        self.outcome.study.learn(index, whole, steps)
        self.outcome.jobs[index] = jobs
        self.outcome.trials += fresh

    def _worth_another_try(self, trial: Trial) -> bool:
        return trial.result.outcome in AGAIN and _name(trial) in self.earlier


def _fullest(trials: Sequence[Trial]) -> Trial:
    """The trial that ran with the most steps; the newest of those that say as much."""
    return max(reversed(trials), key=lambda t: (t.result.ok, len(t.result.step_s)))


def _name(trial: Trial) -> _Name:
    """What tells a trial from every other, those of the same job among them."""
    return trial.result.trial, trial.result.started_at, trial.result.wall_s
