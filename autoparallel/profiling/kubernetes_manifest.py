"""The objects of a trial on Kubernetes, as plain data for `kubectl create -f -`.

An indexed Job with one pod a node, a headless Service by which pods find the first, and a ConfigMap
with the job, the worker's own code and the script that starts it. The image needs torch and
megatron-core only. The first pod that fails ends the Job (`backoffLimit: 0`).

Source: kubernetes.io, Jobs (indexed completion mode, pod hostnames), ConfigMaps (1 MiB);
kueue.sigs.k8s.io, running a Job (label, suspend).
"""

from __future__ import annotations

import base64
import io
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

from autoparallel.errors import bad_value
from autoparallel.profiling.command import ARGUMENTS_FILE, argv, torchrun_variables
from autoparallel.profiling.errand import Work, gpus_per_node, ranks_per_node
from autoparallel.profiling.job import Job
from autoparallel.profiling.parcel import worker_files
from autoparallel.profiling.slurm_script import START_ALLOWANCE_S, Place

GIVEN, TRIAL = "/etc/autoparallel", "/trial"
"""Where a pod sees the ConfigMap, and its own scratch folder."""
START_FILE, WORKER_FILE, JOB_FILE = "start.sh", "worker.zip", "job.json"
PORT = 29500
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def objects(name: str, job: Work, place: Place) -> dict[str, Any]:
    """Everything of a trial, as one list.

    Raises:
        ConfigError: no image, part of a node, or a word of the site that Kubernetes refuses.
    """
    if not place.site.image:
        raise bad_value("site image", "", "is empty", "name one that has torch and megatron-core")
    nodes = _nodes(job, place)
    items = [_config_map(name, job, place), _job(name, job, place, nodes)]
    if nodes > 1:
        items.append(_service(name, job))
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _nodes(job: Work, place: Place) -> int:
    per_node = ranks_per_node(job, place.gpus_per_node)
    if job.processes % per_node:
        rule = f"is not whole nodes of {per_node}"
        raise bad_value("num_gpus", job.processes, rule, f"use a multiple of {per_node}")
    return job.processes // per_node


def _labels(job: Work) -> dict[str, str]:
    return {"app.kubernetes.io/managed-by": "autoparallel", "autoparallel/trial": job.trial}


def _config_map(name: str, job: Work, place: Place) -> dict[str, Any]:
    texts = {JOB_FILE: job.text(), START_FILE: start_script(name, job, place)}
    found: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": _labels(job)},
        "data": texts,
    }
    if job.command:
        texts[ARGUMENTS_FILE] = "".join(f"{word}\n" for word in job.arguments)
    else:
        found["binaryData"] = {WORKER_FILE: base64.b64encode(_zipped()).decode("ascii")}
    return found


def _zipped() -> bytes:
    """The worker's files, which Python imports from the archive as they are."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in worker_files().items():
            archive.writestr(path, content)
    return stream.getvalue()


def start_script(name: str, job: Work, place: Place) -> str:
    """What every pod runs: torchrun with this node's place, or the user's own command."""
    one_node = _nodes(job, place) == 1
    if isinstance(job, Job) and job.command:
        words = argv(job, Path(GIVEN), place.gpus_per_node)
    else:
        run = ["-m", "torch.distributed.run", "-m", "autoparallel.profiling.worker", TRIAL]
        words = [place.python, *run]
    lines = [
        "#!/bin/sh",
        "set -e",
        f"cp {GIVEN}/{JOB_FILE} {TRIAL}/{JOB_FILE}",
        "export PET_NODE_RANK=${JOB_COMPLETION_INDEX:-0}",
        f"export PET_MASTER_ADDR={'127.0.0.1' if one_node else f'{name}-0.{name}'}",
        f"export PET_MASTER_PORT={PORT}",
        *([] if job.command else [f"export PYTHONPATH={GIVEN}/{WORKER_FILE}"]),
        f"cd {shlex.quote(place.site.work_dir or TRIAL)}",
        f"exec {shlex.join(words)}",
    ]
    return "\n".join(lines) + "\n"


def _job(name: str, job: Work, place: Place, nodes: int) -> dict[str, Any]:
    labels, queue = _labels(job), place.site.queue
    if queue and not _NAME.fullmatch(queue):
        raise bad_value("site queue", queue, "is not a name as Kubernetes has them")
    own = {**labels, **({"kueue.x-k8s.io/queue-name": queue} if queue else {})}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": own},
        "spec": {
            "completions": nodes,
            "parallelism": nodes,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "suspend": bool(queue),
            "ttlSecondsAfterFinished": 3600,
            "template": {"metadata": {"labels": labels}, "spec": _pod(name, job, place, nodes)},
        },
    }


def _pod(name: str, job: Work, place: Place, nodes: int) -> dict[str, Any]:
    mounts, volumes = _site_volumes(place)
    mounts += [
        {"name": "given", "mountPath": GIVEN, "readOnly": True},
        {"name": "trial", "mountPath": TRIAL},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    volumes += [
        {"name": "given", "configMap": {"name": name}},
        {"name": "trial", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    container: dict[str, Any] = {
        "name": "ranks",
        "image": place.site.image,
        "command": ["sh", f"{GIVEN}/{START_FILE}"],
        "env": _environment(job, place),
        "volumeMounts": mounts,
    }
    if place.gpus:
        container["resources"] = {
            "limits": {"nvidia.com/gpu": gpus_per_node(job, place.gpus_per_node)}
        }
    return {
        "restartPolicy": "Never",
        "subdomain": name,
        "activeDeadlineSeconds": int(job.timeout_s + START_ALLOWANCE_S),
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": volumes,
    }


def _environment(job: Work, place: Place) -> list[dict[str, str]]:
    variables = {
        **place.site.environment,
        **torchrun_variables(job.processes, ranks_per_node(job, place.gpus_per_node)),
        "PYTHONUNBUFFERED": "1",
        **job.environment,
    }
    return [{"name": name, "value": value} for name, value in variables.items()]


def _site_volumes(place: Place) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`/host/path:/inside` mounts a folder of the node, `claim:/inside` a volume claim."""
    mounts, volumes = [], []
    for i, pair in enumerate(place.site.mounts):
        source, colon, inside = pair.partition(":")
        if not colon or not inside.startswith("/") or not source:
            raise bad_value("site mounts", pair, "is not SOURCE:/path", "write /data:/data")
        if source.startswith("/"):
            volume: dict[str, Any] = {"hostPath": {"path": source}}
        elif _NAME.fullmatch(source):
            volume = {"persistentVolumeClaim": {"claimName": source}}
        else:
            raise bad_value("site mounts", pair, "is neither an absolute path nor a claim's name")
        mounts.append({"name": f"site-{i}", "mountPath": inside})
        volumes.append({"name": f"site-{i}", **volume})
    return mounts, volumes


def _service(name: str, job: Work) -> dict[str, Any]:
    """Headless: gives the pods their names in DNS."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": _labels(job)},
        "spec": {"clusterIP": "None", "selector": {"job-name": name}},
    }
