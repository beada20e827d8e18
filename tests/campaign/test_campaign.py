"""The prove loop with a launcher that needs no machine: what is run, kept, corrected, re-ranked."""

from dataclasses import replace

import pytest

from autoparallel.campaign import Campaign, Settings, recorded
from autoparallel.campaign.loop import _cause
from autoparallel.campaign.modes import Mode, combined, jobs_of
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout
from autoparallel.measured.rows import read_runs
from autoparallel.plan import load_plan
from autoparallel.planning import estimate, search
from autoparallel.profiling.beliefs import CPU_TRIAL_SIGMA
from autoparallel.profiling.job import Job, RankReport, Result, timing
from autoparallel.profiling.launcher import Progress
from autoparallel.profiling.study import TARGET_PROBABILITY
from autoparallel.request import training_request
from autoparallel.scoreboard import validate


class Instant:
    """A launcher whose jobs end at once, with the step times that a function of the layout says."""

    name = "instant"

    def __init__(self, seconds, device="cpu"):
        self.seconds, self.device = seconds, device
        self.ran, self.cancelled, self.jobs = [], [], {}

    def submit(self, job, folder):
        self.ran.append(job)
        self.jobs[str(folder)] = job
        return str(folder)

    def poll(self, ticket):
        return Progress(state="done")

    def collect(self, ticket):
        job = self.jobs[ticket]
        found = self.seconds(job)
        if isinstance(found, str):
            return Result(trial=job.trial, outcome=found, message=f"made {found}", mode=job.mode)
        steps = tuple(found * (1 + 0.01 * (i % 3 - 1)) for i in range(job.steps))
        return Result(
            trial=job.trial,
            outcome="ok",
            mode=job.mode,
            device=self.device,
            impl="local",
            peak_memory_bytes=3e9,
            memory_kind="rss" if self.device == "cpu" else "allocated",
            ranks=(RankReport(rank=job.rank or 0),),
            **timing(job, steps),
        )

    def cancel(self, ticket):
        self.cancelled.append(ticket)

    def close(self): ...


REQUEST = training_request(model="gpt-tiny", num_gpus=2, cluster="local-cpu")
PLAN = search(REQUEST)


def settings(**more):
    base = Job(
        model=REQUEST.model,
        layout=Layout(),
        num_gpus=1,
        global_batch_size=REQUEST.global_batch_size,
        seq_length=REQUEST.seq_length,
        device="cpu",
        steps=3,
    )
    usual = {"top": 3, "budget_s": 600.0, "mode": Mode(name="job"), "base": base}
    return Settings(**{**usual, **more})


def slow_replicas(job):
    """Replicas take six times as long as predicted, everything else twice as long."""
    tp, pp = job.layout.tensor_model_parallel_size, job.layout.pipeline_model_parallel_size
    return 0.5 if tp * pp == 1 else 0.2


def campaign(folder, launcher, plan=PLAN, request=REQUEST, **more):
    return Campaign(folder, plan, request, settings(**more), launcher)


def test_measures_corrects_and_ranks_again(tmp_path):
    launcher = Instant(slow_replicas)
    PLAN.write(tmp_path)
    outcome = campaign(tmp_path, launcher).run()
    found = recorded(tmp_path, PLAN, REQUEST, outcome)
    kinds = {str(job.layout).split(" mbs")[0] for job in launcher.ran}
    assert kinds >= {"tp1 pp1", "tp2 pp1", "tp1 pp2 vpp2"}
    plan = load_plan(tmp_path)
    assert plan == found.plan
    first = plan.entries[0]
    assert first.layout.model_parallel_size == 2
    assert first.measured.iteration_s == pytest.approx(0.2, rel=0.02)
    assert first.corrected.iteration_s == pytest.approx(0.2, rel=2 * CPU_TRIAL_SIGMA)
    before = next(e for e in PLAN.entries if e.layout == first.layout)
    assert first.iteration_s == before.iteration_s
    assert PLAN.entries[0].layout != first.layout
    assert load_plan(tmp_path / "plan.predicted.json") == PLAN
    assert [e.rank for e in plan.entries] == list(range(1, len(plan.entries) + 1))
    untried = [e for e in plan.entries if e.measured is None]
    assert untried
    assert all(e.corrected.iteration_s > 1.2 * e.iteration_s for e in untried)


def test_the_prediction_that_is_kept_is_that_of_the_plan_measured_last(tmp_path):
    older = replace(PLAN, search_s=9.0)
    for plan in (older, PLAN):
        outcome = campaign(tmp_path, Instant(slow_replicas), plan=plan).run()
        proved = recorded(tmp_path, plan, REQUEST, outcome).plan
        assert load_plan(tmp_path / "plan.predicted.json") == plan
    recorded(tmp_path, proved, REQUEST, outcome)
    assert load_plan(tmp_path / "plan.predicted.json") == PLAN


def test_the_rows_are_the_scoreboards_and_the_constants_are_used(tmp_path):
    outcome = campaign(tmp_path, Instant(slow_replicas), top=4).run()
    recorded(tmp_path, PLAN, REQUEST, outcome)
    score = validate([tmp_path / "measured.csv"])
    fitted = validate([tmp_path / "measured.csv"], profiles_dir=tmp_path / "profiles")
    assert score.scored == score.rows >= 4
    assert fitted.time["median_ape"] < score.time["median_ape"]


def test_the_chance_that_ends_a_campaign_is_the_plans(tmp_path):
    def seconds(job):
        return 0.05 if job.layout.pipeline_model_parallel_size > 1 else 0.2

    outcome = campaign(tmp_path, Instant(seconds)).run()
    first = recorded(tmp_path, PLAN, REQUEST, outcome).plan.entries[0]
    chance = first.corrected.best_probability
    assert outcome.reason == f"P(best) of {first.layout} is {chance:.2f}"
    assert chance >= TARGET_PROBABILITY


def test_finished_trials_are_never_run_again(tmp_path):
    first = Instant(slow_replicas)
    campaign(tmp_path, first).run()
    second = Instant(slow_replicas)
    outcome = campaign(tmp_path, second).run()
    assert second.ran == []
    assert len(outcome.study.seen.measured) == 3
    elsewhere = Instant(slow_replicas)
    campaign(tmp_path / "new", elsewhere, warm_start=(tmp_path,)).run()
    assert elsewhere.ran == []


def test_an_interrupt_keeps_what_was_finished(tmp_path):
    launcher = Instant(slow_replicas)
    count = 0

    def seen(event):
        nonlocal count
        count += event.kind == "start"
        if count == 2:
            raise KeyboardInterrupt

    stopped = Campaign(tmp_path, PLAN, REQUEST, settings(), launcher, seen)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    found = recorded(tmp_path, PLAN, REQUEST, stopped.outcome)
    assert sum(e.measured is not None for e in found.plan.entries) == 1
    rest = Instant(slow_replicas)
    campaign(tmp_path, rest).run()
    assert rest.ran[0].layout != launcher.ran[0].layout


def test_failures_are_kept_shown_and_ranked_last(tmp_path):
    def seconds(job):
        return "out_of_memory" if job.layout.tensor_model_parallel_size == 2 else 0.1

    outcome = campaign(tmp_path, Instant(seconds), top=3).run()
    found = recorded(tmp_path, PLAN, REQUEST, outcome)
    failed = [e for e in found.plan.entries if e.measured and e.measured.outcome != "ok"]
    assert [e.measured.outcome for e in failed] == ["out_of_memory"]
    assert found.plan.entries[-1] == failed[0]
    assert failed[0].corrected.fits_probability == 0.0
    assert [run.out_of_memory for run in read_runs(tmp_path / "measured.csv")].count(1) == 1


def test_a_launcher_that_only_crashes_is_given_up(tmp_path):
    launcher = Instant(lambda job: "crash")
    outcome = campaign(tmp_path, launcher).run()
    assert len(launcher.ran) == 3
    assert "in a row" in outcome.reason


def test_a_machine_that_can_run_nothing_is_given_up(tmp_path):
    launcher = Instant(lambda job: "invalid")
    outcome = campaign(tmp_path, launcher).run()
    assert len(launcher.ran) == 3
    assert "in a row" in outcome.reason


def test_a_spent_budget_ends_it_and_says_so(tmp_path):
    outcome = campaign(tmp_path, Instant(slow_replicas), budget_s=1e-9).run()
    assert "budget" in outcome.reason


def test_a_cpu_says_nothing_of_gpus(tmp_path):
    request = training_request(model="gpt-tiny", num_gpus=2, cluster="dgx-h100")
    plan = search(request)
    outcome = campaign(tmp_path, Instant(slow_replicas), plan, request).run()
    found = recorded(tmp_path, plan, request, outcome)
    assert not found.corrects
    assert [e.layout for e in found.plan.entries][: len(plan.entries)] == [
        e.layout for e in plan.entries
    ]
    assert all(e.corrected is None for e in found.plan.entries)
    assert any(e.measured for e in found.plan.entries)
    assert not (tmp_path / "profiles").exists()


# --- modes ---------------------------------------------------------------------------------------

BIG = training_request(model="llama-3.1-8b", num_gpus=64, cluster="dgx-h100")
LAYOUT = "tp2 pp4 mbs1 sp zero1"


def entry(request=BIG, layout=LAYOUT):
    return estimate(request, Layout.parse(layout)).entry


def test_a_proxy_has_fewer_replicas_then_fewer_stages_and_is_carried_over():
    base = settings().base
    wide = jobs_of(BIG, base, entry(), Mode(name="proxy", room=8))[0]
    assert (wide.num_gpus, wide.model.num_layers) == (8, 32)
    small = jobs_of(BIG, base, entry(), Mode(name="proxy", room=4))[0]
    assert (small.num_gpus, small.model.num_layers) == (4, 16)
    assert small.layout.pipeline_model_parallel_size == 2
    steps = BIG.global_batch_size // 8
    assert small.global_batch_size == steps
    shown = estimate(
        replace(BIG, model=small.model, num_gpus=4, global_batch_size=small.global_batch_size),
        small.layout,
    ).entry
    result = Result(trial="x", outcome="ok", mode="proxy", **timing(small, (shown.iteration_s,)))
    whole = combined(BIG, entry(), [small], [result])
    assert whole.iteration_s == pytest.approx(entry().iteration_s)
    assert "extrapolated from 4 ranks" in whole.deviations[-1]


def test_a_proxy_without_room_is_refused():
    with pytest.raises(ConfigError, match="rank"):
        jobs_of(
            BIG,
            settings().base,
            entry(layout="tp8 pp1 mbs1 sp zero1"),
            Mode(name="proxy", room=4),
        )


def test_ranks_stand_for_first_middle_and_last_stage():
    jobs = jobs_of(BIG, settings().base, entry(), Mode(name="rank"))
    assert [job.rank for job in jobs] == [0, 16, 48]
    assert {job.processes for job in jobs} == {1}
    alone = jobs_of(BIG, settings().base, entry(layout="tp2 pp1 mbs1 sp zero1"), Mode(name="rank"))
    assert [job.rank for job in alone] == [0]
    parts = entry().parts
    busy = sum(parts[n] for n in ("compute_s", "recompute_s", "optimizer_s", "launch_s"))
    results = [
        Result(
            trial="x",
            outcome="ok",
            mode="rank",
            peak_memory_bytes=1e9 * (3 - i),
            **timing(job, (busy * share,)),
        )
        for i, (job, share) in enumerate(zip(jobs, (0.5, 1.0, 0.8), strict=True))
    ]
    whole = combined(BIG, entry(), jobs, results)
    assert whole.iteration_s == pytest.approx(entry().iteration_s)
    assert whole.peak_memory_bytes == 3e9


def test_ranks_correct_the_plan_without_a_step_time_of_their_own(tmp_path):
    launcher = Instant(slow_replicas)
    outcome = campaign(tmp_path, launcher, mode=Mode(name="rank"), top=2).run()
    found = recorded(tmp_path, PLAN, REQUEST, outcome)
    assert {job.mode for job in launcher.ran} == {"rank"}
    assert found.corrects
    assert not (tmp_path / "profiles").exists()
    assert all(e.corrected for e in found.plan.entries)


def test_one_failed_rank_fails_the_layout():
    jobs = jobs_of(BIG, settings().base, entry(), Mode(name="rank"))
    results = [Result(trial="x", outcome="ok", **timing(j, (1.0,))) for j in jobs]
    results[1] = Result(trial="x", outcome="out_of_memory")
    assert combined(BIG, entry(), jobs, results).outcome == "out_of_memory"


def test_the_same_complaint_of_another_rank_is_one_cause():
    said = [
        _cause(Result(trial="", outcome="invalid", message=f"rank {rank}: torch sees no GPU"))
        for rank in (0, 1)
    ]
    assert said[0] == said[1] == "torch sees no GPU"
