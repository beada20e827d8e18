"""`autoparallel export`: launch files of a saved plan's layout or deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from autoparallel.cli import common
from autoparallel.errors import bad_value

TORCHRUN = "torchrun"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is to be exported, and where to: what plans of both kinds have in common."""

    run: Path
    rank: int
    out: Path | None
    site: str | None
    config_dir: Path | None
    json: bool

    @property
    def folder(self) -> Path:
        """Where the files go: beside the plan unless somewhere else is named."""
        return self.out or (self.run if self.run.is_dir() else self.run.parent)

    def request(self, kind: type[common.Request], saved: Mapping[str, Any]) -> common.Request:
        """The plan's request, with the catalog and the site that are named now."""
        from autoparallel.request import site_record

        request = kind.from_mapping(saved, f"{self.run} request")
        request = common.moved(request, {"config_dir": self.config_dir})
        if self.site is None:
            return request
        return replace(request, site=site_record(self.site, request.config_path))


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

    asked = _Asked(run=run, rank=rank, out=out, site=site, config_dir=config_dir, json=json)
    if plan_kind(run) == "serving":
        if launcher != TORCHRUN:
            rule = "starts training jobs, and this plan serves"
            raise bad_value("--launcher", launcher, rule, "leave it out, or --to kubernetes")
        _export_serving(asked, to or None)
    else:
        _export_training(asked, to, launcher)


def _export_training(asked: _Asked, to: str, launcher: str) -> None:
    """Write the launch files of one layout of a training plan."""
    from autoparallel.cli.launch import launch_files, write_files
    from autoparallel.plan import load_plan
    from autoparallel.request import TrainingRequest

    plan = load_plan(asked.run)
    request = asked.request(TrainingRequest, plan.request)
    entry = common.entry_of_rank(plan, asked.rank, "layout")
    name, found = launch_files(request, entry.layout, to, launcher)
    written = [str(path) for path in write_files(asked.folder, name, found)]
    if asked.json:
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


def _export_serving(asked: _Asked, target: str | None) -> None:
    """Write the launch files of one deployment of a serving plan."""
    from autoparallel.cli.serving_launch import write_serving_files
    from autoparallel.reporting.serving_wording import deployment
    from autoparallel.request import ServingRequest
    from autoparallel.serving_plan import load_serving_plan

    plan = load_serving_plan(asked.run)
    request = asked.request(ServingRequest, plan.request)
    entry = common.entry_of_rank(plan, asked.rank, "deployment")
    written = [str(path) for path in write_serving_files(request, entry, asked.folder, target)]
    if asked.json:
        common.print_json({"deployment": deployment(entry), "files": written})
    else:
        typer.echo("\n".join(written))
