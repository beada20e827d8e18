"""`autoparallel discover`: this machine as a cluster file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoparallel.cli import common


def discover_verb(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Cluster file to write [print it].", metavar="FILE"),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="GPU of the catalog, or a file [by its name].", metavar="NAME"),
    ] = None,
    config_dir: common.ConfigDirFlag = None,
    json: common.JsonFlag = False,
) -> None:
    """Read this machine's GPUs and links into a cluster file."""
    from dataclasses import asdict

    from autoparallel.errors import bad_value
    from autoparallel.files import write_text
    from autoparallel.profiling.topology import cluster_of, cluster_text, look

    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise bad_value("--out", str(out), "does not end in .yaml", "name it my-cluster.yaml")
    found = cluster_of(look(), gpu, config_dir)
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
