"""`autoparallel measure-ops`: operator tables of this machine, or of a node of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from autoparallel.cli import common
from autoparallel.cli.launchers import (
    DeviceFlag,
    GpusPerNodeFlag,
    LauncherFlag,
    RayAddressFlag,
    SiteFlag,
    errand_launcher,
)
from autoparallel.counts import counted

if TYPE_CHECKING:
    from autoparallel.profiling.operators.measure import Measured

OutFlag: TypeAlias = Annotated[
    Path, typer.Option("--out", help="Profiles folder to write, or to go on with.", metavar="DIR")
]
GpuFlag: TypeAlias = Annotated[
    str | None,
    typer.Option("--gpu", help="GPU of the catalog, or a file [by its name].", metavar="NAME"),
]
OnlyFlag: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--only", help="stream, gemm, attention, experts or collectives [all].", metavar="KIND"
    ),
]
RanksFlag: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--ranks", help="Largest group of collectives [a node's GPUs; 2 on CPUs].", metavar="N"
    ),
]
TinyFlag: TypeAlias = Annotated[bool, typer.Option("--tiny", help="A small grid, to try it out.")]
BudgetFlag: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--budget", help="Stop after this, such as 8m; run again to go on.", metavar="TIME"
    ),
]


def measure_ops_verb(
    out: OutFlag = Path("my-profiles"),
    device: DeviceFlag = "auto",
    gpu: GpuFlag = None,
    only: OnlyFlag = None,
    ranks: RanksFlag = None,
    tiny: TinyFlag = False,
    budget: BudgetFlag = None,
    where: LauncherFlag = "",
    ray_address: RayAddressFlag = "",
    site: SiteFlag = "",
    gpus_per_node: GpusPerNodeFlag = 8,
    config_dir: common.ConfigDirFlag = None,
    json: common.JsonFlag = False,
    quiet: common.QuietFlag = False,
) -> None:
    """Measure operators and collectives, here or on a cluster, as tables."""
    from dataclasses import asdict

    from autoparallel.cli.outcome import complain
    from autoparallel.cli.profile_settings import seconds
    from autoparallel.profiling.operators import KINDS, measure

    budget_s = seconds("--budget", budget) if budget else float("inf")
    with errand_launcher(
        where,
        site=site,
        gpus_per_node=gpus_per_node,
        ray_address=ray_address,
        device=device,
        config_dir=config_dir,
    ) as (launcher, record):
        found = measure(
            out,
            launcher,
            device=device,
            gpu=gpu,
            tiny=tiny,
            kinds=tuple(only) if only else KINDS,
            ranks=ranks,
            budget_s=budget_s,
            environment=record.environment,
            progress=lambda text: None if quiet or json else complain(text),
            config_dir=config_dir,
        )
    if json:
        common.print_json({**asdict(found), "folder": str(found.folder)})
    else:
        typer.echo(_told(found))


def _told(found: Measured) -> str:
    """What was measured, and what to do with it."""
    if found.left:
        told = f"{counted(found.taken, 'sample')} taken on {found.host}, {found.left} to go"
        return f"{told}; run it again to go on"
    files = ", ".join(found.files)
    return f"{found.folder / 'operators'}: {files}; use it with --profiles-dir {found.folder}"
