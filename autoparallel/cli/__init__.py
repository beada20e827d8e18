"""The command line: one small file a verb, and the one place that knows Typer and Rich.

`main` turns whatever happens into an exit code: 0 done, 2 bad input, 3 nothing fits, 4 every trial
failed, 70 our own error, 130 interrupted. Errors go to stderr in one form, never as a bare
traceback. Verbs import what they need when they run, so `--help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from autoparallel.cli import (
    calibrate,
    catalog,
    discover,
    estimate,
    explain,
    export,
    infer,
    measure_ops,
    profile,
    regress,
    report,
    search,
    sweep,
    validate,
)
from autoparallel.cli.common import top_level
from autoparallel.cli.outcome import exit_code_of

app = typer.Typer(
    name="autoparallel",
    help="Find the best parallel layout for a large language model on a cluster.",
    epilog="Settings that have no flag: overrides such as space.tensor_model_parallel_size=[4,8].",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback()(top_level)
app.command("search")(search.search_verb)
app.command("estimate")(estimate.estimate_verb)
app.command("infer")(infer.infer_verb)
app.command("explain")(explain.explain_verb)
app.command("validate")(validate.validate_verb)
app.command("calibrate")(calibrate.calibrate_verb)
app.command("profile")(profile.profile_verb)
app.command("export")(export.export_verb)
app.command("sweep")(sweep.sweep_verb)
app.command("measure-ops")(measure_ops.measure_ops_verb)
app.command("discover")(discover.discover_verb)
app.command("report")(report.report_verb)
app.add_typer(regress.app, name="regress")
app.add_typer(catalog.app, name="catalog")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    Args:
        argv: Arguments after the program's name; those of the process when None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(exit_code_of(typer.main.get_command(app), arguments or ["--help"]))
