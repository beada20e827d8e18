"""`autoparallel profile`: prove a saved plan with short real training jobs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoparallel.cli import common, screen
from autoparallel.cli.launchers import LauncherFlag, RayAddressFlag, concurrent, launcher
from autoparallel.cli.outcome import complain, leave_at_once
from autoparallel.errors import ConfigError, LaunchError, bad_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from autoparallel.campaign import Campaign, Settings
    from autoparallel.campaign.record import Recorded
    from autoparallel.plan import Plan
    from autoparallel.profiling.job import Job
    from autoparallel.profiling.launcher import Launcher
    from autoparallel.request import TrainingRequest

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def profile_verb(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a search.")],
    top: Annotated[
        int, typer.Option("--top", help="Layouts to measure.", metavar="K", min=1, max=1000)
    ] = 3,
    budget: Annotated[
        str, typer.Option("--budget", help="Wall time, such as 90s, 30m, 2h.", metavar="TIME")
    ] = "30m",
    mode: Annotated[
        str, typer.Option("--mode", help="job, proxy or rank.", metavar="MODE")
    ] = "job",
    where: LauncherFlag = "",
    ray_address: RayAddressFlag = "",
    at_once: Annotated[
        int | None,
        typer.Option(
            "--concurrent",
            help="Trials at a time [what the GPUs hold; 1 on CPUs].",
            metavar="N",
            min=1,
            max=1000,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu or cuda.", metavar="NAME")
    ] = "auto",
    impl: Annotated[
        str, typer.Option("--impl", help="Kernels: auto, te, sdpa or local.", metavar="NAME")
    ] = "auto",
    steps: Annotated[
        int,
        typer.Option(
            "--steps", help="Timed steps of a first trial.", metavar="N", min=1, max=10_000
        ),
    ] = 5,
    trial_timeout: Annotated[
        str, typer.Option("--trial-timeout", help="Longest a trial may run.", metavar="TIME")
    ] = "10m",
    room: Annotated[
        int, typer.Option("--room", help="Ranks at hand, for --mode proxy.", metavar="N", min=0)
    ] = 0,
    command: Annotated[
        str,
        typer.Option("--command", help="Your own job, ending in @{args_file}.", metavar="COMMAND"),
    ] = "",
    from_logs: Annotated[
        Path | None,
        typer.Option(
            "--from-logs", help="Read runs launched elsewhere; start none.", metavar="DIR"
        ),
    ] = None,
    storage: Annotated[
        str, typer.Option("--storage", help="Optuna storage [a file in RUN].", metavar="URL")
    ] = "",
    warm_start: Annotated[
        list[Path] | None,
        typer.Option("--warm-start", help="Reuse the trials of another run.", metavar="RUN"),
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="Entry of site/ [the plan's own].", metavar="NAME")
    ] = None,
    json: common.JsonFlag = False,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Measure a plan's best layouts with real jobs; rank again."""
    plan, request = _loaded(run, site, config_dir, profiles_dir)
    settings = _settings(
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
    folder = run if run.is_dir() else run.parent
    if from_logs is not None:
        from autoparallel.cli.profile_logs import campaign_of_logs

        if command or where:
            raise ConfigError("--from-logs: starts nothing; leave --command and --launcher out")
        campaign = campaign_of_logs(folder, plan, request, settings, from_logs, quiet=quiet)
        _record(folder, plan, request, campaign, None, as_json=json, quiet=quiet)
        return
    settings = _with_command(settings, request, command)
    chosen = where or ("subprocess" if command else "ray")
    cuda = settings.base.device == "cuda"
    ranks = 1 if mode == "rank" else room or request.num_gpus

    def place() -> Launcher:
        return launcher(
            chosen,
            site=request.site,
            gpus_per_node=request.cluster.gpus_per_node,
            ray_address=ray_address,
            cuda=cuda,
            ranks=ranks * (at_once or 1),
            command=bool(command),
        )

    def sized(started: Launcher) -> Settings:
        gpus = request.num_gpus
        found = concurrent(at_once, started, cuda=cuda, gpus=gpus, ranks=ranks)
        if found > 1 and not cuda and not quiet:
            complain("note: trials that run at a time on CPUs slow each other down")
        return replace(settings, concurrent=found)

    from dataclasses import replace

    from autoparallel.profiling.launcher import ClusterGoneError

    try:
        _answer(folder, plan, request, settings.budget_s, sized, place, as_json=json, quiet=quiet)
    except ClusterGoneError as gone:
        leave_at_once(gone)


def seconds(flag: str, text: str) -> float:
    """A time such as `90s`, `30m` or `2h`."""
    match = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)([smh]?)", text.strip())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if value <= 0:
        raise bad_value(flag, text, "is not a time above 0", "write 90s, 30m or 2h")
    return value


def _loaded(
    run: Path, site: str | None, config_dir: Path | None, profiles_dir: Path | None
) -> tuple[Plan, TrainingRequest]:
    """The plan of a run directory, and its request."""
    from dataclasses import replace

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


def _settings(
    request: TrainingRequest,
    *,
    top: int,
    budget_s: float,
    mode: str,
    room: int,
    device: str,
    impl: str,
    steps: int,
    timeout_s: float,
    storage: str,
    warm_start: tuple[Path, ...],
) -> Settings:
    from autoparallel.campaign import Settings
    from autoparallel.campaign.modes import Mode
    from autoparallel.layout import Layout
    from autoparallel.profiling.job import DEVICES, IMPLS, MODES, Job

    for flag, value, known in (
        ("--mode", mode, MODES),
        ("--device", device, DEVICES),
        ("--impl", impl, IMPLS),
    ):
        if value not in known:
            raise bad_value(flag, value, f"is not one of {', '.join(known)}")
    on_cpu = request.cluster.gpu.generation == "cpu"
    base = Job(
        model=request.model,
        layout=Layout(),
        num_gpus=1,
        global_batch_size=request.global_batch_size,
        seq_length=request.seq_length,
        device=device if device != "auto" else ("cpu" if on_cpu else "cuda"),
        impl=impl,
        steps=steps,
        warmup_steps=1 if device == "cpu" or on_cpu else 3,
        timeout_s=timeout_s,
        environment=dict(request.site.environment),
    )
    return Settings(
        top=top,
        budget_s=budget_s,
        mode=Mode(name=mode, room=room),
        base=base,
        storage=storage,
        warm_start=warm_start,
    )


def _with_command(settings: Settings, request: TrainingRequest, command: str) -> Settings:
    """Make every job the user's own command, fed with the exported arguments."""
    if not command:
        return settings
    from dataclasses import replace

    from autoparallel.exporting import Run, arguments, environment
    from autoparallel.profiling.command import command_words, with_command

    words = command_words(command)
    generation = request.cluster.gpu.generation

    def exported(job: Job) -> tuple[str, ...]:
        length = Run(train_iters=job.warmup_steps + job.steps)
        sizes = (job.num_gpus, job.global_batch_size, job.seq_length)
        made_up = ("--fake-process-group",) if job.mode == "rank" else ()
        return (*arguments(job.model, job.layout, *sizes, length), *made_up)

    def prepare(job: Job) -> Job:
        own = environment(job.layout, generation)
        return with_command(job, words, exported, own)

    return replace(settings, base=replace(settings.base, command=words), prepare=prepare)


def _answer(
    folder: Path,
    plan: Plan,
    request: TrainingRequest,
    budget_s: float,
    sized: Callable[[Launcher], Settings],
    place: Callable[[], Launcher],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the campaign, write what it found whatever happened, and show it."""
    from autoparallel.cli.profile_view import Bar

    bar = Bar(shown=not quiet, budget_s=budget_s)
    campaign, failure = _campaign(folder, plan, request, sized, place, bar)
    bar.end()
    if campaign is None:
        assert failure is not None
        raise failure
    _record(folder, plan, request, campaign, failure, as_json=as_json, quiet=quiet)


def _record(
    folder: Path,
    plan: Plan,
    request: TrainingRequest,
    campaign: Campaign,
    failure: BaseException | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write what a campaign found and show it; then fail as it failed."""
    from autoparallel.campaign import recorded

    found = recorded(folder, plan, request, campaign.outcome)
    if as_json:
        typer.echo(found.plan.text(), nl=False)
    else:
        _show(folder, found, campaign, request, quiet=quiet)
    if failure is not None:
        raise failure
    if not campaign.outcome.study.seen.measured:
        raise LaunchError(_all_failed(campaign))


def _campaign(
    folder: Path,
    plan: Plan,
    request: TrainingRequest,
    sized: Callable[[Launcher], Settings],
    place: Callable[[], Launcher],
    bar: Any,
) -> tuple[Campaign | None, BaseException | None]:
    """The campaign as far as it got, and what stopped it."""
    from autoparallel.campaign import Campaign

    campaign = None
    started = None
    try:
        bar.note("starting the launcher")
        started = place()
        campaign = Campaign(folder, plan, request, sized(started), started, bar)
        campaign.run()
    except (KeyboardInterrupt, ConfigError, LaunchError) as error:
        return campaign, error
    finally:
        if started is not None:
            started.close()
    return campaign, None


def _show(
    folder: Path, found: Recorded, campaign: Campaign, request: TrainingRequest, *, quiet: bool
) -> None:
    from autoparallel.cli import profile_view

    lines = [] if quiet else [*screen.prose(common.first_line(request))]
    lines += profile_view.table(found.plan)
    if not quiet:
        lines += profile_view.summary(folder, found, campaign.outcome)
    screen.show(lines)


def _all_failed(campaign: Campaign) -> str:
    """Every outcome with its first message."""
    trials = campaign.outcome.trials
    words = [f"{t.job.layout}: {t.result.outcome}, {t.result.message}" for t in trials[:5]]
    return (
        "\n  ".join([f"trials: all {len(trials)} failed", *words])
        if words
        else (f"trials: none ran; {campaign.outcome.reason}")
    )
