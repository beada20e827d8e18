"""Where trials run: the launcher that `profile`, `measure-ops` and `discover` are told to use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from autoparallel.errors import bad_value, nearest

if TYPE_CHECKING:
    from autoparallel.profiling.launcher import Launcher
    from autoparallel.request import Site

LAUNCHERS = ("ray", "subprocess", "slurm", "kubernetes")
LauncherFlag: TypeAlias = Annotated[
    str, typer.Option("--launcher", help=", ".join(LAUNCHERS) + ".", metavar="NAME")
]
RayAddressFlag: TypeAlias = Annotated[
    str, typer.Option("--ray-address", help="A Ray cluster, or auto.", metavar="ADDRESS")
]
SiteFlag: TypeAlias = Annotated[
    str, typer.Option("--site", help="Entry of site/, or a file of that form.", metavar="NAME")
]
GpusPerNodeFlag: TypeAlias = Annotated[
    int,
    typer.Option(
        "--gpus-per-node", help="What Slurm or Kubernetes is asked for.", metavar="N", min=1
    ),
]


def launcher(
    name: str,
    *,
    site: Site,
    gpus_per_node: int,
    ray_address: str = "",
    cuda: bool | None = False,
    ranks: int = 1,
    command: bool = False,
) -> Launcher:
    """A launcher by its name.

    Args:
        name: One of `LAUNCHERS`.
        site: What the place needs: image, mounts, partition, namespace.
        gpus_per_node: Ranks that share a node.
        ray_address: A Ray cluster; empty starts a local one, or joins the one this process runs in.
        cuda: Whether ranks take GPUs; None when they do where there are any.
        ranks: The most ranks a trial has.
        command: Whether jobs are the user's own command.

    Raises:
        ConfigError: unknown, not installed, or not able to run a command.
    """
    if name not in LAUNCHERS:
        raise bad_value("--launcher", name, "is not a launcher", nearest(name, LAUNCHERS))
    if ray_address and name != "ray":
        raise bad_value("--ray-address", ray_address, f"does not go with --launcher {name}")
    if name == "ray" and command:
        rule = "starts one rank an actor, and a command starts its ranks itself"
        raise bad_value("--launcher", name, rule, "use --launcher subprocess, slurm or kubernetes")
    if name == "ray":
        return _ray(ray_address, cuda, ranks)
    if name == "slurm":
        return _slurm(site, gpus_per_node, bool(cuda))
    if name == "kubernetes":
        return _kubernetes(site, gpus_per_node, bool(cuda))
    return _local(command)


@contextmanager
def errand_launcher(
    name: str,
    *,
    site: str,
    gpus_per_node: int,
    ray_address: str,
    device: str,
    config_dir: Path | None,
) -> Iterator[tuple[Launcher, Site]]:
    """A launcher without a plan, and its site; closed at the end.

    Args:
        name: One of `LAUNCHERS`; empty for a Ray cluster that is named, else this machine.
        site: Entry of `site/`; empty for the one that the launcher is usually used with.
        gpus_per_node: See `launcher`.
        ray_address: See `launcher`.
        device: `auto`, `cpu` or `cuda`.
        config_dir: A folder in front of the shipped data.
    """
    from autoparallel.request import site_record

    chosen = name or ("ray" if ray_address else "subprocess")
    record = site_record(site or _SITES.get(chosen, "local"), config_dir)
    started = launcher(
        chosen,
        site=record,
        gpus_per_node=gpus_per_node,
        ray_address=ray_address,
        cuda={"cpu": False, "cuda": True}.get(device, None if chosen == "ray" else True),
        ranks=gpus_per_node,
    )
    try:
        yield started, record
    finally:
        started.close()


_SITES = {"slurm": "slurm", "kubernetes": "kubernetes"}


def _ray(address: str, cuda: bool | None, ranks: int) -> Launcher:
    from autoparallel.profiling.ray_launcher import RayLauncher

    inside = "auto" if os.environ.get("RAY_JOB_ID") or os.environ.get("RAY_ADDRESS") else ""
    return RayLauncher(address=address or inside, gpus=cuda, ranks=ranks)


def _local(command: bool) -> Launcher:
    if command:
        from autoparallel.profiling.command import CommandLauncher

        return CommandLauncher()
    from autoparallel.profiling.subprocess_launcher import SubprocessLauncher

    return SubprocessLauncher()


def _slurm(site: Site, gpus_per_node: int, cuda: bool) -> Launcher:
    from autoparallel.profiling.slurm import SlurmLauncher
    from autoparallel.profiling.slurm_script import Place

    return SlurmLauncher(place=Place(site=site, gpus_per_node=gpus_per_node, gpus=cuda))


def _kubernetes(site: Site, gpus_per_node: int, cuda: bool) -> Launcher:
    from autoparallel.profiling.kubernetes import KubernetesLauncher
    from autoparallel.profiling.slurm_script import Place

    return KubernetesLauncher(place=Place(site=site, gpus_per_node=gpus_per_node, gpus=cuda))
