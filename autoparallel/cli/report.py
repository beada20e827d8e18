"""`autoparallel report`: saved runs as one HTML page that opens from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoparallel.cli import common
from autoparallel.cli.progress import Progress

RunsArgument = Annotated[
    list[Path], typer.Argument(metavar="RUN", help="Run directories, or their plan.json.")
]


def report_verb(
    runs: RunsArgument,
    baseline: Annotated[
        str,
        typer.Option(
            "--baseline",
            help="What you run now: a layout, a launch script, a Bridge YAML, a Megatron log.",
            metavar="LAYOUT|FILE",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The page [report.html in the run].", metavar="FILE"),
    ] = None,
    json: common.JsonFlag = False,
    quiet: common.QuietFlag = False,
) -> None:
    """Write one HTML page about a run, or several compared."""
    from autoparallel.reporting.report import REPORT_FILE, read_report, write_report

    progress = Progress(shown=not quiet)
    report = read_report(runs, baseline, progress)
    progress("writing")
    page = out or (_folder(runs[0]) if len(runs) == 1 else Path()) / REPORT_FILE
    written = write_report(report, page)
    progress.end()
    if json:
        common.print_json(
            {
                "decision": report.page.decision,
                "figures": [drawing.name for drawing in report.page.drawings],
                "files": [str(path) for path in written],
            }
        )
    else:
        typer.echo(report.page.decision)
        typer.echo("\n".join(map(str, written)))


def _folder(run: Path) -> Path:
    return run if run.is_dir() else run.parent
