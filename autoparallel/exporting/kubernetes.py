"""Kubernetes manifests of a deployment: a workload and a service for every kind of worker.

Replicas within a node are a `Deployment`; replicas over several nodes are a `LeaderWorkerSet`
(leaderworkerset.x-k8s.io/v1), whose index and leader address the engines read from variables.
"""

from __future__ import annotations

from typing import Any

import yaml

from autoparallel.errors import ConfigError
from autoparallel.exporting import sglang, trtllm, vllm
from autoparallel.exporting.program import dns_name
from autoparallel.exporting.serving import COORDINATION_PORT, FIRST_PORT, Deployment, quoted
from autoparallel.serving_plan import Worker

IMAGES = {"vllm": vllm.IMAGE, "sglang": sglang.IMAGE, "tensorrt-llm": trtllm.IMAGE}
SHARED_MEMORY = "32Gi"


def files(deployed: Deployment) -> dict[str, str]:
    """`serving.yaml` with all manifests."""
    parts = [part for worker in deployed.entry.workers for part in _manifests(deployed, worker)]
    return {"serving.yaml": yaml.safe_dump_all(parts, sort_keys=False, width=100)}


def _manifests(deployed: Deployment, worker: Worker) -> list[dict[str, Any]]:
    """Configuration where the engine reads a file, workload, service."""
    name = _name(deployed, worker)
    found = []
    if deployed.entry.backend == "tensorrt-llm":
        values = trtllm.text(trtllm.settings(deployed, worker))
        data = {"engine.yaml": values}
        found.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        )
    return [*found, _workload(deployed, worker, name), _service(name)]


def _name(deployed: Deployment, worker: Worker) -> str:
    return dns_name(deployed.checkpoint.rpartition("/")[2], f"-{worker.role}")


def _workload(deployed: Deployment, worker: Worker, name: str) -> dict[str, Any]:
    node = deployed.nodes_of[worker.role]
    nodes = max(-(-worker.gpus // node), 1)
    template = _template(deployed, worker, name, nodes)
    meta = {"name": name, "labels": {"app": name}}
    if nodes == 1:
        spec = {"replicas": worker.replicas, "selector": {"matchLabels": {"app": name}}}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {**spec, "template": template},
        }
    group = {"size": nodes, "workerTemplate": template}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": meta,
        "spec": {"replicas": worker.replicas, "leaderWorkerTemplate": group},
    }


def _template(deployed: Deployment, worker: Worker, name: str, nodes: int) -> dict[str, Any]:
    gpus = {"nvidia.com/gpu": worker.gpus // nodes}
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}}
    ]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if deployed.entry.backend == "tensorrt-llm":
        volumes.append({"name": "engine", "configMap": {"name": name}})
        mounts.append({"name": "engine", "mountPath": "/engine"})
    environment = [{"name": k, "value": v} for k, v in deployed.environment.items()]
    token = {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}}
    container = {
        "name": "server",
        "image": IMAGES[deployed.entry.backend],
        "command": ["bash", "-c", 'exec "$@"', "--"] if nodes == 1 else ["bash", "-c"],
        "args": _command(deployed, worker, nodes),
        "env": [*environment, {"name": "HF_TOKEN", "valueFrom": token}],
        "ports": [{"containerPort": FIRST_PORT}],
        "resources": {"limits": gpus, "requests": dict(gpus)},
        "readinessProbe": {"httpGet": {"path": "/health", "port": FIRST_PORT}},
        "volumeMounts": mounts,
    }
    if nodes > 1:
        del container["readinessProbe"]
    return {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [container], "volumes": volumes},
    }


def _command(deployed: Deployment, worker: Worker, nodes: int) -> list[str]:
    """The server's command; over several nodes one shell line that reads the set's variables."""
    backend, model = deployed.entry.backend, deployed.checkpoint
    place = ["--host", "0.0.0.0", "--port", str(FIRST_PORT)]
    if backend == "vllm":
        tokens = ["vllm", "serve", model, *vllm.arguments(deployed, worker)]
        joined = vllm.set_line(worker, nodes, COORDINATION_PORT) if nodes > 1 else ""
    elif backend == "sglang":
        tokens = ["python3", "-m", "sglang.launch_server", "--model-path", model]
        tokens += sglang.arguments(deployed, worker)
        joined = sglang.set_line(nodes, COORDINATION_PORT) if nodes > 1 else ""
    else:
        tokens = ["trtllm-serve", model, "--config", "/engine/engine.yaml"]
        joined = ""
    tokens += place
    if nodes == 1:
        return tokens
    if not joined:
        raise ConfigError(
            f"export: {backend} over {nodes} nodes has no plain Kubernetes form; use Dynamo"
        )
    return [f"{quoted(tokens)} {joined}"]


def _service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": FIRST_PORT}]},
    }
