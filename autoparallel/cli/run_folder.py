"""The folder of a training run: the files that a search leaves there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from autoparallel.errors import ConfigError

if TYPE_CHECKING:
    from autoparallel.plan import Plan
    from autoparallel.ranking import Ranked, Setting
    from autoparallel.request import TrainingRequest


_OF_A_RUN = (
    "launch/*",
    "measured.csv",
    "pareto.csv",
    "plan.predicted.json",
    "profiles",
    "report.html",
    "report.trace.json",
    "trials",
)


def default_folder(*words: object) -> Path:
    """`runs/<time>-<words>/`, made now: where a run goes that names no folder.

    Runs that start in the same second get folders of their own.
    """
    started = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    usual = Path("runs") / "-".join(map(str, (started, *words)))
    others = (usual.with_name(f"{usual.name}-{n}") for n in count(2))
    return next(folder for folder in chain([usual], others) if _made(folder))


def _made(folder: Path) -> bool:
    """Whether nobody else has the folder; why it cannot be made is said when a file is written."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def save(folder: Path, plan: Plan, result: Ranked, where: Setting, save_all: bool) -> list[str]:
    """Write the files of a run; returns their names in the folder."""
    from autoparallel.candidates_file import write_all, write_kept

    request = where.request
    plan.write(folder)
    request.write_yaml(folder / "request.yaml")
    if save_all:
        from autoparallel.planning import candidates_of
        from autoparallel.ranking import cost_model

        write_all(folder, candidates_of(request, where), cost_model(where))
    else:
        write_kept(folder, result)
    names = ["plan.json", "request.yaml", "candidates.parquet"]
    if plan.entries:
        names += _launch_files(request, plan, folder)
    return names


def report(folder: Path, quiet: bool) -> list[str]:
    """Write the report of a saved run; returns the names of its files."""
    from autoparallel.cli.progress import Progress
    from autoparallel.reporting.report import REPORT_FILE, read_report, write_report

    progress = Progress(shown=not quiet)
    written = write_report(read_report([folder], progress=progress), folder / REPORT_FILE)
    progress.end()
    return [path.name for path in written]


def _launch_files(request: TrainingRequest, plan: Plan, folder: Path) -> list[str]:
    """Files of the best layout that an exporter of the framework can write.

    A plan that nothing can launch is a plan all the same.
    """
    from autoparallel.cli.launch import write_launch_files
    from autoparallel.framework import framework

    first: ConfigError | None = None
    for entry in plan.entries:
        exporters = framework(entry.layout.framework, request.config_path).exporters
        for to in exporters or ("",):
            try:
                written = write_launch_files(request, entry.layout, folder, to)
            except ConfigError as error:
                first = first or error
                continue
            if first is not None:
                typer.echo(f"launch files are of number {entry.rank}, for {to}: {first}", err=True)
            return names_in(folder, written)
    typer.echo(f"no launch files: {first}", err=True)
    return []


def note_older(folder: Path, names: Sequence[str]) -> None:
    """Say what stands in a run's folder beside the files just written: it is of an earlier plan."""
    found = sorted(str(p.relative_to(folder)) for one in _OF_A_RUN for p in folder.glob(one))
    old = [o for o in found if not any(n == o or n.startswith(f"{o}/") for n in names)]
    if old:
        typer.echo(f"{folder} also holds, of an earlier plan: {', '.join(old)}", err=True)


def names_in(folder: Path, written: Iterable[Path]) -> list[str]:
    """Files of a folder by their names there."""
    root = folder.resolve()
    return [str(path.resolve().relative_to(root)) for path in written]
