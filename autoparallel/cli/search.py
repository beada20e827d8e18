"""`autoparallel search`: the ranked plan for a model on a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from autoparallel.cli import common, screen
from autoparallel.counts import counted
from autoparallel.errors import ConfigError, NothingFitsError

if TYPE_CHECKING:
    from autoparallel.cost.simulated import Simulated
    from autoparallel.layout import Layout
    from autoparallel.plan import Estimate, Plan
    from autoparallel.ranking import Ranked, Setting, Table
    from autoparallel.ranking.rescue import Remedy
    from autoparallel.request import TrainingRequest

EVERY_FRAMEWORK = "all"
FRAMEWORKS = ("megatron-core", "deepspeed", "fsdp2", "yafsdp")
"""What `--framework all` compares."""

FrameworkFlag: TypeAlias = Annotated[
    str | None,
    typer.Option("--framework", help="Training framework, or all [megatron-core].", metavar="NAME"),
]
TopFlag: TypeAlias = Annotated[int, typer.Option("--top", help="Layouts to list.", metavar="N")]
SaveAllFlag: TypeAlias = Annotated[bool, typer.Option("--save-all", help="Save every candidate.")]
ReportFlag: TypeAlias = Annotated[bool, typer.Option("--report", help="Write report.html too.")]


def search_verb(
    overrides: common.OverridesArgument = None,
    model: common.ModelFlag = None,
    gpus: common.GpusFlag = None,
    nodes: common.NodesFlag = None,
    cluster: common.ClusterFlag = None,
    gpu: common.GpuFlag = None,
    framework: FrameworkFlag = None,
    precision: common.PrecisionFlag = None,
    global_batch_size: common.BatchFlag = None,
    seq_length: common.SequenceFlag = None,
    tokens: common.TokensFlag = None,
    space: common.SpaceFlag = None,
    allow: common.AllowFlag = None,
    objective: common.ObjectiveFlag = None,
    baseline: common.BaselineFlag = "",
    top: TopFlag = 10,
    json: common.JsonFlag = False,
    out: common.OutFlag = None,
    save_all: SaveAllFlag = False,
    report: ReportFlag = False,
    saved: common.FromFlag = None,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Rank the layouts of a model on a cluster."""
    every = framework == EVERY_FRAMEWORK
    request = common.request_from(
        {
            "model": model,
            "num_gpus": gpus,
            "nodes": nodes,
            "cluster": cluster,
            "gpu": gpu,
            "framework": FRAMEWORKS[0] if every else framework,
            "precision": precision,
            "global_batch_size": global_batch_size,
            "seq_length": seq_length,
            "tokens": tokens,
            "space": space,
            "objective": objective,
            "baseline": baseline,
            "overrides": tuple(overrides or ()),
        },
        allow=allow,
        saved=saved,
        config_dir=config_dir,
        profiles_dir=profiles_dir,
    )
    if report and json and out is None:
        raise ConfigError("--report: --json without --out writes no file; add --out DIR")
    if every:
        request = _fastest_framework(request, quiet or json)
    _answer(request, top=top, as_json=json, out=out, save_all=save_all, report=report, quiet=quiet)


def _fastest_framework(request: TrainingRequest, quiet: bool) -> TrainingRequest:
    """The request under the framework whose first layout is best; the comparison is shown."""
    from autoparallel.cli import plan_view
    from autoparallel.planning import search

    measure = "memory_bytes" if request.objective == "memory_bytes" else "iteration_s"
    asked = [replace(request, framework=name) for name in FRAMEWORKS]
    plans = [search(one, top=1) for one in asked]
    found = [
        (one, replace(plan.entries[0], best_probability=None))
        for one, plan in zip(asked, plans, strict=True)
        if plan.entries
    ]
    if not found:
        return request
    found.sort(key=lambda pair: getattr(pair[1], measure))
    if not quiet:
        labels = [one.framework for one, _ in found]
        screen.show(plan_view.entry_table(labels, [entry for _, entry in found]))
        for one, plan in zip(asked, plans, strict=True):
            screen.show(plan_view.nothing_of(one.framework, plan))
        first, *others = [(one.framework, entry) for one, entry in found]
        screen.show(plan_view.contested(first, others))
    return found[0][0]


def _answer(
    request: TrainingRequest,
    *,
    top: int,
    as_json: bool,
    out: Path | None,
    save_all: bool,
    report: bool,
    quiet: bool,
) -> None:
    """Search, save the run, show the plan."""
    from autoparallel.cli import plan_view, run_folder

    plan, result, where = _searched(request, top)
    folder = out
    if out is None and not as_json:
        folder = run_folder.default_folder(request.model.name, request.num_gpus)
    names, unsaved = [], None
    try:
        names = run_folder.save(folder, plan, result, where, save_all) if folder else []
        if report and folder and plan.entries:
            names += run_folder.report(folder, quiet)
        if folder and not quiet:
            run_folder.note_older(folder, names)
    except ConfigError as error:  # the answer is worth showing all the same
        unsaved = error
    if as_json:
        typer.echo(plan.text(), nl=False)
        if names and not quiet:
            typer.echo(f"saved in {folder}", err=True)
    elif plan.entries:
        screen.show(_screen(plan, result, where, quiet))
        if folder and names and not quiet:
            screen.show(plan_view.files_line(folder, names))
    elif not quiet:
        screen.show([*screen.prose(common.first_line(request)), *plan_view.sieve(plan)])
    if unsaved is not None:
        raise unsaved
    if not plan.entries:
        raise NothingFitsError(_nothing_fits(plan, result, where))


def _searched(request: TrainingRequest, top: int) -> tuple[Plan, Ranked, Setting]:
    from autoparallel.planning import searched

    return searched(request, top=top)


def _screen(plan: Plan, result: Ranked, where: Setting, quiet: bool) -> list[screen.Line]:
    """Everything there is to read about a plan with entries."""
    from autoparallel.cli import plan_view
    from autoparallel.ranking.reasons import bought
    from autoparallel.reporting.wording import tied

    request, winner = where.request, plan.entries[0]
    equal = tied(plan, where)
    labels = [f"{entry.rank}{'=' * same}" for entry, same in zip(plan.entries, equal, strict=True)]
    labels[0] = str(winner.rank)
    entries, given = list(plan.entries), _baseline(request, result)
    if given is not None and given.legal:
        entries.append(given.entry)
        labels.append("yours")
    table = plan_view.entry_table(labels, entries)
    if quiet:
        return table
    lines = [*screen.prose(common.first_line(request)), *table]
    lines += plan_view.peak_note(winner)
    lines += screen.legend(winner.parts or {}, "1")
    lines += plan_view.decision(plan, equal, request.cluster.gpu.memory_bytes)
    lines += _fewer(request, winner.iteration_s)
    lines += plan_view.runner_up(plan)
    if given is not None:
        lines += plan_view.baseline_lines(given, winner)
    lines += plan_view.simulation(_simulated(where, winner.layout))
    lines += plan_view.worth(bought(where, winner.layout), winner)
    return [*lines, *plan_view.sieve(plan), *plan_view.rests_on(where, winner)]


def _simulated(where: Setting, layout: Layout) -> Simulated | None:
    """The winner's pipeline, event by event."""
    from autoparallel.cost.simulated import simulated

    one = where.case(where.row(layout))
    return simulated(one) if layout.pipeline_model_parallel_size > 1 else None


def _fewer(request: TrainingRequest, seconds: float | None) -> list[screen.Line]:
    """What a smaller number of GPUs would do, where this one divides badly."""
    from autoparallel.planning import solved
    from autoparallel.ranking.spare import better_with_fewer
    from autoparallel.reporting.wording import time_text

    found = better_with_fewer(request, seconds, solved)
    if found is None:
        return []
    spare = request.num_gpus - found.num_gpus
    kept = counted(found.spare_nodes, "node")
    if spare % request.cluster.gpus_per_node:
        kept = counted(spare, "GPU")
    text = (
        f"{counted(request.num_gpus, 'GPU')}: use {found.num_gpus:,} and keep {kept} spare: "
        f"{screen.firm(found.layout)}, {time_text(found.iteration_s)} a step"
    )
    text += f" ({found.gain:.0%} less)." if found.gain is not None else "."
    return screen.prose(text, "bold")


def _baseline(request: TrainingRequest, result: Ranked) -> Estimate | None:
    if not request.baseline:
        return None
    from autoparallel.planning import estimate, written

    return estimate(request, written(request.baseline, request), among=result)


def _nothing_fits(plan: Plan, result: Ranked, where: Setting) -> str:
    """What stands in the way, with numbers, and the nearest request that has an answer."""
    from autoparallel.planning import solved
    from autoparallel.ranking.rescue import first_working, remedies

    request = where.request
    fewer = [screen.plain(line) for line in _fewer(request, None)]
    if result.nearest_miss is None:
        batches = _other_batch(plan, where)
        return "\n  ".join([_nothing_legal(plan, where), *fewer, *batches])
    lines = _shortfall(plan, where, result.nearest_miss)
    found = [line for r in first_working(remedies(request), solved) for line in _remedy(r)]
    found = found or [
        "more GPUs, GPUs with more memory and the optimizer on the host were tried and do not "
        "fit either; take a smaller model, sequence or another space"
    ]
    return "\n  ".join([*lines, *found, *fewer])


def _nothing_legal(plan: Plan, where: Setting) -> str:
    """The rule in the way, with an example."""
    from autoparallel.planning import candidates_of
    from autoparallel.rules import binding

    rule = binding(plan.pruned)
    found = candidates_of(where.request, where)
    for _ in found:  # a walk remembers an example of every rule
        pass
    return (
        f"plan: none of {plan.considered:,} layouts is legal; those that came furthest break "
        f"the rule {rule!r}: {found.example(rule)}"
    )


def _other_batch(plan: Plan, where: Setting) -> list[str]:
    """The nearest global batch that has a layout, if the batch left out most of the meshes."""
    from autoparallel.planning import solved
    from autoparallel.ranking.rescue import first_working, lawful

    meshed = plan.considered - plan.pruned.get("world", 0)
    if 2 * plan.pruned.get("batch", 0) < meshed:
        return []
    found = first_working(lawful(where.request), solved)
    return [line for remedy in found for line in _remedy(remedy)]


def _shortfall(plan: Plan, where: Setting, nearest: Table) -> list[str]:
    """What the layout that comes closest to fitting lacks."""
    from autoparallel.ranking.rescue import shortfall
    from autoparallel.reporting.wording import part_name
    from autoparallel.units import GIB

    miss = shortfall(where, nearest)
    part, size = miss.largest
    return [
        f"plan: none of {counted(plan.evaluated, 'legal layout')} fits",
        f"closest: {miss.layout}",
        f"  needs {miss.memory_bytes / GIB:.1f} of {miss.capacity_bytes / GIB:.1f} GiB, "
        f"{miss.short_bytes / GIB:.1f} GiB too much; "
        f"most of it is {part_name(part, '_bytes')}, {size / GIB:.1f} GiB",
    ]


def _remedy(found: Remedy) -> list[str]:
    """A changed request that has an answer, and the answer."""
    from autoparallel.reporting.wording import time_text

    seconds = time_text(found.iteration_s)
    return [
        f"would fit: {found.flags}",
        f"  {counted(found.feasible, 'layout')}, best {found.best}, {seconds} a step",
    ]
