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
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="megatron-lm, megatron-bridge, torchtitan, fsdp2 or deepspeed "
            "[the first that the layout's framework has].",
            metavar="NAME",
        ),
    ] = "",
    launcher: Annotated[
        str, typer.Option("--launcher", help="torchrun, slurm, kubernetes or ray.", metavar="NAME")
    ] = "torchrun",
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
    """Write the launch files of one layout of a plan."""
    from dataclasses import replace

    from autoparallel.cli.launch import launch_files, write_files
    from autoparallel.plan import load_plan
    from autoparallel.request import TrainingRequest, site_record

    plan = load_plan(run)
    saved = TrainingRequest.from_mapping(plan.request, f"{run} request")
    request = common.moved(saved, {"config_dir": config_dir})
    if site is not None:
        request = replace(request, site=site_record(site, request.config_path))
    entry = next((entry for entry in plan.entries if entry.rank == rank), None)
    if entry is None:
        raise bad_value("--rank", rank, f"is not in a plan of {len(plan.entries)} layouts")
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
