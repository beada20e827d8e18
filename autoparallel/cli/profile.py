"""`autoparallel profile`: prove a saved plan with short real training jobs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from autoparallel.cli import common, screen
from autoparallel.cli import profile_flags as flags
from autoparallel.cli.launchers import (
    DeviceFlag,
    LauncherFlag,
    RayAddressFlag,
    check_gpus,
    check_launcher,
    concurrent,
    launcher,
)
from autoparallel.cli.outcome import complain, leave_at_once
from autoparallel.cli.profile_settings import campaign_settings, seconds, with_users_command
from autoparallel.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    from autoparallel.campaign import Campaign, Settings
    from autoparallel.campaign.record import Recorded
    from autoparallel.cli.profile_view import Bar
    from autoparallel.plan import Plan
    from autoparallel.profiling.launcher import Launcher
    from autoparallel.request import TrainingRequest


def profile_verb(
    run: flags.RunArgument,
    top: flags.TopFlag = 3,
    budget: flags.BudgetFlag = "30m",
    mode: flags.ModeFlag = "job",
    where: LauncherFlag = "",
    ray_address: RayAddressFlag = "",
    at_once: flags.ConcurrentFlag = None,
    device: DeviceFlag = "auto",
    impl: flags.ImplFlag = "auto",
    steps: flags.StepsFlag = 5,
    trial_timeout: flags.TrialTimeoutFlag = "10m",
    room: flags.RoomFlag = 0,
    command: flags.CommandFlag = "",
    from_logs: flags.FromLogsFlag = None,
    storage: flags.StorageFlag = "",
    warm_start: flags.WarmStartFlag = None,
    site: flags.PlansSiteFlag = None,
    json: common.JsonFlag = False,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Measure a plan's best layouts with real jobs; rank again."""
    plan, request = _loaded(run, site, config_dir, profiles_dir)
    settings = campaign_settings(
        request,
        top=top,
        budget_s=seconds("--budget", budget),
        mode=mode,
        room=room,
        device=device,
        impl=impl,
        steps=steps,
        timeout_s=seconds("--trial-timeout", trial_timeout),
        storage=storage,
        warm_start=tuple(warm_start or ()),
    )
    proof = _Proof(run if run.is_dir() else run.parent, plan, request, as_json=json, quiet=quiet)
    if from_logs is not None:
        if command or where:
            raise ConfigError("--from-logs: starts nothing; leave --command and --launcher out")
        proof.of_logs(settings, from_logs)
        return
    settings = with_users_command(settings, request, command)
    chosen = where or ("subprocess" if command else "ray")
    place = _Where(chosen, ray_address, at_once, request, settings)
    place.check()
    proof.of_trials(settings, place)


def _loaded(
    run: Path, site: str | None, config_dir: Path | None, profiles_dir: Path | None
) -> tuple[Plan, TrainingRequest]:
    """The plan of a run directory, and its request."""
    from autoparallel.plan import load_plan
    from autoparallel.request import TrainingRequest, site_record

    plan = load_plan(run)
    if not plan.entries:
        raise ConfigError(f"{run}: its plan is empty, there is nothing to measure")
    saved = TrainingRequest.from_mapping(plan.request, f"{run} request")
    request = common.moved(saved, {"config_dir": config_dir, "profiles_dir": profiles_dir})
    if site is not None:
        request = replace(request, site=site_record(site, request.config_path))
    return plan, request


@dataclass(frozen=True, slots=True)
class _Where:
    """Where trials run, and how many at a time."""

    name: str
    ray_address: str
    at_once: int | None
    request: TrainingRequest
    settings: Settings

    @property
    def cuda(self) -> bool:
        """Whether ranks take GPUs."""
        return self.settings.base.device == "cuda"

    @property
    def ranks(self) -> int:
        """Of the largest trial."""
        mode = self.settings.mode
        return 1 if mode.name == "rank" else mode.room or self.request.num_gpus

    @property
    def command(self) -> bool:
        """Whether jobs are the user's own command."""
        return bool(self.settings.base.command)

    def check(self) -> None:
        """Refuse what cannot be started, before anything is."""
        check_launcher(self.name, ray_address=self.ray_address, command=self.command)
        if self.name == "subprocess" and self.cuda and not self.command:
            from autoparallel.profiling.seen import gpu_count

            check_gpus(self.ranks, gpu_count())

    def start(self) -> Launcher:
        """The launcher."""
        return launcher(
            self.name,
            site=self.request.site,
            gpus_per_node=self.request.cluster.gpus_per_node,
            ray_address=self.ray_address,
            cuda=self.cuda,
            ranks=self.ranks * (self.at_once or 1),
            command=self.command,
        )

    def concurrent(self, started: Launcher) -> int:
        """Trials at a time."""
        gpus = self.request.num_gpus
        return concurrent(self.at_once, started, cuda=self.cuda, gpus=gpus, ranks=self.ranks)


@dataclass(frozen=True, slots=True)
class _Proof:
    """A run directory that is proved, and how the answer is shown."""

    folder: Path
    plan: Plan
    request: TrainingRequest
    as_json: bool
    quiet: bool

    def of_logs(self, settings: Settings, logs: Path) -> None:
        """By runs that were launched elsewhere."""
        from autoparallel.cli.profile_logs import campaign_of_logs

        folder, quiet = self.folder, self.quiet
        campaign = campaign_of_logs(folder, self.plan, self.request, settings, logs, quiet=quiet)
        self._record(campaign, None)

    def of_trials(self, settings: Settings, where: _Where) -> None:
        """By trials; what they find is written and shown whatever happens."""
        from autoparallel.cli.profile_view import Bar
        from autoparallel.profiling.launcher import ClusterGoneError

        bar = Bar(shown=not self.quiet, budget_s=settings.budget_s)
        try:
            campaign, failure = self._campaign(settings, where, bar)
            bar.end()
            if campaign is None:
                assert failure is not None
                raise failure
            self._record(campaign, failure)
        except ClusterGoneError as gone:
            leave_at_once(gone)

    def _campaign(
        self, settings: Settings, where: _Where, bar: Bar
    ) -> tuple[Campaign | None, BaseException | None]:
        """The campaign as far as it got, and what stopped it."""
        from autoparallel.campaign import Campaign

        campaign = None
        started = None
        since = time.monotonic()
        try:
            bar.note("starting the launcher")
            started = where.start()
            sized = replace(settings, concurrent=where.concurrent(started))
            if sized.concurrent > 1 and not where.cuda and not self.quiet:
                complain("note: trials that run at a time on CPUs slow each other down")
            campaign = Campaign(self.folder, self.plan, self.request, sized, started, bar)
            campaign.run(since)
        except (KeyboardInterrupt, ConfigError, LaunchError) as error:
            return campaign, error
        finally:
            if started is not None:
                started.close()
        return campaign, None

    def _record(self, campaign: Campaign, failure: BaseException | None) -> None:
        """Write what a campaign found and show it; then fail as it failed."""
        from autoparallel.campaign import recorded

        found = recorded(self.folder, self.plan, self.request, campaign.outcome, campaign.catch_up)
        if self.as_json:
            typer.echo(found.plan.text(), nl=False)
        else:
            self._show(found, campaign)
        if failure is not None:
            raise failure
        if not campaign.outcome.study.seen.measured:
            raise LaunchError(_all_failed(campaign))

    def _show(self, found: Recorded, campaign: Campaign) -> None:
        from autoparallel.cli import profile_view

        lines = [] if self.quiet else [*screen.prose(common.first_line(self.request))]
        lines += profile_view.table(found.plan)
        if not self.quiet:
            lines += profile_view.summary(self.folder, found, campaign.outcome)
        screen.show(lines)


def _all_failed(campaign: Campaign) -> str:
    """Every outcome with its first message."""
    trials = campaign.outcome.trials
    words = [f"{t.job.layout}: {t.result.outcome}, {t.result.message}" for t in trials[:5]]
    if words:
        return "\n  ".join([f"trials: all {len(trials)} failed", *words])
    hint = "; give --budget more" if campaign.outcome.out_of_budget else ""
    return f"trials: none was measured; {campaign.outcome.reason}{hint}"
