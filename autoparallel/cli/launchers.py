"""Where trials run: the launcher that `profile`, `measure-ops` and `discover` are told to use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from autoparallel.counts import counted
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
DeviceFlag: TypeAlias = Annotated[
    str, typer.Option("--device", help="auto, cpu or cuda.", metavar="NAME")
]
SiteFlag: TypeAlias = Annotated[
    str, typer.Option("--site", help="Entry of site/, or a file of that form.", metavar="NAME")
]
GpusPerNodeFlag: TypeAlias = Annotated[
    int,
    typer.Option(
        "--gpus-per-node", help="Asked of Slurm or Kubernetes; 0 for none.", metavar="N", min=0
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
        ConfigError: not installed, or what `check_launcher` refuses.
    """
    check_launcher(name, ray_address=ray_address, command=command)
    if name == "ray":
        return _ray(ray_address, cuda, ranks)
    if name == "slurm":
        return _slurm(site, gpus_per_node, bool(cuda))
    if name == "kubernetes":
        return _kubernetes(site, gpus_per_node, bool(cuda))
    return _local(command)


def check_launcher(name: str, *, ray_address: str = "", command: bool = False) -> None:
    """Refuse words that no launcher can be started with; starts and asks nothing.

    Args:
        name: See `launcher`.
        ray_address: See `launcher`.
        command: See `launcher`.

    Raises:
        ConfigError: unknown, or words that do not go together.
    """
    if name not in LAUNCHERS:
        raise bad_value("--launcher", name, "is not a launcher", nearest(name, LAUNCHERS))
    if ray_address and name != "ray":
        raise bad_value("--ray-address", ray_address, f"does not go with --launcher {name}")
    if name == "ray" and command:
        rule = "starts one rank an actor, and a command starts its ranks itself"
        raise bad_value("--launcher", name, rule, "use --launcher subprocess, slurm or kubernetes")


def check_gpus(ranks: int, there: int) -> None:
    """Refuse ranks on the GPUs of this machine where it has none.

    Args:
        ranks: Of the largest trial, each on a GPU of its own.
        there: GPUs of this machine.

    Raises:
        ConfigError: the machine has no GPU.
    """
    if there == 0:
        rule = f"puts {counted(ranks, 'rank')} on GPUs of this machine, which has {there}"
        hint = "use --device cpu to rehearse, or --launcher ray, slurm or kubernetes for GPUs"
        raise bad_value("--launcher", "subprocess", rule, f"{hint} elsewhere")


def concurrent(asked: int | None, started: Launcher, *, cuda: bool, gpus: int, ranks: int) -> int:
    """Trials that run at a time: as asked, or what the cluster's GPUs hold.

    Trials on CPUs share the cores and would slow each other down, so those run one by one. So do
    those of plain processes, which take the machine's GPUs by their number.

    Args:
        asked: `--concurrent`.
        started: Where they run.
        cuda: Whether ranks take GPUs.
        gpus: Of the plan, where the launcher cannot count its own.
        ranks: Of the largest trial.

    Raises:
        ConfigError: more than one at a time where they would take the same GPUs.
    """
    from autoparallel.profiling.ray_launcher import RayLauncher

    alone = started.name in ("subprocess", "command")
    if asked is not None:
        if asked > 1 and alone and (cuda or started.name == "command"):
            rule = "would put several trials on the same GPUs of this machine"
            raise bad_value("--concurrent", asked, rule, "use --launcher ray, slurm, kubernetes")
        return asked
    if alone or not cuda:
        return 1
    return max((started.gpus() if isinstance(started, RayLauncher) else gpus) // ranks, 1)


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
    from autoparallel.cli.outcome import leave_at_once
    from autoparallel.profiling.launcher import ClusterGoneError
    from autoparallel.request import site_record

    chosen = name or ("ray" if ray_address else "subprocess")
    record = site_record(site or _SITES.get(chosen, "local"), config_dir)
    started = launcher(
        chosen,
        site=record,
        gpus_per_node=max(gpus_per_node, 1),
        ray_address=ray_address,
        cuda={"cpu": False, "cuda": True}.get(
            device, None if chosen == "ray" else gpus_per_node > 0
        ),
        ranks=gpus_per_node,
    )
    try:
        yield started, record
    except ClusterGoneError as gone:
        started.close()
        leave_at_once(gone)
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
