"""Which exporters there are, and everything one export writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from autoparallel.errors import bad_value, nearest
from autoparallel.exporting import deepspeed, fsdp2, megatron_bridge, megatron_lm, torchtitan
from autoparallel.exporting.job import TrainingJob
from autoparallel.exporting.launchers import Start, launcher_files, unused_settings
from autoparallel.exporting.launchers.start import PROFILE, RUN
from autoparallel.exporting.program import Program, node_script
from autoparallel.request import Site

TARGETS: dict[str, Callable[[TrainingJob, str], Program]] = {
    "megatron-lm": megatron_lm.program,
    "megatron-bridge": megatron_bridge.program,
    "torchtitan": torchtitan.program,
    "fsdp2": fsdp2.program,
    "deepspeed": deepspeed.program,
}

PREFIX = "profile-"
"""Before the names of files of the profiling run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What one export writes.

    Attributes:
        version: What the files are written for.
        files: Name -> text, the node scripts and the launcher's files among them.
        unused: Settings of the site that the launcher has no place for.
    """

    version: str
    files: dict[str, str]
    unused: tuple[str, ...]


def exported(job: TrainingJob, to: str, launcher: str, site: Site, gpus_per_node: int) -> Exported:
    """The files of a job and of its profiling run, for one framework, launcher and site.

    Args:
        job: What to run.
        to: One of `TARGETS`.
        launcher: One of `LAUNCHERS`.
        site: Where it runs; its environment goes over the exporter's own.
        gpus_per_node: Of a whole node; a job smaller than a node takes part of one.

    Raises:
        ConfigError: unknown names, or a job that they cannot express.
    """
    per_node = min(gpus_per_node, job.num_gpus)
    nodes, rest = divmod(job.num_gpus, per_node)
    if rest:
        rule = f"is not whole nodes of {per_node} GPUs, which torchrun starts"
        raise bad_value("num_gpus", job.num_gpus, rule, f"use {nodes * per_node}")
    if to not in TARGETS:
        raise bad_value("--to", to, "is not an exporter", nearest(to, TARGETS))
    whole = _placed(TARGETS[to](job, ""), site)
    short = _placed(TARGETS[to](job.profiling(), PREFIX), site)
    scripts = {
        RUN: node_script(whole, nodes, per_node),
        PROFILE: node_script(short, nodes, per_node),
    }
    start = Start(
        name=f"{job.model.name}-{job.num_gpus}",
        num_nodes=nodes,
        gpus_per_node=per_node,
        site=site,
        files={**whole.files, **short.files, **scripts},
    )
    return Exported(
        version=whole.version,
        files={**start.files, **launcher_files(launcher, start)},
        unused=unused_settings(launcher, start),
    )


def _placed(program: Program, site: Site) -> Program:
    """The program in the site's environment, with its checkout of Megatron-LM."""
    own = {"MEGATRON_LM": site.megatron_dir} if site.megatron_dir else {}
    return replace(program, environment={**own, **program.environment, **site.environment})
