"""The batch script of a trial on Slurm.

Written so that a person can read it and submit it by hand: `#SBATCH` lines from the site, then one
`srun` that starts a rank a GPU, or the user's command once a node. The first rank that fails takes
all others with it (`--kill-on-bad-exit`).
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoparallel.errors import bad_value
from autoparallel.profiling.command import LOG_FILE, argv, torchrun_variables
from autoparallel.profiling.errand import Work, gpus_per_node, ranks_per_node
from autoparallel.profiling.job import Job
from autoparallel.request import Site

SCRIPT_FILE, RANK_FILE, EXIT_FILE, OUTPUT_FILE = "job.sh", "rank.sh", "job.exit", "slurm.log"
PARCEL = "worker"
START_ALLOWANCE_S = 900.0
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:,/+@=-]{0,99}")
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a job runs.

    Attributes:
        gpus_per_node: Ranks a node takes.
        gpus: Whether GPUs are asked for; a CPU cluster has none to give.
        python: On the compute nodes, inside the image when there is one; it has torch and
            megatron-core, the worker itself travels in the trial's folder.
    """

    site: Site
    gpus_per_node: int
    gpus: bool = True
    python: str = "python3"


def job_name(job: Work) -> str:
    """A name that says which trial it is."""
    return f"autoparallel-{job.trial}"


def batch_script(job: Work, place: Place, folder: Path) -> str:
    """`job.sh`."""
    nodes, per_node = _shape(job, place)
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={value}" for name, value in _options(job, place, folder).items()),
        "#SBATCH --no-requeue",
        "set -u",
        f"trap 'echo $? > {shlex.quote(str(folder / EXIT_FILE))}' EXIT",
        *_exports(job, place, folder),
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
        "export MASTER_ADDR MASTER_PORT",
        "export PET_MASTER_ADDR=$MASTER_ADDR PET_MASTER_PORT=$MASTER_PORT",
        f"srun --nodes={nodes} --ntasks-per-node={1 if job.command else per_node} \\",
        f"  --kill-on-bad-exit=1 --output={shlex.quote(_output(job, folder))} \\",
        *(f"  {word} \\" for word in _container(place.site, folder)),
        f"  bash {shlex.quote(str(folder / RANK_FILE))}",
    ]
    return "\n".join(lines) + "\n"


def rank_script(job: Work, place: Place, folder: Path) -> str:
    """`rank.sh`: what every task of `srun` runs; Slurm's numbers become torch's."""
    if isinstance(job, Job) and job.command:
        words = argv(job, folder, place.gpus_per_node)
        lines = ["export PET_NODE_RANK=$SLURM_NODEID"]
    else:
        words = [place.python, "-m", "autoparallel.profiling.worker", str(folder)]
        lines = ["export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS"]
    return "\n".join(["#!/bin/bash", *lines, f"exec {shlex.join(words)}"]) + "\n"


def _shape(job: Work, place: Place) -> tuple[int, int]:
    """Nodes, and ranks on each."""
    per_node = ranks_per_node(job, place.gpus_per_node)
    if job.processes % per_node:
        rule = f"is not whole nodes of {per_node}"
        raise bad_value("num_gpus", job.processes, rule, f"use a multiple of {per_node}")
    return job.processes // per_node, per_node


def _options(job: Work, place: Place, folder: Path) -> dict[str, str]:
    """What `sbatch` is asked for; values are single words, so that none can add an option."""
    nodes, per_node = _shape(job, place)
    site = place.site
    named = {"partition": site.partition, "account": site.account, "qos": site.qos}
    asked = {
        "job-name": job_name(job),
        "nodes": str(nodes),
        "ntasks-per-node": str(1 if job.command else per_node),
        **({"gpus-per-node": str(gpus_per_node(job, place.gpus_per_node))} if place.gpus else {}),
        "time": time_limit(job, site),
        **{name: value for name, value in named.items() if value},
    }
    for name, value in asked.items():
        if not _WORD.fullmatch(value):
            raise bad_value(f"site {name}", value, "is not one plain word")
    if re.search(r"[\s%]", str(folder)):
        raise bad_value("folder", str(folder), "holds a space or a %, which Slurm does not take")
    return {**asked, "output": str(folder / OUTPUT_FILE)}


def time_limit(job: Work, site: Site) -> str:
    """The job's own deadline with room to start, at most what the site allows."""
    wanted = job.timeout_s + START_ALLOWANCE_S
    limit = seconds_of(site.time_limit) if site.time_limit else math.inf
    minutes = max(1, math.ceil(min(wanted, limit) / _MINUTE_S))
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def seconds_of(limit: str) -> float:
    """Slurm's time formats: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M`, `D-H:M:S`.

    Source: SchedMD, sbatch(1), --time.
    """
    days, dash, rest = limit.rpartition("-")
    parts = rest.split(":")
    digits = [days] * bool(dash) + parts
    if not all(part.isdecimal() for part in digits) or len(parts) > 3:
        hint = "write it as 04:00:00 or 1-00:00:00"
        raise bad_value("site time_limit", limit, "is not a time as Slurm writes it", hint)
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    clock = sum(int(part) * unit for part, unit in zip(parts, units, strict=False))
    return 86400.0 * int(days or 0) + clock


def _output(job: Work, folder: Path) -> str:
    return str(folder / (LOG_FILE if job.command else "rank-%t.log"))


def _exports(job: Work, place: Place, folder: Path) -> list[str]:
    variables: Mapping[str, str] = {
        **place.site.environment,
        **torchrun_variables(job.processes, ranks_per_node(job, place.gpus_per_node)),
        **({} if job.command else {"PYTHONPATH": str(folder / PARCEL)}),
        "PYTHONUNBUFFERED": "1",
        **job.environment,
    }
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def _container(site: Site, folder: Path) -> list[str]:
    """Options of Pyxis; the trial's folder is always mounted where it is."""
    if not site.image:
        return []
    mounts = ",".join((f"{folder}:{folder}", *site.mounts))
    found = [f"--container-image={shlex.quote(site.image)}"]
    found.append(f"--container-mounts={shlex.quote(mounts)}")
    if site.work_dir:
        found.append(f"--container-workdir={shlex.quote(site.work_dir)}")
    return found
