"""`autoparallel export`: launch files of a saved plan's layout or deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoparallel.cli import common
from autoparallel.errors import bad_value

TORCHRUN = "torchrun"


def export_verb(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or its plan.json.")],
    rank: Annotated[int, typer.Option("--rank", help="Place in the short list.", metavar="N")] = 1,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="Training: megatron-lm, megatron-bridge, torchtitan, fsdp2 or deepspeed [the "
            "first that the layout's framework has]; serving: vllm, sglang, trtllm, dynamo or "
            "kubernetes [all that apply].",
            metavar="NAME",
        ),
    ] = "",
    launcher: Annotated[
        str, typer.Option("--launcher", help="torchrun, slurm, kubernetes or ray.", metavar="NAME")
    ] = TORCHRUN,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write [the run directory].", metavar="DIR"),
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="Entry of site/ [the plan's own].", metavar="NAME")
    ] = None,
    config_dir: common.ConfigDirFlag = None,
    json: common.JsonFlag = False,
) -> None:
    """Write the launch files of one layout or deployment of a plan."""
    from autoparallel.envelope import plan_kind

    if plan_kind(run) == "serving":
        if launcher != TORCHRUN:
            rule = "starts training jobs, and this plan serves"
            raise bad_value("--launcher", launcher, rule, "leave it out, or --to kubernetes")
        _export_serving(run, rank, out, site, to or None, config_dir, json)
    else:
        _export_training(run, rank, out, site, to, launcher, config_dir, json)


def _export_training(
    run: Path,
    rank: int,
    out: Path | None,
    site: str | None,
    to: str,
    launcher: str,
    config_dir: Path | None,
    json: bool,
) -> None:
    """Write the launch files of one layout of a training plan."""
    from dataclasses import replace

    from autoparallel.cli.launch import launch_files, write_files
    from autoparallel.plan import load_plan
    from autoparallel.request import TrainingRequest, site_record

    plan = load_plan(run)
    saved = TrainingRequest.from_mapping(plan.request, f"{run} request")
    request = common.moved(saved, {"config_dir": config_dir})
    if site is not None:
        request = replace(request, site=site_record(site, request.config_path))
    entry = common.entry_of_rank(plan, rank, "layouts")
    name, found = launch_files(request, entry.layout, to, launcher)
    folder = out or (run if run.is_dir() else run.parent)
    written = [str(path) for path in write_files(folder, name, found)]
    if json:
        answer = {
            "layout": str(entry.layout),
            "to": name,
            "launcher": launcher,
            "version": found.version,
            "files": written,
            "unused": list(found.unused),
        }
        common.print_json(answer)
        return
    typer.echo("\n".join(written))
    if found.unused:
        settings = ", ".join(found.unused)
        typer.echo(f"site {request.site.name}: {launcher} has no place for {settings}", err=True)


def _export_serving(
    run: Path,
    rank: int,
    out: Path | None,
    site: str | None,
    target: str | None,
    config_dir: Path | None,
    json: bool,
) -> None:
    """Write the launch files of one deployment of a serving plan."""
    from dataclasses import replace

    from autoparallel.cli.serving_launch import write_serving_files
    from autoparallel.reporting.serving_wording import deployment
    from autoparallel.request import ServingRequest, site_record
    from autoparallel.serving_plan import load_serving_plan

    plan = load_serving_plan(run)
    saved = ServingRequest.from_mapping(plan.request, f"{run} request")
    request = common.moved(saved, {"config_dir": config_dir})
    if site is not None:
        request = replace(request, site=site_record(site, request.config_path))
    entry = common.entry_of_rank(plan, rank, "deployments")
    folder = out or (run if run.is_dir() else run.parent)
    written = [str(path) for path in write_serving_files(request, entry, folder, target)]
    if json:
        common.print_json({"deployment": deployment(entry), "files": written})
    else:
        typer.echo("\n".join(written))
