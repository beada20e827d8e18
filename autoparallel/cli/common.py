"""What the verbs share: their flags, the request these make, and how answers are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import typer

from autoparallel.counts import counted
from autoparallel.errors import ConfigError, bad_value

if TYPE_CHECKING:
    from rich.table import Table

    from autoparallel.request import ServingRequest, TrainingRequest

Request = TypeVar("Request", "TrainingRequest", "ServingRequest")


def own_folder(name: str, text: str) -> Path | None:
    """A folder of the user's in front of the shipped data, if it is one."""
    from autoparallel.request import build

    return build.own_folder(name, text)


def folder(text: str) -> Path:
    """A folder to write into; `--out "$RUN"` with nothing in RUN is not the current one."""
    if not text:
        raise ConfigError("--out: '' names no folder; give one, such as runs/first, or . for here")
    return Path(text)


THOUSANDS = "kmbt"
"""Suffixes of a count, each a thousand times the one before."""


def count(text: str) -> float:
    """A number of tokens, as `15e12` or as answers write it, `15T`."""
    word = text.strip().lower()
    power = THOUSANDS.find(word[-1:]) + 1 if word else 0
    try:
        return float(word[:-1] if power else word) * 1000.0**power
    except ValueError:
        rule = "is not a number, alone or with K, M, B or T behind it"
        raise bad_value("--tokens", text, rule, "give 15e12 or 15T") from None


OverridesArgument: TypeAlias = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides.")
]
ModelFlag: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model", help="Catalog name, or a Hugging Face config.json.", metavar="NAME|PATH"
    ),
]
OutFlag: TypeAlias = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run.", metavar="DIR", parser=folder)
]
GpusFlag: TypeAlias = Annotated[
    int | None, typer.Option("--gpus", help="Number of GPUs.", metavar="N")
]
NodesFlag: TypeAlias = Annotated[
    int | None,
    typer.Option("--nodes", help="Number of whole nodes, in place of --gpus.", metavar="N"),
]
ClusterFlag: TypeAlias = Annotated[
    str | None, typer.Option("--cluster", help="Catalog name or file [dgx-h100].", metavar="NAME")
]
GpuFlag: TypeAlias = Annotated[
    str | None, typer.Option("--gpu", help="GPU in place of the cluster's own.", metavar="NAME")
]
FrameworkFlag: TypeAlias = Annotated[
    str | None,
    typer.Option("--framework", help="Training framework [megatron-core].", metavar="NAME"),
]
PrecisionFlag: TypeAlias = Annotated[
    str | None,
    typer.Option("--precision", help="Of compute: bf16, fp8, mxfp8, ... [bf16].", metavar="NAME"),
]
BatchFlag: TypeAlias = Annotated[
    int | None,
    typer.Option("--global-batch-size", help="Sequences a step [the model's own].", metavar="N"),
]
SequenceFlag: TypeAlias = Annotated[
    int | None,
    typer.Option("--seq-length", help="Tokens a sequence [the model's own].", metavar="N"),
]
TokensFlag: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--tokens",
        help="Tokens of the whole run, such as 15T [the model's own].",
        metavar="N",
        parser=count,
    ),
]
SpaceFlag: TypeAlias = Annotated[
    str | None,
    typer.Option("--space", help="Which choices are searched [default].", metavar="NAME"),
]
AllowFlag: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", help="numerics: also search what changes the mathematics.", metavar="WORD"
    ),
]
ObjectiveFlag: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--objective", help="What is best: time, cost, energy or headroom [time].", metavar="WORD"
    ),
]
BaselineFlag: TypeAlias = Annotated[
    str, typer.Option("--baseline", help="A layout to put beside the winner.", metavar="LAYOUT")
]
FromFlag: TypeAlias = Annotated[
    Path | None, typer.Option("--from", help="Repeat a saved request.yaml.", metavar="FILE")
]
ConfigDirFlag: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config-dir",
        help="Own models, clusters, spaces, in front of the shipped.",
        metavar="DIR",
        parser=partial(own_folder, "config_dir"),
    ),
]
ProfilesDirFlag: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--profiles-dir",
        help="Own calibrated constants, in front of the shipped.",
        metavar="DIR",
        parser=partial(own_folder, "profiles_dir"),
    ),
]
JsonFlag: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietFlag: TypeAlias = Annotated[bool, typer.Option("--quiet", help="No progress, no notes.")]


def _print_version(asked: bool) -> None:
    if asked:
        from autoparallel import __version__

        typer.echo(f"autoparallel {__version__}")
        raise typer.Exit


def top_level(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Find the best parallel layout for a large language model on a cluster."""


def request_from(
    flags: Mapping[str, Any],
    *,
    allow: Sequence[str] | None = None,
    saved: Path | None = None,
    config_dir: Path | None = None,
    profiles_dir: Path | None = None,
) -> TrainingRequest:
    """The request that the flags make, or the one saved in a file.

    Args:
        flags: Keyword arguments of `training_request`, or `nodes` in place of `num_gpus`; None, ""
            and () mean not given.
        allow: Words of `--allow`.
        saved: A request.yaml that takes the place of all flags.
        config_dir: A folder in front of the shipped data.
        profiles_dir: A folder in front of the shipped profiles.
    """
    from autoparallel.planning import checked
    from autoparallel.request import training_request

    folders: dict[str, Any] = {"config_dir": config_dir, "profiles_dir": profiles_dir}
    given = {key: value for key, value in flags.items() if value not in (None, "", ())}
    if saved is not None:
        if extra := [*given, *(["allow"] if allow else [])]:
            raise ConfigError(
                f"{flag(extra[0])}: given beside --from, which holds the whole request"
            )
        return checked(_again(saved, folders))
    nodes = given.pop("nodes", None)
    if nodes is not None:
        if "num_gpus" in given:
            raise ConfigError("--nodes: given beside --gpus; leave one")
        given["num_gpus"] = nodes
    for needed in ("model", "num_gpus"):
        if needed not in given:
            raise ConfigError(f"{flag(needed)}: missing, and has no default; add it")
    allowed(allow)
    request = training_request(**given, allow_numerics=bool(allow), **folders)
    if nodes is not None:
        request = replace(request, num_gpus=nodes * request.cluster.gpus_per_node)
    return checked(request)


def allowed(words: Sequence[str] | None) -> bool:
    """Whether `--allow numerics` was given; any other word is an error."""
    for word in words or ():
        if word != "numerics":
            raise bad_value(
                "--allow", word, "is not something to allow", "the one choice is numerics"
            )
    return bool(words)


def flag(name: str) -> str:
    """A request's field as the flag that sets it."""
    if name == "overrides":
        return "override"
    return "--gpus" if name == "num_gpus" else "--" + name.replace("_", "-")


def _again(saved: Path, folders: Mapping[str, Path | None]) -> TrainingRequest:
    from autoparallel.request import TrainingRequest

    return moved(TrainingRequest.from_yaml(saved), folders)


def moved(request: Request, folders: Mapping[str, Path | None]) -> Request:
    """A saved request; folders given now take the place of the saved ones."""
    given: dict[str, Any] = {
        name: str(path.resolve()) for name, path in folders.items() if path is not None
    }
    return replace(request, **given) if given else request


def entry_of_rank(plan: Any, rank: int, what: str) -> Any:
    """The entry of a saved plan that stands in place `rank`.

    Args:
        plan: A plan of training or of serving.
        rank: What the user asked for, from 1.
        what: What one of its entries is called.

    Raises:
        ConfigError: the plan has no such place.
    """
    for entry in plan.entries:
        if entry.rank == rank:
            return entry
    most = len(plan.entries)
    hint = f"give 1 to {most}" if most else "search for more GPUs or other limits first"
    raise bad_value("--rank", rank, f"is not in a plan of {counted(most, what)}", hint)


def split_words(words: Sequence[str] | None) -> tuple[str, tuple[str, ...]]:
    """Positional words as a layout and the overrides.

    An override names a group or has a dotted key; what is left is the layout, quoted or not.
    """
    layout: list[str] = []
    overrides: list[str] = []
    for word in words or ():
        (overrides if is_override(word) else layout).append(word)
    return " ".join(layout), tuple(overrides)


def is_override(word: str) -> bool:
    """Whether a word sets a configuration key, not a part of a layout."""
    from autoparallel.request.compose import PICKS, SCALARS

    key, equals, _ = word.partition("=")
    names = (*PICKS, *SCALARS)
    return (
        bool(word)
        and " " not in key
        and (word[:1] in "+~" or (bool(equals) and ("." in key or key in names)))
    )


def first_line(request: TrainingRequest) -> str:
    """What is asked and what was assumed: the first line of every answer."""
    from autoparallel.reporting.wording import asked

    return asked(request)


def print_json(value: object) -> None:
    """One JSON value on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table: framed on a terminal, tab-separated and without a title when piped."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            typer.echo("\t".join(map(str, row)))
        return
    from rich.console import Console

    Console().print(_table(title, columns, rows))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table
