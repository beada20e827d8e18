"""The command line: one small file a verb, and the one place that knows Typer and Rich.

`main` turns whatever happens into an exit code: 0 done, 2 bad input, 3 nothing fits, 4 every trial
failed, 70 our own error, 130 interrupted. Errors go to stderr in one form, never as a bare
traceback. Verbs import what they need when they run, so `--help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import typer

from autoparallel.cli.common import top_level
from autoparallel.cli.outcome import exit_code_of

VERBS = (
    "search",
    "estimate",
    "infer",
    "explain",
    "validate",
    "calibrate",
    "profile",
    "export",
    "sweep",
    "measure-ops",
    "discover",
    "report",
    "regress",
    "catalog",
)


def program(verbs: Sequence[str] = VERBS) -> typer.Typer:
    """The command line with some of the verbs; `VERB_verb` of its file, or its own `app`."""
    app = typer.Typer(
        name="autoparallel",
        help="Find the best parallel layout for a large language model on a cluster.",
        epilog="Settings that have no flag: overrides such as "
        "space.tensor_model_parallel_size=[4,8].",
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(top_level)
    for verb in verbs:
        name = verb.replace("-", "_")
        module = import_module(f"autoparallel.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb)(getattr(module, f"{name}_verb"))
    return app


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    Args:
        argv: Arguments after the program's name; those of the process when None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    asked = arguments[:1] if arguments[0] in VERBS else VERBS
    sys.exit(exit_code_of(typer.main.get_command(program(asked)), arguments))
