"""`autoparallel discover`: this machine, or nodes of a cluster, as a cluster file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoparallel.cli import common
from autoparallel.cli.launchers import (
    GpusPerNodeFlag,
    LauncherFlag,
    RayAddressFlag,
    SiteFlag,
    errand_launcher,
)


def discover_verb(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Cluster file to write [print it].", metavar="FILE"),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="GPU of the catalog, or a file [by its name].", metavar="NAME"),
    ] = None,
    nodes: Annotated[
        int, typer.Option("--nodes", help="Nodes to look at and compare.", metavar="N", min=1)
    ] = 1,
    where: LauncherFlag = "",
    ray_address: RayAddressFlag = "",
    site: SiteFlag = "",
    gpus_per_node: GpusPerNodeFlag = 8,
    config_dir: common.ConfigDirFlag = None,
    json: common.JsonFlag = False,
) -> None:
    """Read GPUs and links, here or on a cluster's nodes, into a cluster file."""
    from dataclasses import asdict

    from autoparallel.errors import bad_value
    from autoparallel.files import write_text
    from autoparallel.profiling.topology import cluster_of_nodes, cluster_text, nodes_of

    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise bad_value("--out", str(out), "does not end in .yaml", "name it my-cluster.yaml")
    with errand_launcher(
        where,
        site=site,
        gpus_per_node=gpus_per_node,
        ray_address=ray_address,
        device="auto",
        config_dir=config_dir,
    ) as (launcher, record):
        shared = (out.parent if out is not None else Path()) if where == "slurm" else None
        seen = nodes_of(launcher, nodes, shared, record.environment)
    found = cluster_of_nodes(seen, gpu, config_dir)
    text = cluster_text(found)
    if out is not None:
        write_text(out.parent, out.name, text)
    if json:
        common.print_json({**asdict(found), "file": str(out) if out else None})
    elif out is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(f"{out}: {found.gpus_per_node} x {found.gpu}, compared with {found.nearest}")
        for note in found.deviations:
            typer.echo(f"  {note}")
