"""Slurm: a batch script, with Pyxis for the container.

Source: Slurm 24.05 `sbatch` and `srun` manual pages; NVIDIA/pyxis README (`--container-image`,
`--container-mounts`).
"""

from __future__ import annotations

import re
import shlex

from autoparallel.errors import bad_value
from autoparallel.exporting.launchers.start import RUN, Start
from autoparallel.exporting.program import one_line

_OPTIONS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "time_limit": "time",
}
"""Setting of the site -> option of `sbatch`."""


def slurm_files(start: Start) -> dict[str, str]:
    """`job.sbatch`: `sbatch job.sbatch` in its folder runs the job, with `profile.sh` the other."""
    directives = {
        "job-name": re.sub(r"[^\w.-]+", "-", start.name),
        "nodes": str(start.num_nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(start.gpus_per_node),
        **{option: start.word(name) for name, option in _OPTIONS.items() if start.word(name)},
        "output": "%x-%j.out",
    }
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH --{option}={value}" for option, value in directives.items()),
        "#SBATCH --exclusive",
        f"# Submit it from its own folder: sbatch job.sbatch [{RUN} or another script there].",
        "set -euo pipefail",
        'here="${SLURM_SUBMIT_DIR:?started by sbatch}"',
        f'script="${{1:-{RUN}}}"',
        '[ -f "$here/$script" ] || { echo "no $script in $here" >&2; exit 2; }',
        "# One task a node; torchrun starts the ranks of its node.",
        'export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
        'export MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))"',
        'export NNODES="$SLURM_NNODES"',
        f"srun --kill-on-bad-exit=1 {_container(start)}bash -c \\",
        '  \'export NODE_RANK="$SLURM_NODEID"; exec bash "$0"\' "$here/$script"',
    ]
    return {"job.sbatch": "\n".join(lines) + "\n"}


def _container(start: Start) -> str:
    """Options of `srun` for the site's image and mounts; the launch folder is always mounted."""
    site = start.site
    words = []
    if site.work_dir:
        words.append(shlex.quote(f"--chdir={one_line('site.work_dir', site.work_dir)}"))
    if not site.image and site.mounts:
        rule = "needs an image: Slurm mounts into a container only"
        raise bad_value("site.mounts", site.mounts[0], rule, "name site.image or leave mounts out")
    if site.image:
        mounts = [":".join(part for part in mount if part) for mount in start.mounts()]
        words.append(shlex.quote(f"--container-image={one_line('site.image', site.image)}"))
        given = "".join(f"{shlex.quote(mount)}," for mount in mounts)
        words.append(f'--container-mounts={given}"$here:$here"')
    return "".join(f"{word} \\\n  " for word in words)
