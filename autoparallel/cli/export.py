"""`autoparallel export`: launch files of a saved plan's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoparallel.cli import common
from autoparallel.errors import bad_value


def export_verb(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or its plan.json.")],
    rank: Annotated[int, typer.Option("--rank", help="Place in the short list.", metavar="N")] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write [the run directory].", metavar="DIR"),
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="Entry of site/ [the plan's own].", metavar="NAME")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Of a serving plan: vllm, sglang, trtllm, dynamo or kubernetes [all that apply].",
            metavar="TARGET",
        ),
    ] = None,
    config_dir: common.ConfigDirFlag = None,
    json: common.JsonFlag = False,
) -> None:
    """Write the launch files of one layout or deployment of a plan."""
    from dataclasses import replace

    from autoparallel.cli.launch import write_launch_files
    from autoparallel.plan import load_plan
    from autoparallel.request import TrainingRequest, site_record
    from autoparallel.serving_plan import plan_kind

    if plan_kind(run) == "serving":
        _export_serving(run, rank, out, site, target, config_dir, json)
        return
    if target is not None:
        raise bad_value("--to", target, "is for serving plans", "leave it for a training plan")

    plan = load_plan(run)
    saved = TrainingRequest.from_mapping(plan.request, f"{run} request")
    request = common.moved(saved, {"config_dir": config_dir})
    if site is not None:
        request = replace(request, site=site_record(site, request.config_path))
    entry = next((entry for entry in plan.entries if entry.rank == rank), None)
    if entry is None:
        raise bad_value("--rank", rank, f"is not in a plan of {len(plan.entries)} layouts")
    folder = out or (run if run.is_dir() else run.parent)
    written = [str(path) for path in write_launch_files(request, entry.layout, folder)]
    if json:
        common.print_json({"layout": str(entry.layout), "files": written})
    else:
        typer.echo("\n".join(written))


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
    from autoparallel.cli.serving_view import deployment
    from autoparallel.request import ServingRequest, site_record
    from autoparallel.serving_plan import load_serving_plan

    plan = load_serving_plan(run)
    saved = ServingRequest.from_mapping(plan.request, f"{run} request")
    request = common.moved(saved, {"config_dir": config_dir})
    if site is not None:
        own = Path(request.config_dir) if request.config_dir else None
        request = replace(request, site=site_record(site, own))
    entry = next((entry for entry in plan.entries if entry.rank == rank), None)
    if entry is None:
        raise bad_value("--rank", rank, f"is not in a plan of {len(plan.entries)} deployments")
    folder = out or (run if run.is_dir() else run.parent)
    written = [str(path) for path in write_serving_files(request, entry, folder, target)]
    if json:
        common.print_json({"deployment": deployment(entry), "files": written})
    else:
        typer.echo("\n".join(written))
