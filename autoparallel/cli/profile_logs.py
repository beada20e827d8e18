"""`autoparallel profile RUN --from-logs DIR`: runs launched elsewhere, in place of trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoparallel.cli.outcome import complain
from autoparallel.counts import counted
from autoparallel.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autoparallel.campaign import Campaign, Settings
    from autoparallel.plan import Plan
    from autoparallel.profiling.from_logs import Found
    from autoparallel.profiling.job import Job
    from autoparallel.request import TrainingRequest

COMMAND = ("launched", "elsewhere")


def campaign_of_logs(
    run: Path, plan: Plan, request: TrainingRequest, settings: Settings, logs: Path, *, quiet: bool
) -> Campaign:
    """A campaign that knows what the logs say and has nothing left to run.

    Raises:
        ConfigError: a folder without logs.
        LaunchError: no log is of a layout of the plan.
    """
    from autoparallel.campaign import Campaign
    from autoparallel.campaign.modes import jobs_of
    from autoparallel.profiling.command import CommandLauncher
    from autoparallel.profiling.from_logs import read_runs
    from autoparallel.profiling.store import Store

    settings = replace(settings, base=replace(settings.base, command=COMMAND, environment={}))
    jobs = [job for e in plan.entries for job in jobs_of(request, settings.base, e, settings.mode)]
    jobs = [job for job in jobs if job.mode == "job" and _has_arguments(job)]
    found = read_runs(logs, jobs, exported)
    _say(found, quiet=quiet)
    store = Store(run)
    kept = [(trial.job.subject, trial.result) for trial in store.trials()]
    for one in found:
        if one.job and one.result and (one.job.subject, one.result) not in kept:
            store.append(one.job, one.result)
    campaign = Campaign(run, plan, request, settings, CommandLauncher())
    known = sum(one.job is not None for one in found)
    verb = "is" if known == 1 or len(found) == 1 else "are"
    campaign.outcome.reason = (
        f"{known} of {counted(len(found), 'run')} in {logs} {verb} of this plan"
    )
    if not known:
        raise LaunchError(f"--from-logs: {campaign.outcome.reason}; {found[0].why}")
    return campaign


def exported(job: Job) -> tuple[str, ...]:
    """The arguments that a job's exported files hold."""
    from autoparallel.exporting import megatron_lm

    sizes: Any = (job.num_gpus, job.global_batch_size, job.seq_length)
    return megatron_lm.arguments(job.model, job.layout, *sizes)


def _has_arguments(job: Job) -> bool:
    """Whether Megatron-LM has flags for a layout; one without was never launched by them."""
    try:
        exported(job)
    except ConfigError:
        return False
    return True


def _say(found: Sequence[Found], *, quiet: bool) -> None:
    """Which logs are of no layout, and why."""
    for one in found:
        if one.job is None and not quiet:
            complain(f"{one.logs[0]}: {one.why}")
