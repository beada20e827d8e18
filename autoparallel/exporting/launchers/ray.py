"""Ray: a job that places one actor on every node and starts the node script in each.

Source: Ray documentation, "Ray Jobs CLI" (`ray job submit`) and "Environment Dependencies"
(`runtime_env`, `image_uri`).
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from autoparallel.errors import bad_value
from autoparallel.exporting.launchers.start import RUN, Start
from autoparallel.exporting.program import one_line


def ray_files(start: Start) -> dict[str, str]:
    """`submit.sh` sends this folder to the cluster at `RAY_ADDRESS` and follows the job."""
    if start.site.mounts:
        rule = "is a mount, which a Ray runtime environment does not have"
        hint = "mount it where Ray's own nodes start, and leave it out of the site"
        raise bad_value("site.mounts", start.site.mounts[0], rule, hint)
    driver = files("autoparallel.exporting.drivers").joinpath("ray_nodes.py").read_text("utf-8")
    return {
        "ray_nodes.py": driver,
        "runtime_env.yaml": yaml.safe_dump(_runtime_env(start), sort_keys=False),
        "submit.sh": _submit(start),
    }


def _runtime_env(start: Start) -> dict[str, Any]:
    """The job's environment; the node scripts export their own variables."""
    image = start.site.image
    found: dict[str, Any] = {"env_vars": {"RAY_DEDUP_LOGS": "0"}}
    return found | ({"image_uri": one_line("site.image", image)} if image else {})


def _submit(start: Start) -> str:
    lines = [
        "#!/usr/bin/env bash",
        f"# Submit to the cluster at RAY_ADDRESS: ./submit.sh [{RUN} or another script here].",
        "set -euo pipefail",
        'here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"',
        'exec ray job submit --working-dir "$here" --runtime-env "$here/runtime_env.yaml" -- \\',
        f'  python ray_nodes.py "${{1:-{RUN}}}" {start.num_nodes} {start.gpus_per_node}',
    ]
    return "\n".join(lines) + "\n"
