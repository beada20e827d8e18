"""`autoparallel calibrate`: measured rows in, calibrated constants out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from autoparallel.cli import common
from autoparallel.cli.progress import Progress
from autoparallel.cli.validate import FilesArgument, check_files
from autoparallel.errors import bad_value


def calibrate_verb(
    files: FilesArgument,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of profiles to write into.", metavar="DIR")
    ] = Path("profiles"),
    leave_one_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-out/--no-leave-one-out",
            help="Predict every split group from the others, for honest intervals.",
        ),
    ] = True,
    workers: Annotated[
        int, typer.Option("--workers", help="Processes.", metavar="N", min=1, max=256)
    ] = 2,
    json: common.JsonFlag = False,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Fit the constants to measured runs and serving figures."""
    check_files(files)
    _make_folder(out)
    progress = Progress(shown=not quiet)
    how = _How(out, config_dir, profiles_dir, leave_one_out, workers, progress)
    answer = _answer(files, how)
    progress.end()
    if json:
        common.print_json(answer)
    else:
        _print(answer)


@dataclass(frozen=True, slots=True)
class _How:
    """What the options say of either kind of fit."""

    out: Path
    config_dir: Path | None
    profiles_dir: Path | None
    leave_one_out: bool
    workers: int
    progress: Progress


def _make_folder(out: Path) -> None:
    """Find out before the work, not after it, that the folder cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made a folder ({error.strerror})"
        raise bad_value("--out", str(out), reason, "name another one") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise bad_value("--out", str(out), "cannot be written to", "name another folder")


def _answer(files: Sequence[Path], how: _How) -> dict[str, Any]:
    """Calibrate, write the profiles and say what they are worth."""
    from autoparallel.measured.serving_rows import is_serving_file
    from autoparallel.strict_json import plain

    served = [file for file in files if is_serving_file(file)]
    trained = [file for file in files if file not in served]
    answer: dict[str, Any] = {"files": [str(file) for file in files], "skipped": {}, "written": []}
    for paths, calibrate in ((trained, _trained), (served, _served)):
        if paths:
            found = calibrate(paths, how)
            skipped, written = found.pop("skipped"), found.pop("written")
            answer |= found
            answer["skipped"] = {**answer["skipped"], **skipped}
            answer["written"] = [*answer["written"], *written]
    return {name: plain(name, value) for name, value in answer.items()}


def _trained(files: Sequence[Path], how: _How) -> dict[str, Any]:
    """Constants of training."""
    from autoparallel.calibration.run import run, write
    from autoparallel.scoreboard.calibrated import errors_in_force, summary
    from autoparallel.scoreboard.score import read_files

    readings, skipped = read_files(files, how.config_dir)
    timed = sum(1 for r in readings if r.run.seconds)
    source = f"{', '.join(file.name for file in files)}: {timed} timed rows"
    outcome = run(
        readings,
        source,
        leave_one_out=how.leave_one_out,
        workers=how.workers,
        progress=how.progress,
    )
    found = summary(outcome, errors_in_force(outcome.rows, how.profiles_dir))
    written = [str(path) for path in write(how.out, outcome)]
    return {"skipped": dict(skipped), **found, "written": written}


def _served(files: Sequence[Path], how: _How) -> dict[str, Any]:
    """Constants of serving."""
    from autoparallel.calibration.serving_cases import predicted, understood_serving
    from autoparallel.calibration.serving_run import run_serving, write_profiles
    from autoparallel.measured.serving_rows import read_serving_runs
    from autoparallel.scoreboard.serving import calibrated_block

    runs = [run for file in files for run in read_serving_runs(file)]
    readings, skipped = understood_serving(runs, how.config_dir, how.profiles_dir)
    source = f"{', '.join(file.name for file in files)}: {len(readings)} figures"
    found = run_serving(
        readings,
        source,
        leave_one_out=how.leave_one_out,
        workers=how.workers,
        progress=how.progress,
    )
    block = calibrated_block(found, predicted(readings))
    written = [str(path) for path in write_profiles(how.out, found)]
    return {"skipped": dict(skipped), "serving": block, "written": written}


def _print(answer: Mapping[str, Any]) -> None:
    from autoparallel.scoreboard import calibrated, text

    tables = []
    if "by_group" in answer:
        tables += [calibrated.determined(answer), calibrated.group_errors(answer)]
        if answer["left_out"]:
            tables.append(calibrated.left_out_line(answer))
    if "serving" in answer:
        tables.append(text.serving_calibrated(answer["serving"]))
    for table in tables:
        common.print_table(table.title, table.columns, table.rows)
    for problem in calibrated.worse_groups(answer) if "by_group" in answer else ():
        typer.echo(problem)
    for reason, count in answer["skipped"].items():
        typer.echo(f"skipped {count}: {reason}")
    for path in answer["written"]:
        typer.echo(f"wrote {path}")
