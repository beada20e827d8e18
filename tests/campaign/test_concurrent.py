"""Several trials at a time: bounded, told apart, ended together."""

import threading
from dataclasses import replace
from zlib import crc32

import pytest
from test_campaign import BIG, PLAN, REQUEST, Instant, campaign, settings, slow_replicas

from autoparallel.campaign import Campaign
from autoparallel.campaign.modes import Mode
from autoparallel.planning import search
from autoparallel.profiling.launcher import Progress
from autoparallel.profiling.store import Store
from autoparallel.request import training_request


class Slow(Instant):
    """Jobs end after some looks, the later ones sooner; counts what runs at a time."""

    def __init__(self, seconds, looks=6, **more):
        super().__init__(seconds, **more)
        self.looks, self.left, self.most, self.stages, self.folders = looks, {}, 0, 0, []

    def submit(self, job, folder):
        ticket = super().submit(job, folder)
        assert ticket not in self.left, "the same folder twice at a time"
        self.left[ticket] = max(self.looks - len(self.ran), 1)
        self.most = max(self.most, len(self.left))
        alike = sum(self.jobs[other].layout == job.layout for other in self.left)
        self.stages = max(self.stages, alike)
        self.folders.append(ticket)
        return ticket

    def poll(self, ticket):
        self.left[ticket] -= 1
        steps = () if isinstance(self.seconds(self.jobs[ticket]), str) else (0.1,)
        done = self.left[ticket] <= 0
        return Progress(state="done" if done else "running", step_s=steps)

    def cancel(self, ticket):
        super().cancel(ticket)
        self.left.pop(ticket, None)


def layouts(job):
    return 0.2 + 0.01 * (crc32(str(job.layout).encode()) % 7)


def ran(folder, launcher, seen=lambda event: None, plan=PLAN, request=REQUEST, **more):
    campaign = Campaign(folder, plan, request, settings(**more), launcher, seen)
    return campaign, campaign.run()


@pytest.mark.parametrize("concurrent", [1, 2, 3])
def test_as_many_as_allowed_run_and_all_are_kept(tmp_path, concurrent):
    launcher, events = Slow(layouts), []
    _, outcome = ran(tmp_path, launcher, events.append, top=4, concurrent=concurrent)
    assert launcher.most == concurrent
    assert launcher.left == {}
    assert len(outcome.study.seen.measured) == 4
    assert len(Store(tmp_path).trials()) == len(launcher.ran)
    assert max(e.running for e in events) == concurrent
    ends = [e for e in events if e.kind == "end"]
    starts = {e.number: e.layout for e in events if e.kind == "start"}
    assert sorted(e.number for e in ends) == list(range(1, len(ends) + 1))
    assert all(starts[e.number] == e.layout for e in ends)


def test_stages_of_one_layout_run_side_by_side(tmp_path):
    launcher = Slow(lambda job: 0.2, device="cuda")
    base = replace(settings().base, device="cuda", impl="sdpa")
    more = {"mode": Mode(name="rank"), "base": base, "concurrent": 3}
    deep = training_request(model="gpt-175b", num_gpus=64)  # fits with a pipeline only
    ran(tmp_path, launcher, plan=search(deep), request=deep, top=2, **more)
    assert launcher.most == 3
    assert launcher.stages > 1
    assert {job.processes for job in launcher.ran} == {1}


def test_the_same_job_of_two_layouts_runs_once(tmp_path):
    launcher = Slow(lambda job: 0.2, device="cuda")
    base = replace(settings().base, device="cuda", impl="sdpa")
    more = {"mode": Mode(name="proxy", room=8), "base": base, "concurrent": 4}
    _, outcome = ran(tmp_path, launcher, plan=search(BIG), request=BIG, top=8, **more)
    assert len(outcome.study.seen.measured) >= 4
    assert len({job.trial for job in launcher.ran}) == len(launcher.ran)


def test_an_interrupt_ends_everything_and_keeps_what_is_finished(tmp_path):
    launcher = Slow(layouts)

    def seen(event):
        if event.kind == "end":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, launcher, seen, top=4, concurrent=3)
    assert launcher.left == {}
    assert set(launcher.folders) == set(launcher.cancelled)
    assert len(Store(tmp_path).trials()) == 1
    again = Slow(layouts)
    _, outcome = ran(tmp_path, again, top=4, concurrent=3)
    assert len(outcome.study.seen.measured) == 4
    finished = Store(tmp_path).trials()[0].job.trial
    assert finished not in {job.trial for job in again.ran if job.steps == 3}


def test_what_runs_when_there_is_enough_is_called_off(tmp_path):
    """Three failures of one cause end it; what has no step yet is no trial."""
    launcher = Slow(lambda job: "crash", looks=9)
    _, outcome = ran(tmp_path, launcher, top=9, concurrent=5)
    assert "3 trials in a row" in outcome.reason
    assert launcher.left == {}
    kept = [t.result.outcome for t in Store(tmp_path).trials()]
    assert kept == ["crash"] * len(kept)
    assert 3 <= len(kept) <= 5
    assert outcome.study.running == ()


def test_the_budget_ends_all_of_them(tmp_path):
    launcher = Slow(layouts, looks=10_000)
    _, outcome = ran(tmp_path, launcher, top=4, concurrent=3, budget_s=0.3)
    assert "budget" in outcome.reason
    assert launcher.left == {}
    assert len(launcher.ran) == 3


def test_out_of_memory_while_others_run_prunes_what_needs_more(tmp_path):
    failed, later = [], []  # what ran already when it failed is believed when it comes out well

    class First(Slow):
        def submit(self, job, folder):
            known = {each.layout for each in self.ran}
            later.extend([job.layout] * (bool(failed) and job.layout not in known))
            return super().submit(job, folder)

        def collect(self, ticket):
            if not failed:
                failed.append(self.jobs[ticket].layout)
            return super().collect(ticket)

    launcher = First(lambda job: "out_of_memory" if job.layout in failed else 0.3)
    _, outcome = ran(tmp_path, launcher, top=3, concurrent=2)
    needed = {c.layout: c.memory_bytes for c in outcome.study.candidates}
    assert later
    assert all(needed[layout] <= needed[failed[0]] for layout in later)


def test_drivers_that_start_at_once_make_the_study_one_after_the_other(tmp_path):
    store = Store(tmp_path)
    store.prepare()
    made = []
    start = threading.Thread(target=lambda: made.append(campaign(tmp_path, Instant(slow_replicas))))
    with store.alone():
        start.start()
        start.join(timeout=4.0)
        assert made == []
        assert not (tmp_path / "trials" / "study.db").exists()
    start.join()
    assert made
