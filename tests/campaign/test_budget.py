"""The end of the budget: what runs is cut and blamed for nothing, what cannot end is not begun."""

import time
from dataclasses import replace

import pytest
from test_campaign import PLAN, REQUEST, Instant, campaign, slow_replicas

from autoparallel.campaign import recorded
from autoparallel.campaign.attempt import Attempt
from autoparallel.campaign.budget import ENOUGH_STEPS, cut, shortest_s
from autoparallel.profiling.job import Result, timing
from autoparallel.profiling.launcher import Progress
from autoparallel.profiling.store import Store, Trial


class Endless(Instant):
    """The second job runs on until the budget is spent, which the first look at it makes so.

    Args:
        steps: Timed steps it comes to.
        ends: Outcome with which it ends in that very moment; empty when it does not.
    """

    def __init__(self, steps, ends=""):
        super().__init__(slow_replicas)
        self.steps, self.ends, self.budget = (0.2,) * steps, ends, None

    def poll(self, ticket):
        if self.jobs[ticket] == self.ran[0]:
            return Progress(state="done")
        spent, self.budget.ends = self.budget.spent, 0.0
        return Progress(state="done" if spent and self.ends else "running", step_s=self.steps)

    def collect(self, ticket):
        job = self.jobs[ticket]
        if job == self.ran[0]:
            return super().collect(ticket)
        outcome, words = (self.ends, "made") if self.ends else ("crash", "only 0 ranks ended")
        found = timing(job, self.steps)
        return Result(trial=job.trial, outcome=outcome, message=words, mode=job.mode, **found)


def ran(folder, launcher):
    events = []
    proof = campaign(folder, launcher)
    proof._seen, launcher.budget = events.append, proof._budget
    return proof.run(), events


@pytest.mark.parametrize("steps", [0, 1])
def test_a_trial_cut_before_it_has_measured_anything_counts_for_nothing(tmp_path, steps):
    launcher = Endless(steps)
    outcome, events = ran(tmp_path, launcher)
    over = launcher.ran[1]
    assert str(tmp_path / "trials" / over.trial) in launcher.cancelled
    assert outcome.reason == "the budget of 600 s is spent"
    assert outcome.out_of_budget
    assert outcome.cut == [over.layout]
    assert outcome.study.seen.failed == {}
    assert [(e.layout, e.step) for e in events if e.kind == "cut"] == [(over.layout, steps)]
    assert [t.job for t in Store(tmp_path).trials()] == launcher.ran[:1]
    plan = recorded(tmp_path, PLAN, REQUEST, outcome).plan
    assert [e.layout for e in plan.entries if e.measured] == [launcher.ran[0].layout]
    again = Instant(slow_replicas)
    campaign(tmp_path, again).run()
    assert again.ran[0].layout == over.layout


def test_a_trial_cut_with_enough_steps_is_measured_and_not_called_slow(tmp_path):
    launcher = Endless(ENOUGH_STEPS)
    outcome, _ = ran(tmp_path, launcher)
    trial = Store(tmp_path).trials()[1]
    assert (trial.result.outcome, trial.result.stopped_early) == ("ok", False)
    assert trial.result.deviations == ("cut by the campaign's end after 2 of 3 timed steps",)
    assert trial.result.device == "cpu"
    assert outcome.cut == []
    assert len(outcome.study.seen.measured) == 2
    again = Instant(lambda job: 0.2)
    campaign(tmp_path, again).run()
    assert trial.job.layout in {job.layout for job in again.ran if job.steps > 3}


def test_a_longer_turn_that_was_cut_is_still_to_come(tmp_path):
    launcher = Instant(lambda job: 0.2)
    proof = campaign(tmp_path, launcher, top=1)
    proof.run()
    (short, long), store = Store(tmp_path).trials(), Store(tmp_path / "cut")
    store.append(short.job, short.result)
    few = replace(long.result, **timing(long.job, long.result.step_s[:5]))
    store.append(long.job, cut(few, long.job.steps))
    again = Instant(lambda job: 0.2)
    campaign(tmp_path / "cut", again, top=1).run()
    assert again.ran == [long.job]


def test_a_failure_at_the_end_of_the_budget_is_still_a_failure(tmp_path):
    outcome, _ = ran(tmp_path, Endless(0, ends="out_of_memory"))
    assert "budget" in outcome.reason
    assert list(outcome.study.seen.failed.values()) == ["out_of_memory"]


def test_the_budget_counts_from_when_it_is_said_to(tmp_path):
    launcher = Instant(slow_replicas)
    outcome = campaign(tmp_path, launcher, budget_s=30.0).run(time.monotonic() - 31)
    assert launcher.ran == []
    assert outcome.reason == "the budget of 30 s is spent"


def earlier(folder, launcher, wall_s, layout):
    """A finished trial of an earlier run, which took its time to come to its first step."""
    job = replace(campaign(folder, launcher)._jobs(PLAN.entries[0], 3)[0], layout=layout)
    steps = timing(job, (0.2,) * 3)
    result = Result(
        trial=job.trial, outcome="ok", launcher=launcher.name, device="cpu", wall_s=wall_s, **steps
    )
    Store(folder).append(job, result)
    return Trial(job=job, result=result)


def test_a_trial_that_the_budget_cannot_hold_is_not_begun(tmp_path):
    launcher = Instant(slow_replicas)
    trial = earlier(tmp_path, launcher, 100.6, PLAN.entries[0].layout)
    assert shortest_s([trial], "instant", 2) == pytest.approx(100.4)
    assert shortest_s([trial], "another", 2) == 0.0
    outcome = campaign(tmp_path, launcher, budget_s=100.0).run()
    assert launcher.ran == []
    assert "of the budget of 100 s" in outcome.reason
    assert "2 timed steps in less than 100 s" in outcome.reason
    assert outcome.out_of_budget
    assert outcome.study.running == ()
    campaign(tmp_path, launcher, budget_s=110.0).run()
    assert launcher.ran != []


def test_what_the_journal_answers_needs_no_time(tmp_path):
    launcher = Instant(slow_replicas)
    one = earlier(tmp_path, launcher, 100.6, PLAN.entries[0].layout)
    proof = campaign(tmp_path, launcher)
    proof._budget.begin(time.monotonic() - 590)
    pick = proof._ask()
    job = proof._jobs(proof.outcome.found[pick.candidate], pick.steps)[0]
    turn = Attempt(pick=pick, number=1, jobs=(job,))
    assert not proof._holds(turn)
    Store(tmp_path).append(job, replace(one.result, trial=job.trial))
    assert proof._holds(turn)
