"""Launchers: the script of one node, started on every node by a scheduler.

Each launcher takes a `Start` and gives the files that go beside the node script. `torchrun` is the
node script alone. What a site says and a launcher has no place for is reported, not dropped in
silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autoparallel.errors import bad_value, nearest
from autoparallel.exporting.launchers.kubernetes import kubernetes_files
from autoparallel.exporting.launchers.ray import ray_files
from autoparallel.exporting.launchers.slurm import slurm_files
from autoparallel.exporting.launchers.start import Start

__all__ = ["LAUNCHERS", "Start", "launcher_files", "unused_settings"]

LAUNCHERS: dict[str, Callable[[Start], dict[str, str]]] = {
    "torchrun": lambda start: {},
    "slurm": slurm_files,
    "kubernetes": kubernetes_files,
    "ray": ray_files,
}

_USES: Mapping[str, tuple[str, ...]] = {
    "torchrun": (),
    "slurm": ("image", "mounts", "partition", "account", "qos", "time_limit", "work_dir"),
    "kubernetes": ("image", "mounts", "namespace", "queue", "time_limit", "work_dir"),
    "ray": ("image",),
}
_PLACE = ("image", "mounts", "partition", "account", "qos", "time_limit", "namespace", "queue")


def launcher_files(launcher: str, start: Start) -> dict[str, str]:
    """Name -> text of what `launcher` needs beside the node scripts.

    Raises:
        ConfigError: no such launcher, or a site whose words it cannot write.
    """
    if launcher not in LAUNCHERS:
        rule = "is not a launcher"
        raise bad_value("--launcher", launcher, rule, nearest(launcher, LAUNCHERS))
    return LAUNCHERS[launcher](start)


def unused_settings(launcher: str, start: Start) -> tuple[str, ...]:
    """What the site says and this launcher has no place for."""
    return tuple(
        name for name in _PLACE if getattr(start.site, name) and name not in _USES[launcher]
    )
