"""`autoparallel search`: the ranked plan for a model on a cluster."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoparallel.cli import common
from autoparallel.errors import ConfigError, NothingFitsError

if TYPE_CHECKING:
    from autoparallel.layout import Layout
    from autoparallel.plan import Plan, PlanEntry
    from autoparallel.request import TrainingRequest


def search_verb(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides.")
    ] = None,
    model: common.ModelFlag = None,
    gpus: common.GpusFlag = None,
    cluster: common.ClusterFlag = None,
    gpu: common.GpuFlag = None,
    framework: common.FrameworkFlag = None,
    precision: common.PrecisionFlag = None,
    global_batch_size: common.BatchFlag = None,
    seq_length: common.SequenceFlag = None,
    tokens: common.TokensFlag = None,
    space: common.SpaceFlag = None,
    allow: common.AllowFlag = None,
    objective: common.ObjectiveFlag = None,
    baseline: common.BaselineFlag = "",
    top: Annotated[int, typer.Option("--top", help="Layouts to list.", metavar="N")] = 10,
    json: common.JsonFlag = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run.", metavar="DIR")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Write report.html too.")] = False,
    save_all: Annotated[bool, typer.Option("--save-all", help="Save every candidate.")] = False,
    saved: common.FromFlag = None,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Rank the layouts of a model on a cluster."""
    if not 1 <= top <= 100_000:
        raise ConfigError(f"--top: {top} is not in 1 to 100000; the usual is 10")
    request = common.request_from(
        {
            "model": model,
            "num_gpus": gpus,
            "cluster": cluster,
            "gpu": gpu,
            "framework": framework,
            "precision": precision,
            "global_batch_size": global_batch_size,
            "seq_length": seq_length,
            "tokens": tokens,
            "space": space,
            "objective": objective,
            "baseline": baseline,
            "overrides": tuple(overrides or ()),
        },
        allow=allow,
        saved=saved,
        config_dir=config_dir,
        profiles_dir=profiles_dir,
    )
    _answer(request, top=top, as_json=json, out=out, report=report, save_all=save_all, quiet=quiet)


def _answer(
    request: TrainingRequest,
    *,
    top: int,
    as_json: bool,
    out: Path | None,
    report: bool,
    save_all: bool,
    quiet: bool,
) -> None:
    """Search, save the run, print the plan."""
    plan = _ranked_plan(request, top)
    folder = out if out or as_json else _default_folder(request)
    if folder:
        plan.write(folder)
        request.write_yaml(folder / "request.yaml")
        if plan.entries:
            _write_launch_files(request, plan.entries[0].layout, folder)
    if as_json:
        typer.echo(plan.text(), nl=False)
    else:
        typer.echo(common.first_line(request))
        _print_plan(plan)
    if folder and not quiet:
        typer.echo(f"saved in {folder}", err=True)
    if not plan.entries:
        raise NothingFitsError(_nothing_fits(plan))


def _nothing_fits(plan: Plan) -> str:
    reasons = sorted(plan.pruned.items(), key=lambda item: -item[1])[:3]
    why = ", ".join(f"{reason} {count}" for reason, count in reasons)
    return (
        f"plan: none of {plan.considered} candidates is legal and fits ({why}); take more GPUs, "
        "a GPU with more memory, or another space"
    )


def _write_launch_files(request: TrainingRequest, layout: Layout, folder: Path) -> None:
    """The winner's files; a plan that Megatron-LM cannot launch is a plan all the same."""
    from autoparallel.cli.launch import write_launch_files

    try:
        write_launch_files(request, layout, folder)
    except ConfigError as error:
        typer.echo(f"no launch files: {error}", err=True)


def _ranked_plan(request: TrainingRequest, top: int) -> Plan:
    from autoparallel.ranking import search

    return search(request, top=top)


def _default_folder(request: TrainingRequest) -> Path:
    """`runs/<time>-<model>-<gpus>/`."""
    started = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{started}-{request.model.name}-{request.num_gpus}"


def _print_plan(plan: Plan) -> None:
    typer.echo(
        f"{plan.considered} considered, {plan.legal} legal, {plan.evaluated} evaluated, "
        f"{plan.feasible} fitting, in {plan.search_s:.2f} s"
    )
    columns = ("rank", "layout", "step s", "MFU", "memory GiB", "P(fits)", "P(best)", "days", "USD")
    common.print_table("", columns, [_row(entry) for entry in plan.entries])


def _row(entry: PlanEntry) -> list[str]:
    from autoparallel.units import GIB

    gib = None if entry.memory_bytes is None else entry.memory_bytes / GIB
    numbers = (
        (entry.iteration_s, ".3f"),
        (entry.model_flops_utilization, ".1%"),
        (gib, ".1f"),
        (entry.fits_probability, ".2f"),
        (entry.best_probability, ".2f"),
        (entry.days, ".1f"),
        (entry.cost_usd, ",.0f"),
    )
    shown = ["-" if value is None else format(value, form) for value, form in numbers]
    return [str(entry.rank), str(entry.layout), *shown]
