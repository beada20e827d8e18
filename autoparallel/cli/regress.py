"""`autoparallel regress`: pin a plan in the repository, and fail when it no longer holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from autoparallel.cli import common, screen
from autoparallel.cli.regress_profile import Profile, profiled, training_only
from autoparallel.errors import (
    AutoparallelError,
    CatalogError,
    ConfigError,
    LaunchError,
    bad_value,
)

if TYPE_CHECKING:
    from autoparallel.regression import Lock, Samples, Verdict
    from autoparallel.regression.kinds import Today

REGRESSED = 1
SUFFIX = ".lock.yaml"

ProfileFlag: TypeAlias = Annotated[
    bool, typer.Option("--profile", help="Run the pinned layout: short, real, repeated.")
]
LauncherFlag: TypeAlias = Annotated[
    str, typer.Option("--launcher", help="Of --profile.", metavar="NAME")
]
RunsFlag: TypeAlias = Annotated[
    int,
    typer.Option("--runs", help="Of --profile, in fresh processes.", metavar="N", min=1, max=100),
]
StepsFlag: TypeAlias = Annotated[
    int,
    typer.Option(
        "--steps", help="Of --profile: timed steps a run.", metavar="N", min=1, max=10_000
    ),
]

app = typer.Typer(
    help="Pin plans in the repository; fail CI when one gets worse.",
    rich_markup_mode=None,
)


@app.command("pin")
def pin_verb(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or its plan.json.")],
    to: Annotated[
        Path, typer.Option("--to", help=f"The lock to write, NAME{SUFFIX}.", metavar="FILE")
    ],
    rank: Annotated[int, typer.Option("--rank", help="Place in the short list.", metavar="N")] = 1,
    note: Annotated[str, typer.Option("--note", help="Why this layout.", metavar="TEXT")] = "",
    measured: Annotated[
        Path | None,
        typer.Option("--measured", help="Repeated runs of the layout, to pin.", metavar="CSV"),
    ] = None,
    profile: ProfileFlag = False,
    launcher: LauncherFlag = "subprocess",
    runs: RunsFlag = 5,
    steps: StepsFlag = 10,
    model: common.ModelFlag = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="The file that the run was made with.", metavar="FILE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing lock.")] = False,
    quiet: common.QuietFlag = False,
) -> None:
    """Write a lock of a plan's layout."""
    if to.exists() and not force:
        hint = "`regress check FILE --update` pins it again and keeps its note; --force starts over"
        raise bad_value("--to", str(to), "exists", hint)
    if not to.name.endswith((".yaml", ".yml")):
        raise bad_value("--to", str(to), "does not end in .yaml", f"name it NAME{SUFFIX}")
    saved, layout, run_s = _choice(run, rank)
    files = {"model": model, "cluster": cluster}
    how = _how(profile, measured, Profile(where=launcher, runs=runs, steps=steps))
    lock, today = _pinned(saved, layout, to, files, note, measured, how)
    lock.write(to)
    if not quiet:
        screen.show(_pin_lines(to, lock, today, run_s))


def _choice(run: Path, rank: int) -> tuple[Mapping[str, Any], str, float | None]:
    """The request of a plan of either kind, its choice at `rank`, and that one's step time."""
    from autoparallel.envelope import plan_kind
    from autoparallel.plan import load_plan
    from autoparallel.regression.serving import deployment
    from autoparallel.serving_plan import load_serving_plan

    if plan_kind(run) == "serving":
        served = load_serving_plan(run)
        return served.request, deployment(common.entry_of_rank(served, rank, "deployment")), None
    plan = load_plan(run)
    entry = common.entry_of_rank(plan, rank, "layout")
    return plan.request, str(entry.layout), entry.iteration_s


def _pinned(
    saved: Mapping[str, Any],
    layout: str,
    to: Path,
    files: Mapping[str, str | None],
    note: str,
    measured: Path | None,
    how: Profile | None,
) -> tuple[Lock, Today]:
    """The lock of a layout under today's code, and today's answer."""
    from autoparallel.regression import answers
    from autoparallel.regression.pin import pinned_lock

    try:
        ask = answers.asked(saved, to.parent, files)
    except CatalogError as error:
        hint = "if the run was made with a file, give --model FILE"
        raise ConfigError(f"{error}; {hint}") from error
    kind = answers.kind_of_request(saved)
    today = answers.answered(kind, ask, to.parent, {})
    if (now := today.standing(layout, {})) and not now.legal:
        raise bad_value("RUN", layout, f"does not hold today: {now.reasons[0]}", "search again")
    found = _new_samples(kind.name, ask, layout, to.parent, measured, how)
    samples = found[0] if found else None
    lock = pinned_lock(kind, ask, today, layout, versions=_versions(), measured=samples, note=note)
    return lock, today


def _pin_lines(to: Path, lock: Lock, today: Today, run_s: float | None) -> list[screen.Line]:
    """What was pinned, and what of the run is no longer so."""
    from autoparallel.regression.words import figure_text, percent

    figures = lock.pinned.predicted
    told = ", ".join(
        figure_text(name, value)
        for name in lock.kind.worse
        if name in lock.tolerance and (value := figures.get(name)) is not None
    )
    lines = screen.prose(f"{to}: {screen.firm(lock.pinned.layout)}, {told}")
    now = figures.get("iteration_s")
    if run_s and now and abs(now / run_s - 1) > 1e-4:
        text = f"the run said {figure_text('iteration_s', run_s)}; today's constants and code say "
        lines += screen.prose(
            f"{text}{figure_text('iteration_s', now)} ({percent(now / run_s - 1)})", "yellow"
        )
    if today.entries and not today.tied(lock.pinned.layout):
        text = f"today's best is {screen.firm(today.entries[0].layout)}; the lock holds its lead"
        lines += screen.prose(text, "yellow")
    return lines


@app.command("check")
def check_verb(
    locks: Annotated[list[Path], typer.Argument(metavar="LOCK", help=f"Lock files, *{SUFFIX}.")],
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Write JUnit XML.", metavar="FILE")
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", help="Write a summary for a pull request.", metavar="FILE"),
    ] = None,
    json: common.JsonFlag = False,
    measured: Annotated[
        Path | None,
        typer.Option("--measured", help="Repeated runs of the pinned layout.", metavar="CSV"),
    ] = None,
    profile: ProfileFlag = False,
    launcher: LauncherFlag = "subprocess",
    runs: RunsFlag = 5,
    steps: StepsFlag = 10,
    update: Annotated[
        bool, typer.Option("--update", help="Pin again, and print the difference.")
    ] = False,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Hold pinned plans against today's code, catalog and profiles; exit 1 when one regressed."""
    folders = {"config_dir": config_dir, "profiles_dir": profiles_dir}
    how = _how(profile, measured, Profile(where=launcher, runs=runs, steps=steps))
    verdicts: list[Verdict] = []
    errors: dict[str, str] = {}
    repinned: dict[Path, Lock] = {}
    for path in locks:
        try:
            verdict, lock = _checked(path, folders, measured, how, update=update)
        except AutoparallelError as error:
            if error.exit_code == AutoparallelError.exit_code or isinstance(error, LaunchError):
                raise
            errors[str(path)] = str(error)
            continue
        verdicts.append(verdict)
        if lock is not None:
            repinned[path] = lock
    _write_reports(verdicts, errors, junit, markdown)
    for path, lock in repinned.items():
        lock.write(path)
    if json:
        common.print_json(_record(verdicts, errors, repinned))
    else:
        screen.show(_lines(verdicts, repinned, quiet=quiet))
    if errors:
        raise ConfigError("\n  ".join(errors.values()))
    if not update and not all(verdict.passed for verdict in verdicts):
        raise typer.Exit(REGRESSED)


def _checked(
    path: Path,
    folders: Mapping[str, Path | None],
    measured: Path | None,
    how: Profile | None,
    *,
    update: bool,
) -> tuple[Verdict, Lock | None]:
    """The verdict on a lock, and with `update` the lock of today."""
    from autoparallel.regression import answers, checked_lock, load_lock
    from autoparallel.regression.pin import repinned

    lock = load_lock(path)
    try:
        today = answers.answered(lock.kind, lock.request, path.parent, folders)
        layout = lock.pinned.layout
        new = _new_samples(lock.kind.name, lock.request, layout, path.parent, measured, how)
        verdict = checked_lock(lock, today, path=str(path), measured=new)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not update:
        return verdict, None
    samples = new[0] if new else None
    return verdict, repinned(lock, today, verdict, versions=_versions(), measured=samples)


def _how(profile: bool, measured: Path | None, how: Profile) -> Profile | None:
    """How to profile; None when that is not asked."""
    if profile and measured is not None:
        raise ConfigError("--profile: given beside --measured, which has the runs; leave one")
    return how if profile else None


def _new_samples(
    kind: str,
    ask: Mapping[str, Any],
    layout: str,
    folder: Path,
    measured: Path | None,
    how: Profile | None,
) -> list[Samples]:
    """Runs of the layout from a file, or made now; none when neither is asked."""
    if measured is not None:
        return [_samples(measured, kind, ask, layout)]
    if how is None:
        return []
    from autoparallel.regression.training import resolved

    training_only(kind)
    return [profiled(resolved(ask, folder, {}), layout, how)]


def _samples(path: Path, kind: str, ask: Mapping[str, Any], layout: str) -> Samples:
    """The runs of a lock's layout in a CSV."""
    from autoparallel.regression.kinds import kind_of
    from autoparallel.regression.measurements import read_samples
    from autoparallel.regression.training import is_run_of

    return read_samples(path, kind_of(kind), layout, lambda run: is_run_of(run, ask, layout))


def _versions() -> dict[str, str]:
    from autoparallel.provenance import provenance

    found = provenance()
    return {**found.versions, **({"git": found.git} if found.git else {})}


def _write_reports(
    verdicts: Sequence[Verdict],
    errors: Mapping[str, str],
    junit: Path | None,
    markdown: Path | None,
) -> None:
    from autoparallel.files import write_text
    from autoparallel.regression import summary

    if junit is not None:
        write_text(junit.parent, junit.name, summary.junit(verdicts, errors))
    if markdown is not None:
        write_text(markdown.parent, markdown.name, summary.markdown(verdicts, errors))


def _record(
    verdicts: Sequence[Verdict], errors: Mapping[str, str], repinned: Mapping[Path, Lock]
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "regression",
        "passed": not errors and all(verdict.passed for verdict in verdicts),
        "locks": [verdict.to_json() for verdict in verdicts],
        "errors": [{"lock": path, "message": text} for path, text in errors.items()],
        "updated": [str(path) for path in repinned],
    }


def _lines(
    verdicts: Sequence[Verdict], repinned: Mapping[Path, Lock], *, quiet: bool
) -> list[screen.Line]:
    """Every lock's verdict: one line when it holds and nothing changed."""
    from autoparallel.regression.summary import plain_lines

    lines: list[screen.Line] = []
    for verdict in verdicts:
        word, style = ("holds", "green") if verdict.passed else ("REGRESSED", "bold red")
        lines.append([(f"{word}  ", style), (f"{verdict.path}  {verdict.title}", "bold")])
        if verdict.passed and quiet:
            continue
        lines += [line for text in plain_lines(verdict) for line in screen.prose(f"  {text}")]
        if verdict.changes and not quiet:
            n = len(verdict.changes)
            differ = (
                f"{n} numbers, tables or files of code differ"
                if n > 1
                else "1 number, table or file differs"
            )
            lines += screen.prose(f"  {differ} from the pin", "dim")
    for path, lock in repinned.items():
        before = next(v.pinned for v in verdicts if v.path == str(path))
        moved = "" if before == lock.pinned.layout else f", before {screen.firm(before)}"
        text = f"pinned again {path}: {screen.firm(lock.pinned.layout)}{moved}"
        lines += screen.prose(text)
    return lines
