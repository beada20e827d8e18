"""`autoparallel validate`: predictions against measured rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoparallel.cli import common
from autoparallel.counts import counted
from autoparallel.errors import bad_value

if TYPE_CHECKING:
    from autoparallel.scoreboard import Score

FilesArgument = Annotated[list[Path], typer.Argument(metavar="FILE", help="CSV of measured runs.")]


def validate_verb(
    files: FilesArgument,
    json: common.JsonFlag = False,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Score predictions against measured runs and serving figures."""
    check_files(files)
    _answer(files, as_json=json, config_dir=config_dir, profiles_dir=profiles_dir, quiet=quiet)


def check_files(files: Sequence[Path]) -> None:
    """Every file is there."""
    for file in files:
        if not file.is_file():
            raise bad_value(
                "file", str(file), "is not an existing file", "give a CSV of measured runs"
            )


def _answer(
    files: Sequence[Path],
    *,
    as_json: bool,
    config_dir: Path | None,
    profiles_dir: Path | None,
    quiet: bool,
) -> None:
    """Score, and print the scores."""
    score = _score(files, config_dir, profiles_dir)
    if as_json:
        common.print_json(score.to_json())
        return
    if not quiet:
        typer.echo(_first_line(score))
        for reason, count in score.skipped.items():
            typer.echo(f"skipped {count}: {reason}")
    print_score(score)


def _score(files: Sequence[Path], config_dir: Path | None, profiles_dir: Path | None) -> Score:
    from autoparallel.scoreboard import validate

    return validate(files, config_dir=config_dir, profiles_dir=profiles_dir)


def _first_line(score: Score) -> str:
    about = f", {score.approximated} of them with a related framework's record"
    return (
        f"{score.scored:,} of {counted(score.rows, 'row')} of {', '.join(score.files)} predicted"
        f"{about if score.approximated else ''}"
    )


def print_score(score: Score) -> None:
    """The score on the screen: all rows, split groups, worst cells."""
    from autoparallel.scoreboard import text

    tables = []
    if len(score.table):
        tables += [
            text.headline(score),
            text.figures(score),
            text.groups(score),
            text.worst_cells(score.table),
        ]
    if score.inference is not None and score.serving is not None:
        tables += [
            text.serving_errors(score.inference),
            text.serving_order(score.inference),
            text.serving_worst_cells(score.serving),
        ]
    for table in tables:
        common.print_table(table.title, table.columns, table.rows)
