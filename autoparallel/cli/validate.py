"""`autoparallel validate`: predictions against measured rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from autoparallel.cli import common
from autoparallel.errors import bad_value


def validate_verb(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="CSV of measured runs.")],
    json: common.JsonFlag = False,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Score predictions against measured runs."""
    for file in files:
        if not file.is_file():
            raise bad_value(
                "file", str(file), "is not an existing file", "give a CSV of measured runs"
            )
    _answer(files, as_json=json, config_dir=config_dir, profiles_dir=profiles_dir, quiet=quiet)


def _answer(
    files: Sequence[Path],
    *,
    as_json: bool,
    config_dir: Path | None,
    profiles_dir: Path | None,
    quiet: bool,
) -> None:
    """Score, and print the scores."""
    scores = _scores(files, config_dir, profiles_dir)
    if as_json:
        common.print_json(scores)
        return
    if not quiet:
        typer.echo(f"predictions against {', '.join(map(str, files))}")
    common.print_table("scores", ("score", "value"), list(_flat(scores)))


def _scores(
    files: Sequence[Path], config_dir: Path | None, profiles_dir: Path | None
) -> dict[str, Any]:
    from autoparallel.scoreboard import validate

    return validate(files, config_dir=config_dir, profiles_dir=profiles_dir)


def _flat(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in scores.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
