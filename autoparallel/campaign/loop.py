"""The loop: ask the study, run the jobs, write the trial down, tell the study.

One thread looks at everything that runs, as many jobs at a time as there is room for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from autoparallel.campaign.attempt import Attempt
from autoparallel.campaign.budget import ENOUGH_STEPS, Budget, cut, shortest_s
from autoparallel.campaign.candidates import beliefs, candidate, entries
from autoparallel.campaign.correction import correction
from autoparallel.campaign.modes import combined, jobs_of
from autoparallel.campaign.outcome import Event, Outcome
from autoparallel.campaign.recall import Recall, known_trials
from autoparallel.campaign.settings import Settings
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout
from autoparallel.plan import Plan, PlanEntry
from autoparallel.profiling.beliefs import Column
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.launcher import POLL_S, Launcher, Progress, Watch, started
from autoparallel.profiling.store import Store, Trial
from autoparallel.profiling.study import Pick, Study
from autoparallel.profiling.worker import limits
from autoparallel.ranking import setting
from autoparallel.request import TrainingRequest

STUDY_FILE = "study.db"
_BUSY = ("OperationalError", "StorageInternalError")
"""SQLAlchemy's and Optuna's names for a storage that another driver is just making or writing."""
_PAUSES_S = (0.2, 1.0)
LOST_IN_A_ROW = 3
"""Trials without a single step for one cause, after which the layouts are not to blame."""


class Campaign:
    """The trials of one run directory.

    Args:
        run: The run directory.
        plan: Its plan.
        request: The plan's request.
        settings: How to run.
        launcher: Where to run.
        seen: Told what goes on.
    """

    def __init__(
        self,
        run: Path,
        plan: Plan,
        request: TrainingRequest,
        settings: Settings,
        launcher: Launcher,
        seen: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._run = run
        self._request = request
        self._settings = settings
        self._launcher = launcher
        self._seen = seen
        self._store = Store(run)
        self._store.prepare()
        known = known_trials(self._store, settings.warm_start)
        found = entries(plan, request, self._runs, sorted({t.job.layout for t in known}, key=str))
        self._budget = Budget(seconds=settings.budget_s)
        self._attempts: list[Attempt] = []
        self._turns = 0
        self._asked_enough = False
        self._lost = Counter[str]()
        self.outcome = Outcome(
            found=found,
            study=self._study(found),
            damaged=self._store.damaged,
        )
        self._recall = Recall(
            request=request,
            store=self._store,
            jobs=lambda entry: self._jobs(entry, 1),
            outcome=self.outcome,
            shared=bool(settings.storage),
        )
        self._recall.begin(known)

    def catch_up(self) -> None:
        """Learn what other drivers of this folder, or of this study, have finished."""
        self._recall.catch_up()

    def run(self, since: float | None = None) -> Outcome:
        """Run trials until there is enough; an interrupt leaves `outcome` as it stands.

        Args:
            since: When the budget began to be spent, monotonic; now when left out.
        """
        self._budget.begin(since)
        try:
            while True:
                if self._budget.spent:
                    self._out_of_budget(f"the budget of {self._budget.seconds:g} s is spent")
                self._begin()
                if not self._attempts:
                    return self.outcome
                if not self._settle():
                    time.sleep(POLL_S)
        finally:
            for attempt in list(self._attempts):
                self._give_up(attempt)

    def _begin(self) -> None:
        """Start what there is room for: jobs of what is being tried, then another candidate."""
        while sum(len(a.underway) for a in self._attempts) < self._settings.concurrent:
            if (found := self._startable()) is not None:
                self._start(*found)
                continue
            if self.outcome.reason or self._asked_enough or not self._turn():
                self._asked_enough = True  # until something has been told
                self.outcome.reason = self.outcome.reason or self.outcome.study.reason
                return

    def _turn(self) -> bool:
        """Give the next candidate its turn; whether there was one that the budget can hold."""
        if (pick := self._ask()) is None:
            return False
        attempt = Attempt(pick=pick, number=self._turns + 1)
        self._attempts.append(attempt)
        invalid = None
        try:
            attempt.jobs = self._jobs(self.outcome.found[pick.candidate], pick.steps)
        except ConfigError as error:
            invalid = _invalid(error)
        if not invalid and not self._holds(attempt):
            self._give_up(attempt)
            return False
        self._turns += 1
        self._tell("start", attempt)
        if invalid:
            self._conclude(attempt, invalid)
        return True

    def _holds(self, attempt: Attempt) -> bool:
        """Whether the budget can hold a turn; if not, and nothing else runs, it is at its end."""
        known = self.outcome.study.seen.measured.get(attempt.pick.candidate)
        steps = max(ENOUGH_STEPS, 1 + len(known.step_s) if known else 0)
        new = sum(self._store.find(job) is None for job in attempt.jobs)
        rounds = math.ceil(new / self._settings.concurrent)
        steps = min(steps, attempt.pick.steps)
        needed = rounds * shortest_s(self.outcome.trials, self._launcher.name, steps)
        left = self._budget.left_s
        if needed > left and len(self._attempts) == 1:
            self._out_of_budget(
                f"{left:.0f} s are left of the budget of {self._budget.seconds:g} s, and no trial "
                f"here comes to {steps} timed steps in less than {needed:.0f} s"
            )
        return needed <= left

    def _out_of_budget(self, reason: str) -> None:
        """Nothing more is started, for want of time."""
        if not self.outcome.reason:
            self.outcome.reason, self.outcome.out_of_budget = reason, True

    def _ask(self) -> Pick | None:
        """The study's next pick, while no other driver of this folder asks for one."""
        with self._store.alone():
            self.catch_up()
            return self.outcome.study.ask()

    def _startable(self) -> tuple[Attempt, int] | None:
        """A job to start, unless the very same runs for another candidate at the moment."""
        if self.outcome.reason:
            return None
        taken = {u.job.trial for a in self._attempts for u in a.underway.values()}
        jobs = ((a, i) for a in self._attempts for i in a.waiting())
        return next(((a, i) for a, i in jobs if a.jobs[i].trial not in taken), None)

    def _start(self, attempt: Attempt, index: int) -> None:
        """One job: the journal's answer, or a trial that is on its way."""
        job = attempt.jobs[index]
        if known := self._store.find(job):
            self._take(attempt, index, known)
            return
        attempt.underway[index] = started(
            self._launcher, job, self._store.trial_folder(job), watch=self._watch(attempt)
        )

    def _settle(self) -> bool:
        """Look at everything that runs; whether something has ended."""
        ended = False
        for attempt in list(self._attempts):
            for index, underway in list(attempt.underway.items()):
                if index not in attempt.underway:  # given up with another job of its turn
                    continue
                result = underway.cut() if self.outcome.reason else underway.look()
                if result is None:
                    continue
                ended = True
                del attempt.underway[index]
                self._record(attempt, index, result)
            if self.outcome.reason and not attempt.underway and attempt in self._attempts:
                self._give_up(attempt)  # the jobs that it waits for are not started any more
        return ended

    def _record(self, attempt: Attempt, index: int, result: Result) -> None:
        """Write down a trial before the study hears of it; one that was cut too soon is none."""
        if self.outcome.reason and result.stopped_early:
            if len(result.step_s) < ENOUGH_STEPS:
                self.outcome.cut.append(attempt.jobs[index].layout)
                self._tell("cut", attempt, step=len(result.step_s))
                self._give_up(attempt)
                return
            result = cut(result, attempt.jobs[index].steps)
        job = attempt.jobs[index]
        result = self._complete(job, result)
        self._store.append(job, result)
        self.outcome.trials.append(Trial(job=job, result=result))
        self._take(attempt, index, result)

    def _take(self, attempt: Attempt, index: int, result: Result) -> None:
        attempt.results[index] = result
        if attempt.done:
            results = [attempt.results[i] for i in range(len(attempt.jobs))]
            entry = self.outcome.found[attempt.pick.candidate]
            self._conclude(attempt, self._whole(entry, attempt.jobs, results))

    def _conclude(self, attempt: Attempt, result: Result) -> None:
        """Tell the study; the same failure of one trial after another is not the layouts'."""
        self._attempts.remove(attempt)
        self._asked_enough = False
        self.outcome.study.tell(attempt.pick, result, self._handed_on(attempt))
        self.outcome.jobs[attempt.pick.candidate] = attempt.jobs
        self._tell("end", attempt, result=result)
        cause = _cause(result)
        self._lost = Counter({cause: self._lost[cause] + 1}) if cause else Counter()
        if self._lost[cause] >= LOST_IN_A_ROW and not self.outcome.reason:
            self.outcome.reason = f"{LOST_IN_A_ROW} trials in a row failed before their first step"

    def _handed_on(self, attempt: Attempt) -> list[Trial]:
        """What a turn leaves to drivers of other folders, where the study may have any."""
        if not self._settings.storage:
            return []
        return [Trial(job=attempt.jobs[i], result=result) for i, result in attempt.results.items()]

    def _give_up(self, attempt: Attempt) -> None:
        """End a candidate's turn as if there had been none."""
        self._attempts.remove(attempt)
        self.outcome.study.give_up(attempt.pick)
        attempt.end()

    def _whole(self, entry: PlanEntry, jobs: Sequence[Job], results: Sequence[Result]) -> Result:
        try:
            return combined(self._request, entry, jobs, results)
        except ConfigError as error:
            return _invalid(error)

    def _complete(self, job: Job, result: Result) -> Result:
        """A trial that was ended before its ranks could say where they ran: as all others do."""
        if result.device:
            return result
        seen = self.outcome.study.seen.measured.values()
        other = next((r for r in seen if r.device), None)
        if other is None:
            return replace(result, device=job.device if job.device != "auto" else "")
        return replace(
            result,
            device=other.device,
            backend=other.backend,
            impl=other.impl,
            versions=other.versions,
        )

    def _watch(self, attempt: Attempt) -> Watch:
        """Show every step; end a beaten trial."""
        beaten = self.outcome.study.watch(attempt.pick)

        def watch(progress: Progress) -> bool:
            if len(progress.step_s) != attempt.shown:
                attempt.shown = len(progress.step_s)
                self._tell("step", attempt, step=attempt.shown)
            return beaten(progress)

        return watch

    def _jobs(self, entry: PlanEntry, steps: int) -> tuple[Job, ...]:
        base = replace(self._settings.base, steps=steps)
        found = jobs_of(self._request, base, entry, self._settings.mode)
        return tuple(self._settings.prepare(job) for job in found)

    def _runs(self, layout: Layout) -> bool:
        """Whether the built-in worker takes a layout; a user's own command takes any."""
        base, request = self._settings.base, self._request
        if base.command:
            return True
        impl = base.impl if base.impl != "auto" else ("local" if base.device == "cpu" else "sdpa")
        with contextlib.suppress(ConfigError):
            job = replace(
                base,
                model=request.model,
                layout=layout,
                num_gpus=request.num_gpus,
                global_batch_size=request.global_batch_size,
                seq_length=request.seq_length,
            )
            limits.refuse(job, cuda=base.device != "cpu", impl=impl)
            return True
        return False

    def _study(self, found: Sequence[PlanEntry]) -> Study:
        spread = setting(self._request).calibration.spread
        believed = beliefs(found, spread)
        name = _study_name(self._request, self._settings)
        path = self._store.folder / STUDY_FILE
        storage = self._settings.storage or f"sqlite:///{path.resolve()}"

        def made() -> Study:
            return Study(
                [candidate(entry) for entry in found],
                believed,
                storage=storage,
                name=name,
                top=self._settings.top,
                steps=self._settings.base.steps,
                confirmed=self._confirmed,
            )

        with self._store.alone():  # two drivers that start at once would both make its tables
            try:
                return _patiently(made)
            except Exception as error:
                if self._settings.storage:
                    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                    raise ConfigError(
                        f"--storage: {self._settings.storage!r} cannot be used ({reason})"
                    ) from error
                path.replace(path.with_suffix(".damaged"))  # the journal has everything in it
                return made()

    def _confirmed(self) -> Column | None:
        """P(best) as the plan will have it, constants fitted to the trials included."""
        found = correction(self._run, self._request, self.outcome)
        return None if found is None else found.best_probability

    def _tell(
        self, kind: str, attempt: Attempt, *, step: int = 0, result: Result | None = None
    ) -> None:
        study = self.outcome.study
        best = study.best()
        self._seen(
            Event(
                kind=kind,
                layout=study.candidates[attempt.pick.candidate].layout,
                number=attempt.number,
                running=len(self._attempts),
                done=len(study.seen.measured),
                top=self._settings.top,
                step=step,
                steps=attempt.pick.steps,
                best=None if best is None else (study.candidates[best].layout, _seconds(study)),
                left_s=self._budget.left_s,
                result=result,
            )
        )


def _patiently(made: Callable[[], Study]) -> Study:
    """A study in a storage that other drivers, of other folders too, may be at as well."""
    for pause_s in _PAUSES_S:
        try:
            return made()
        except Exception as error:
            if type(error).__name__ not in _BUSY:
                raise
            time.sleep(pause_s)
    return made()


def _cause(result: Result) -> str:
    """What kept a trial from its first step, as far as others may share it; empty when nothing."""
    unmet = result.outcome == "timeout" and result.message.startswith("rank ")  # not the deadline
    if result.step_s or not (unmet or result.outcome in ("crash", "invalid")):
        return ""
    if result.outcome != "invalid":
        return result.outcome
    return re.sub(r"^rank \d+: ", "", result.message)  # which rank was first to say so is chance


def _seconds(study: Study) -> float:
    best = study.best()
    return 0.0 if best is None else study.seen.measured[best].iteration_s or 0.0


def _invalid(error: ConfigError) -> Result:
    return Result(trial="", outcome="invalid", message=str(error))


def _study_name(request: TrainingRequest, settings: Settings) -> str:
    """One study a question: trials on a CPU and on GPUs are never mixed."""
    base = settings.base
    asked = [request.to_mapping(), settings.mode.name, base.device, base.impl, list(base.command)]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    return f"{request.model.name}-{request.num_gpus}-{digest}"
