"""`autoparallel sweep`: what if there were other GPUs, more of them, another batch or price."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import typer

from autoparallel.cli import common, screen, sweep_view
from autoparallel.errors import ConfigError, NothingFitsError, bad_value, nearest

if TYPE_CHECKING:
    from autoparallel.sweep import Axes, Limits, SweepResult

T = TypeVar("T")


def _values(help_text: str, flag: str) -> Any:
    return typer.Option(flag, help=help_text, metavar="A,B,...")


ModelFlag: TypeAlias = Annotated[str, _values("Models.", "--model")]
GpusFlag: TypeAlias = Annotated[str, _values("Numbers of GPUs.", "--gpus")]
ClusterFlag: TypeAlias = Annotated[str, _values("Clusters [dgx-h100].", "--cluster")]
FrameworkFlag: TypeAlias = Annotated[str, _values("Frameworks [megatron-core].", "--framework")]
PrecisionFlag: TypeAlias = Annotated[str, _values("Precisions [bf16].", "--precision")]
GlobalBatchSizeFlag: TypeAlias = Annotated[
    str, _values("Sequences a step [the model's own].", "--global-batch-size")
]
SeqLengthFlag: TypeAlias = Annotated[
    str, _values("Tokens a sequence [the model's own].", "--seq-length")
]
WeakFlag: TypeAlias = Annotated[
    bool, typer.Option("--weak", help="The batch grows with the GPUs, from its smallest.")
]
PriceFlag: TypeAlias = Annotated[
    str,
    typer.Option("--price", help="USD a GPU-hour, by cluster.", metavar="CLUSTER=USD,..."),
]
MaxDaysFlag: TypeAlias = Annotated[
    float | None, typer.Option("--max-days", help="Longest run.", metavar="N")
]
MaxUsdFlag: TypeAlias = Annotated[
    float | None, typer.Option("--max-usd", help="Most money.", metavar="N")
]
RayAddressFlag: TypeAlias = Annotated[
    str,
    typer.Option("--ray-address", help="Search on Ray; local starts one.", metavar="ADDRESS"),
]
OutFlag: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder of the results; goes on where it was.",
        metavar="DIR",
        parser=common.folder,
    ),
]


def sweep_verb(
    overrides: common.OverridesArgument = None,
    model: ModelFlag = "",
    gpus: GpusFlag = "",
    cluster: ClusterFlag = "",
    framework: FrameworkFlag = "",
    precision: PrecisionFlag = "",
    global_batch_size: GlobalBatchSizeFlag = "",
    seq_length: SeqLengthFlag = "",
    weak: WeakFlag = False,
    price: PriceFlag = "",
    tokens: common.TokensFlag = None,
    space: common.SpaceFlag = None,
    allow: common.AllowFlag = None,
    objective: common.ObjectiveFlag = None,
    max_days: MaxDaysFlag = None,
    max_usd: MaxUsdFlag = None,
    ray_address: RayAddressFlag = "",
    out: OutFlag = None,
    json: common.JsonFlag = False,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Search all combinations of values, and say which to take."""
    from autoparallel.request.records import objective_name
    from autoparallel.sweep import Axes, Limits, cases, run_cases

    limits = Limits(
        max_days=_positive("--max-days", max_days), max_usd=_positive("--max-usd", max_usd)
    )
    usual = "cost_usd" if max_days is not None else "iteration_s"
    wanted = objective_name(objective) if objective else usual
    fixed = {
        "tokens": tokens,
        "space": space,
        "overrides": tuple(overrides or ()),
        "allow_numerics": common.allowed(allow),
        "config_dir": config_dir,
        "profiles_dir": profiles_dir,
        "objective": wanted if wanted == "memory_bytes" else None,
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
    from autoparallel.sweep import decisions

    best = decisions(results, limits, objective)
    record = _record(results, limits, objective, best)
    text = json_module.dumps(record, indent=2, allow_nan=False) + "\n"
    if out is not None:
        files.write_text(out, "sweep.json", text)
        files.write_text(out, "sweep.csv", sweep_view.csv_text(results))
    if as_json:
        typer.echo(text, nl=False)
    else:
        lines = sweep_view.table(results, best)
        lines += [] if quiet else sweep_view.notes(results, limits, objective, best)
        if out is not None and not quiet:
            lines += screen.prose(f"Files in {out}/: sweep.json, sweep.csv, cases/", "dim")
        screen.show(lines)
    if not best:
        raise NothingFitsError(sweep_view.nothing_within(results, limits))


def _record(
    results: Sequence[SweepResult], limits: Limits, objective: str, best: Sequence[SweepResult]
) -> dict[str, Any]:
    """What `--json` prints and `sweep.json` holds."""
    from autoparallel.sweep import break_evens, scaled

    return {
        "schema_version": 1,
        "kind": "sweep",
        "objective": objective,
        "max_days": limits.max_days,
        "max_usd": limits.max_usd,
        "best": [result.id for result in best],
        "cases": [result.to_json() for result in results],
        "scaling": [asdict(item) for item in scaled(results)],
        "break_even": [asdict(item) for item in break_evens(results)],
    }


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
        if not part.isdecimal() or len(part) > 18 or int(part) < 1:
            raise bad_value(flag, part, "is not a whole number above 0", "write 256,512,1024")
        numbers.append(int(part))
    return tuple(numbers)


def _needed(flag: str, values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ConfigError(f"{flag}: missing, and has no default; add it")
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
    known = {str(name) for name in clusters}
    for name in axes.usd_per_gpu_hour:
        if name not in known:
            raise bad_value("--price", name, "is no cluster of this sweep", nearest(name, known))


def _positive(flag: str, value: float | None) -> float | None:
    if value is not None and not 0 < value < 1e15:
        raise bad_value(flag, value, "is not above 0", "leave it out for no limit")
    return value
