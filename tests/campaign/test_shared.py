"""Drivers that share a folder: each decides on what all have finished, and no plan has less."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from test_campaign import PLAN, REQUEST, Instant, campaign, slow_replicas

from autoparallel.campaign import recorded
from autoparallel.campaign.modes import Mode
from autoparallel.measured.rows import read_runs
from autoparallel.plan import load_plan
from autoparallel.planning import search
from autoparallel.profiling.store import Store

ROOT = Path(__file__).parents[2]
PRETRAIN = ROOT / "tests" / "profiling" / "fake_pretrain.py"
LOG = ROOT / "tests" / "profiling" / "logs" / "recorded" / "megatron_good.log"


def measured(plan):
    return {e.layout for e in plan.entries if e.measured and e.measured.outcome == "ok"}


def test_what_another_driver_has_finished_is_not_run_again(tmp_path):
    launchers = [Instant(slow_replicas), Instant(slow_replicas)]
    first, second = (campaign(tmp_path, launcher) for launcher in launchers)
    first.run()
    outcome = second.run()
    assert launchers[1].ran == []
    assert len(outcome.study.seen.measured) == 3
    assert outcome.study.seen.measured == first.outcome.study.seen.measured


def test_a_failure_that_another_driver_has_just_seen_is_not_tried_again(tmp_path):
    def seconds(job):
        return "crash" if job.layout.tensor_model_parallel_size == 2 else slow_replicas(job)

    launchers = [Instant(seconds), Instant(seconds), Instant(slow_replicas)]
    first, second = (campaign(tmp_path, launcher) for launcher in launchers[:2])
    first.run()
    second.run()
    assert launchers[1].ran == []
    later = campaign(tmp_path, launchers[2], top=4)
    later.run()
    assert any(job.layout.tensor_model_parallel_size == 2 for job in launchers[2].ran)


def test_whoever_writes_last_leaves_the_trials_of_all(tmp_path):
    first = campaign(tmp_path, Instant(slow_replicas), top=1)
    second = campaign(tmp_path, Instant(slow_replicas), top=4)
    first.run()
    second.run()
    many = recorded(tmp_path, PLAN, REQUEST, second.outcome, second.catch_up)
    last = recorded(tmp_path, PLAN, REQUEST, first.outcome, first.catch_up)
    ran = {trial.job.layout for trial in Store(tmp_path).trials()}
    assert len(ran) == 4
    assert measured(many.plan) == measured(last.plan) == ran
    assert measured(load_plan(tmp_path)) == ran
    assert len(read_runs(tmp_path / "measured.csv")) == 4


def test_trials_of_a_driver_that_never_writes_a_plan_are_in_it(tmp_path):
    killed = campaign(tmp_path, Instant(slow_replicas), top=4)
    survivor = campaign(tmp_path, Instant(slow_replicas), top=1)
    survivor.run()
    killed.run()
    found = recorded(tmp_path, PLAN, REQUEST, survivor.outcome, survivor.catch_up)
    ran = {trial.job.layout for trial in Store(tmp_path).trials()}
    assert len(ran) == 4
    assert measured(found.plan) == ran
    assert all(e.corrected for e in found.plan.entries)


def test_what_was_measured_in_another_mode_stays_in_the_plan(tmp_path):
    ranks = campaign(tmp_path, Instant(slow_replicas), top=3, mode=Mode(name="rank"))
    recorded(tmp_path, PLAN, REQUEST, ranks.run())
    jobs = campaign(tmp_path, Instant(slow_replicas), top=1)
    found = recorded(tmp_path, PLAN, REQUEST, jobs.run())
    modes = {e.layout: e.measured.mode for e in found.plan.entries if e.measured}
    assert len(modes) == 3
    assert sorted(modes.values()) == ["job", "rank", "rank"]
    Store(tmp_path).journal.unlink()
    again = campaign(tmp_path, Instant(slow_replicas), top=1)
    assert len(measured(recorded(tmp_path, PLAN, REQUEST, again.run()).plan)) == 1


def test_trials_of_a_warm_start_are_this_folders_too(tmp_path):
    campaign(tmp_path / "old", Instant(slow_replicas)).run()
    campaign(tmp_path / "new", Instant(slow_replicas), warm_start=(tmp_path / "old",))
    kept = Store(tmp_path / "new").trials()
    assert {t.result.trial for t in kept} <= {
        t.result.trial for t in Store(tmp_path / "old").trials()
    }
    assert len({t.job.subject for t in kept}) == 3
    campaign(tmp_path / "new", Instant(slow_replicas), warm_start=(tmp_path / "old",))
    assert Store(tmp_path / "new").trials() == kept


def test_more_steps_are_asked_for_once_by_all_drivers(tmp_path):
    """Of a program that runs as many steps as it likes."""

    class Own(Instant):
        def collect(self, ticket):
            result = super().collect(ticket)
            return replace(result, step_s=result.step_s[:3])

    launchers = [Own(lambda job: 0.2) for _ in range(3)]
    first, second = (campaign(tmp_path, launcher, top=1) for launcher in launchers[:2])
    first.run()
    assert [job.steps for job in launchers[0].ran] == [3, 9]
    second.run()
    campaign(tmp_path, launchers[2], top=1).run()
    assert launchers[1].ran == launchers[2].ran == []


def test_drivers_of_two_folders_share_what_a_study_has(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    launchers = [Instant(slow_replicas) for _ in range(3)]
    first, second = (campaign(tmp_path / x, launchers[0], storage=url) for x in ("a", "b"))
    second._launcher = launchers[1]
    first.run()
    outcome = second.run()
    assert launchers[1].ran == []
    assert outcome.study.seen.measured.keys() == first.outcome.study.seen.measured.keys()
    there = {t.result.trial: t.result.step_s for t in Store(tmp_path / "a").trials()}
    assert {t.result.trial: t.result.step_s for t in Store(tmp_path / "b").trials()} == there
    campaign(tmp_path / "c", launchers[2], storage=url).run()
    assert launchers[2].ran == []
    campaign(tmp_path / "a", launchers[2], storage=url).run()
    assert len(Store(tmp_path / "a").trials()) == len(there)


def test_two_profilers_at_once_leave_one_plan_with_all_of_both(tmp_path):
    """Real processes; the plan is read all the while, and never has less than before."""
    search(REQUEST).write(tmp_path)
    own = f"{sys.executable} {PRETRAIN} {LOG} @{{args_file}}"
    words = ["profile", str(tmp_path), "--command", own, "--steps", "2", "--quiet"]
    drivers = [
        subprocess.Popen(
            [sys.executable, "-m", "autoparallel", *words, "--top", top],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for top in ("2", "5")
    ]
    most = 0
    while any(driver.poll() is None for driver in drivers):
        found = len(measured(load_plan(tmp_path)))
        assert found >= most
        most = found
        time.sleep(0.05)
    assert [(driver.returncode, driver.communicate()[1]) for driver in drivers] == [(0, "")] * 2
    trials = Store(tmp_path).trials()
    assert len({t.job.trial for t in trials}) == len(trials) >= 5
    assert measured(load_plan(tmp_path)) == {t.job.layout for t in trials}
    predicted = json.loads((tmp_path / "plan.predicted.json").read_text())
    assert all(entry["measured"] is None for entry in predicted["plan"])
