"""`autoparallel estimate`: one given layout, part by part, and its place among all candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from autoparallel.cli import common, screen
from autoparallel.counts import counted
from autoparallel.errors import ConfigError

if TYPE_CHECKING:
    from autoparallel.layout import Layout
    from autoparallel.plan import Estimate
    from autoparallel.request import TrainingRequest


def estimate_verb(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="LAYOUT|KEY=VALUE", help="Such as 'tp8 pp8 mbs1 sp zero1'."),
    ] = None,
    layout: Annotated[
        str, typer.Option("--layout", help="The layout, when not positional.", metavar="LAYOUT")
    ] = "",
    model: common.ModelFlag = None,
    gpus: common.GpusFlag = None,
    nodes: common.NodesFlag = None,
    cluster: common.ClusterFlag = None,
    gpu: common.GpuFlag = None,
    framework: common.FrameworkFlag = None,
    precision: common.PrecisionFlag = None,
    global_batch_size: common.BatchFlag = None,
    seq_length: common.SequenceFlag = None,
    tokens: common.TokensFlag = None,
    space: common.SpaceFlag = None,
    allow: common.AllowFlag = None,
    json: common.JsonFlag = False,
    saved: common.FromFlag = None,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Say whether one layout is legal and fits, and how fast it is."""
    from autoparallel.layout import Layout
    from autoparallel.planning import written

    positional, overrides = common.split_words(words)
    if bool(positional) == bool(layout):
        problem = "given twice" if layout else "missing"
        raise ConfigError(f"layout: {problem}; write it once, such as 'tp8 pp8 mbs1 sp zero1'")
    text = positional or layout
    Layout.parse(text)  # a wrong word is told before what the request lacks
    request = common.request_from(
        {
            "model": model,
            "num_gpus": gpus,
            "nodes": nodes,
            "cluster": cluster,
            "gpu": gpu,
            "framework": framework,
            "precision": precision,
            "global_batch_size": global_batch_size,
            "seq_length": seq_length,
            "tokens": tokens,
            "space": space,
            "overrides": overrides,
        },
        allow=allow,
        saved=saved,
        config_dir=config_dir,
        profiles_dir=profiles_dir,
    )
    _answer(request, written(text, request), as_json=json, quiet=quiet)


def _answer(request: TrainingRequest, layout: Layout, *, as_json: bool, quiet: bool) -> None:
    """Estimate the layout and show every part of it."""
    from autoparallel.planning import estimate

    answer = estimate(request, layout)
    if as_json:
        common.print_json(answer.to_json())
        return
    screen.show(_screen(request, answer, quiet))


def _screen(request: TrainingRequest, answer: Estimate, quiet: bool) -> list[screen.Line]:
    from autoparallel.cli import plan_view

    entry = answer.entry
    lines = [] if quiet else screen.prose(common.first_line(request))
    lines += plan_view.broken_rules(answer)
    if not answer.legal:
        return lines
    label = str(answer.place.rank) if answer.place else "-"
    lines += plan_view.entry_table([label], [entry])
    if quiet:
        return lines
    lines += plan_view.peak_note(entry)
    lines += screen.legend(entry.parts or {}, screen.firm(entry.layout))
    if answer.place is not None:
        better, fit = answer.place.rank - 1, counted(answer.place.of, "layout")
        place = f"{better:,} of the {fit} that fit {'is' if better == 1 else 'are'} better"
        short = "" if entry.fits else "it would not fit; "
        lines += screen.prose(f"{short}{place}.", "" if entry.fits else "yellow")
    return [*lines, [("", "")], *plan_view.part_tables(entry)]
