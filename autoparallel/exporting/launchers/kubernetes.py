"""Kubernetes: one manifest with a ConfigMap, a headless Service and an Indexed Job.

No operator is needed: pod i of the Job is node i, and the Service gives pod 0 a name.

Source: Kubernetes documentation, "Indexed Job for Parallel Processing with Static Work Assignment"
and "Job with Pod-to-Pod Communication" (batch/v1, stable since 1.24); Kueue documentation for the
queue label.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from autoparallel.errors import bad_value
from autoparallel.exporting.launchers.start import PROFILE, RUN, Start
from autoparallel.exporting.program import dns_name, one_line

MAX_BYTES = 1_000_000
"""Largest content of a ConfigMap (1 MiB with its keys)."""
_FOLDER = "/launch"
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d+):(\d+)")


class _Manifests(yaml.SafeDumper):
    """Files inside a manifest stand as they are, line by line."""


_Manifests.add_representer(
    str,
    lambda to, text: to.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def kubernetes_files(start: Start) -> dict[str, str]:
    """`job.yaml` and `profile.yaml` for `kubectl apply -f`."""
    size = sum(len(text.encode()) for text in start.files.values())
    if size > MAX_BYTES:
        rule = f"bytes of launch files are more than the {MAX_BYTES:,} of a ConfigMap"
        raise bad_value("launch files", size, rule, "mount them from a volume")
    scripts = {RUN: "job.yaml", PROFILE: "profile.yaml"}
    return {file: _manifest(start, script) for script, file in scripts.items()}


def _manifest(start: Start, script: str) -> str:
    name = dns_name(start.name, "-profile" if script == PROFILE else "")
    documents = [_config_map(start, name), _service(start, name), _job(start, name, script)]
    return yaml.dump_all(documents, Dumper=_Manifests, sort_keys=False, width=100)


def _meta(start: Start, name: str) -> dict[str, Any]:
    namespace = start.word("namespace")
    return {"name": name, **({"namespace": namespace} if namespace else {})}


def _config_map(start: Start, name: str) -> dict[str, Any]:
    data = dict(start.files)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(start, name), "data": data}


def _service(start: Start, name: str) -> dict[str, Any]:
    spec = {"clusterIP": "None", "selector": {"job-name": name}, "publishNotReadyAddresses": True}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(start, name), "spec": spec}


def _job(start: Start, name: str, script: str) -> dict[str, Any]:
    meta, queue = _meta(start, name), start.word("queue")
    if queue:
        meta["labels"] = {"kueue.x-k8s.io/queue-name": queue}
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": start.num_nodes,
        "parallelism": start.num_nodes,
        "backoffLimit": 0,
    }
    if start.site.time_limit:
        spec["activeDeadlineSeconds"] = _seconds(start.site.time_limit)
    if queue:
        spec["suspend"] = True
    spec["template"] = {"spec": _pod(start, name, script)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}


def _pod(start: Start, name: str, script: str) -> dict[str, Any]:
    site = start.site
    if not site.image:
        rule = "is empty, and a pod needs an image"
        raise bad_value("site.image", site.image, rule, "take --site kubernetes or name one")
    volumes, mounted = _volumes(start, name)
    rank = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    container: dict[str, Any] = {
        "name": "node",
        "image": one_line("site.image", site.image),
        "command": ["bash", f"{_FOLDER}/{script}"],
        **({"workingDir": one_line("site.work_dir", site.work_dir)} if site.work_dir else {}),
        "env": [
            {"name": "NNODES", "value": str(start.num_nodes)},
            {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": rank}}},
            {"name": "MASTER_ADDR", "value": f"{name}-0.{name}"},
            {"name": "MASTER_PORT", "value": "29500"},
        ],
        "resources": {"limits": {"nvidia.com/gpu": start.gpus_per_node}},
        "volumeMounts": mounted,
    }
    return {
        "subdomain": name,
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": volumes,
    }


def _volumes(start: Start, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and their places: the launch files, shared memory, and the site's own.

    A mount whose source is a path is a folder of the host; any other word is a volume claim.
    """
    volumes: list[dict[str, Any]] = [
        {"name": "launch", "configMap": {"name": name}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounted: list[dict[str, Any]] = [
        {"name": "launch", "mountPath": _FOLDER},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for index, (source, place, options) in enumerate(start.mounts()):
        label, path = f"site-{index}", source.startswith("/")
        kind = {"hostPath": {"path": source}} if path else _claim(source)
        volumes.append({"name": label, **kind})
        mounted.append({"name": label, "mountPath": place, "readOnly": "ro" in options.split(",")})
    return volumes, mounted


def _claim(source: str) -> dict[str, Any]:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", source):
        rule = "is neither an absolute path nor the name of a volume claim"
        raise bad_value("site.mounts", source, rule, "write /host/path:/place or claim:/place")
    return {"persistentVolumeClaim": {"claimName": source}}


def _seconds(clock: str) -> int:
    match = _CLOCK.fullmatch(clock)
    if not match:
        rule = "is not [DAYS-]HOURS:MINUTES:SECONDS"
        raise bad_value("site.time_limit", clock, rule, "write it as 04:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
