"""`autoparallel sweep`: what if there were other GPUs, more of them, another batch or price."""

from __future__ import annotations

import csv
import io
import json as json_module
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from autoparallel.cli import common, screen
from autoparallel.errors import NothingFitsError, bad_value

if TYPE_CHECKING:
    from autoparallel.cli.screen import Line
    from autoparallel.sweep import Axes, Limits, SweepResult

T = TypeVar("T")
ValuesFlag = str | None


def _values(help_text: str, flag: str) -> Any:
    return typer.Option(flag, help=help_text, metavar="A,B,...")


def sweep_verb(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides.")
    ] = None,
    model: Annotated[str, _values("Models.", "--model")] = "",
    gpus: Annotated[str, _values("Numbers of GPUs.", "--gpus")] = "",
    cluster: Annotated[str, _values("Clusters [dgx-h100].", "--cluster")] = "",
    framework: Annotated[str, _values("Frameworks [megatron-core].", "--framework")] = "",
    precision: Annotated[str, _values("Precisions [bf16].", "--precision")] = "",
    global_batch_size: Annotated[
        str, _values("Sequences a step [the model's own].", "--global-batch-size")
    ] = "",
    seq_length: Annotated[
        str, _values("Tokens a sequence [the model's own].", "--seq-length")
    ] = "",
    weak: Annotated[
        bool, typer.Option("--weak", help="The batch grows with the GPUs, from its smallest.")
    ] = False,
    price: Annotated[
        str,
        typer.Option("--price", help="USD a GPU-hour, by cluster.", metavar="CLUSTER=USD,..."),
    ] = "",
    tokens: common.TokensFlag = None,
    space: common.SpaceFlag = None,
    allow: common.AllowFlag = None,
    objective: common.ObjectiveFlag = None,
    max_days: Annotated[
        float | None, typer.Option("--max-days", help="Longest run.", metavar="N")
    ] = None,
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", help="Most money.", metavar="N")
    ] = None,
    ray_address: Annotated[
        str,
        typer.Option("--ray-address", help="Search on Ray; local starts one.", metavar="ADDRESS"),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the results; goes on where it was.", metavar="DIR"),
    ] = None,
    json: common.JsonFlag = False,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Search every combination of the given values, and say which to take."""
    from autoparallel.request.records import objective_name
    from autoparallel.sweep import Axes, Limits, cases, run_cases

    limits = Limits(
        max_days=_positive("--max-days", max_days), max_usd=_positive("--max-usd", max_usd)
    )
    usual = "cost_usd" if max_days is not None else "iteration_s"
    wanted = objective_name(objective) if objective else usual
    fixed: dict[str, Any] = {
        "tokens": tokens,
        "space": space,
        "overrides": tuple(overrides or ()),
        "allow_numerics": _allowed(allow),
        "config_dir": config_dir,
        "profiles_dir": profiles_dir,
        "objective": "memory_bytes" if wanted == "memory_bytes" else None,
    }
    axes = Axes(
        model=_needed("--model", _texts("--model", model)),
        num_gpus=_needed("--gpus", _numbers("--gpus", gpus)),
        cluster=_texts("--cluster", cluster) or (None,),
        framework=_texts("--framework", framework) or (None,),
        precision=_texts("--precision", precision) or (None,),
        global_batch_size=_numbers("--global-batch-size", global_batch_size) or (None,),
        seq_length=_numbers("--seq-length", seq_length) or (None,),
        weak=weak,
        usd_per_gpu_hour=_prices(price),
        fixed=fixed,
    )
    found = cases(axes)
    _check_prices(axes, [case.values["cluster"] for case in found])
    with _progress(len(found), quiet or json) as step:
        results = run_cases(found, out, ray_address, step)
    _answer(results, limits, wanted, out=out, as_json=json, quiet=quiet)


def _answer(
    results: Sequence[SweepResult],
    limits: Limits,
    objective: str,
    *,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Save the table, show it and the decision."""
    from autoparallel import files
    from autoparallel.sweep import decided

    best = decided(results, limits, objective)
    record = _record(results, limits, objective, best)
    text = json_module.dumps(record, indent=2, allow_nan=False) + "\n"
    if out is not None:
        files.write_text(out, "sweep.json", text)
        files.write_text(out, "sweep.csv", csv_text(results))
    if as_json:
        typer.echo(text, nl=False)
    else:
        lines = table(results, best)
        lines += [] if quiet else _notes(results, limits, objective, best)
        if out is not None and not quiet:
            lines += screen.prose(f"Files in {out}/: sweep.json, sweep.csv, cases/", "dim")
        screen.show(lines)
    if best is None:
        raise NothingFitsError(_nothing(results, limits))


def _record(
    results: Sequence[SweepResult], limits: Limits, objective: str, best: SweepResult | None
) -> dict[str, Any]:
    """What `--json` prints and `sweep.json` holds."""
    from autoparallel.sweep import break_evens, scaled

    return {
        "schema_version": 1,
        "kind": "sweep",
        "objective": objective,
        "max_days": limits.max_days,
        "max_usd": limits.max_usd,
        "best": best.id if best else None,
        "cases": [result.to_json() for result in results],
        "scaling": [asdict(item) for item in scaled(results)],
        "break_even": [asdict(item) for item in break_evens(results)],
    }


def csv_text(results: Sequence[SweepResult]) -> str:
    """One row a case, empty where a number is unknown."""
    out = io.StringIO()
    rows = [result.to_json() for result in results]
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def table(results: Sequence[SweepResult], best: SweepResult | None) -> list[Line]:
    """One line a case; what is the same in all of them is left out."""
    from autoparallel.cli.plan_view import time_scale
    from autoparallel.sweep import scaled

    efficiency = {item.id: item for item in reversed(scaled(results))}  # strong before weak
    times = [r.iteration_s for r in results if r.iteration_s]
    scale, unit, digits = time_scale(max(times, default=1.0))
    heads = {
        "model": [r.model for r in results],
        "cluster": [r.cluster for r in results],
        "framework": [r.framework for r in results],
        "precision": [r.precision for r in results],
        "sequence": [str(r.seq_length or "-") for r in results],
        "batch": [str(r.global_batch_size or "-") for r in results],
    }
    text = ("model", "cluster", "framework", "precision")
    columns = [
        screen.Column(head="", cells=["*" if r is best else "" for r in results], right=False),
        *(
            screen.Column(head=name, cells=cells, right=name not in text)
            for name, cells in heads.items()
            if len(set(cells)) > 1
        ),
        screen.Column(head="GPUs", cells=[f"{r.num_gpus:,}" for r in results]),
        screen.Column(
            head=f"step {unit}", cells=[_of(r.iteration_s, scale, digits) for r in results]
        ),
        screen.Column(
            head="MFU %", cells=[_of(r.model_flops_utilization, 100, 1) for r in results]
        ),
        screen.Column(
            head="scaling %",
            cells=[
                _of(efficiency[r.id].efficiency if r.id in efficiency else None, 100, 1)
                for r in results
            ],
        ),
        screen.Column(head="days", cells=[_of(r.days, 1, 1) for r in results]),
        screen.Column(head="kUSD", cells=[_of(r.cost_usd, 1e-3, 0) for r in results]),
        screen.Column(head="MWh", cells=[_of(r.energy_kwh, 1e-3, 0) for r in results]),
        screen.Column(head="free %", cells=[_of(r.free_memory_fraction, 100, 0) for r in results]),
        screen.Column(head="layout", cells=[_layout_cell(r) for r in results], right=False),
    ]
    known = [c for c in columns if any(cell not in ("", "-") for cell in c.cells)]
    return screen.rows(known, bold_first=False)


def _of(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:,.{digits}f}"


def _layout_cell(result: SweepResult) -> str:
    if result.layout:
        return result.layout
    return f"{result.state.replace('_', ' ')}: {result.message}"


def _notes(
    results: Sequence[SweepResult], limits: Limits, objective: str, best: SweepResult | None
) -> list[Line]:
    """The decision, and what else the table says."""
    from autoparallel.sweep import break_evens

    lines = _decision(best, limits, objective)
    for result in results:
        if result.use_gpus is not None and result.use_gpus_iteration_s is not None:
            lines += screen.prose(_spare(result))
    for item in break_evens(results)[:SHOWN]:
        price = f" (USD {item.usd_per_gpu_hour:.2f})" if item.usd_per_gpu_hour else ""
        text = (
            f"Break-even on {item.num_gpus:,} GPUs, {item.model}: a GPU-hour of {item.cluster} is "
            f"worth {item.ratio:.2f} of {item.other}{price}."
        )
        lines += screen.prose(text)
    lost = sum(result.state != "ok" for result in results)
    if lost:
        lines += screen.prose(f"{lost} of {len(results)} cases have no layout.", "yellow")
    return lines


SHOWN = 6
"""Pairs of clusters for which a break-even is shown; `--json` has all."""


def _decision(best: SweepResult | None, limits: Limits, objective: str) -> list[Line]:
    if best is None:
        return []
    words = {
        "iteration_s": "fastest",
        "cost_usd": "cheapest" if best.cost_usd is not None else "fewest GPU-hours",
        "energy_kwh": "least energy",
        "memory_bytes": "most memory free",
    }
    within = []
    if limits.max_days is not None:
        within.append(f"{limits.max_days:g} days")
    if limits.max_usd is not None:
        within.append(f"USD {limits.max_usd:,.0f}")
    bound = f" within {' and '.join(within)}" if within else ""
    numbers = [f"{best.days:,.1f} days"] if best.days is not None else []
    numbers += [f"USD {best.cost_usd:,.0f}"] if best.cost_usd is not None else []
    numbers += [f"{best.energy_kwh / 1e3:,.0f} MWh"] if best.energy_kwh is not None else []
    text = (
        f"Take {best.model} on {best.num_gpus:,} x {best.cluster} ({words[objective]}{bound}): "
        f"{screen.firm(best.layout)}" + (f", {', '.join(numbers)}" if numbers else "") + "."
    )
    return screen.prose(text, "bold green")


def _spare(result: SweepResult) -> str:
    """`1,000 GPUs: use 960`, with what it buys."""
    start = f"{result.num_gpus:,} GPUs of {result.cluster}: use {result.use_gpus:,}"
    if result.iteration_s is None:
        return f"{start}, which has a layout; the rest are spares."
    gain = 1 - (result.use_gpus_iteration_s or 0.0) / result.iteration_s
    return f"{start}: the step is {gain:.0%} shorter, and the rest are spares."


def _nothing(results: Sequence[SweepResult], limits: Limits) -> str:
    """The nearest case, or why there is none."""
    usable = [r for r in results if r.state == "ok"]
    if not usable:
        return f"sweep: none of {len(results)} cases has a layout; the first: {results[0].message}"
    shortest = min(
        (r for r in usable if r.days is not None), key=lambda r: r.days or 0, default=None
    )
    if shortest is None:
        return "sweep: the tokens of the run are unknown, so there are no days; give --tokens"
    cost = f", USD {shortest.cost_usd:,.0f}" if shortest.cost_usd is not None else ""
    missing = limits.max_usd is not None and all(r.cost_usd is None for r in usable)
    hint = "; no case has a price, give --price CLUSTER=USD" if missing else ""
    return (
        f"sweep: none of {len(usable)} cases stays within the limits; the shortest takes "
        f"{shortest.days:,.1f} days{cost} on {shortest.num_gpus:,} x {shortest.cluster}{hint}"
    )


def _progress(total: int, silent: bool) -> AbstractContextManager[Callable[..., None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    import sys

    if silent or not sys.stderr.isatty():
        return nullcontext(None)
    return _Bar(total)


class _Bar:
    """Progress on stderr; called with what is done, of how many, and the newest result."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.shown = Progress(console=Console(stderr=True), transient=True)
        self.task = self.shown.add_task("searching", total=total)

    def __enter__(self) -> Callable[..., None]:
        self.shown.start()
        return self.step

    def __exit__(self, *_: object) -> None:
        self.shown.stop()

    def step(self, done: int, _total: int, result: SweepResult) -> None:
        """One more case is done."""
        name = f"{result.num_gpus:,} x {result.cluster}"
        self.shown.update(self.task, completed=done, description=name)


def _texts(flag: str, text: str) -> tuple[str, ...]:
    """The values of a list with commas."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(parts):
        raise bad_value(flag, text, "has an empty value", "write A,B,C")
    return tuple(dict.fromkeys(parts))


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    numbers = []
    for part in _texts(flag, text):
        if not part.isdecimal() or int(part) < 1:
            raise bad_value(flag, part, "is not a whole number above 0", "write 256,512,1024")
        numbers.append(int(part))
    return tuple(numbers)


def _needed(flag: str, values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise bad_value(flag, "", "is missing, and has no default", "add it")
    return values


def _prices(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in _texts("--price", text):
        name, _, amount = part.rpartition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            found[name] = -1.0
        if not name or not 0 < found[name] < 1e6:
            raise bad_value("--price", part, "is not CLUSTER=USD", "write dgx-h100=2.5")
    return found


def _check_prices(axes: Axes, clusters: Sequence[str | None]) -> None:
    from autoparallel.errors import nearest

    known = {str(name) for name in clusters}
    for name in axes.usd_per_gpu_hour:
        if name not in known:
            raise bad_value("--price", name, "is no cluster of this sweep", nearest(name, known))


def _positive(flag: str, value: float | None) -> float | None:
    if value is not None and not 0 < value < 1e15:
        raise bad_value(flag, value, "is not above 0", "leave it out for no limit")
    return value


def _allowed(words: Sequence[str] | None) -> bool:
    for word in words or ():
        if word != "numerics":
            raise bad_value(
                "--allow", word, "is not something to allow", "the one choice is numerics"
            )
    return bool(words)
