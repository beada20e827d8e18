"""NVIDIA Dynamo: its frontend and a worker process for every replica of a deployment.

Flags are those of Dynamo 1.6.1, asked of its own parsers, and of the engine it wraps
(`profiles/serving_flags.json`).
"""

from __future__ import annotations

from autoparallel.exporting import sglang, trtllm, vllm
from autoparallel.exporting.serving import (
    Deployment,
    Server,
    node_count,
    node_script,
    quoted,
    servers,
    visible,
)
from autoparallel.serving_plan import Worker

VERSION = "1.6.1"
SYSTEM_PORT = 8100
NIXL_PORT = 5600
BLOCK_TOKENS = {"vllm": 16, "sglang": 1, "tensorrt-llm": trtllm.TOKENS_PER_BLOCK}
MODULES = {"vllm": "dynamo.vllm", "sglang": "dynamo.sglang", "tensorrt-llm": "dynamo.trtllm"}
MODES = {"aggregated": "agg", "prefill": "prefill", "decode": "decode"}


def frontend(deployed: Deployment) -> tuple[str, ...]:
    """Arguments of `python -m dynamo.frontend`."""
    tokens = ["--http-port", "8000"]
    if deployed.prefix_caching:
        tokens += ["--router-mode", "kv"]
        tokens += ["--kv-cache-block-size", str(BLOCK_TOKENS[deployed.entry.backend])]
        return tuple(tokens)
    return (*tokens, "--router-mode", "least-loaded")


def arguments(deployed: Deployment, worker: Worker) -> tuple[str, ...]:
    """Arguments of a worker process: Dynamo's own and the engine's."""
    backend, model = deployed.entry.backend, deployed.checkpoint
    if backend == "sglang":
        return ("--model-path", model, *sglang.arguments(deployed, worker))
    mode = ("--disaggregation-mode", MODES[worker.role])
    if backend == "vllm":
        return ("--model", model, *mode, *vllm.arguments(deployed, worker))
    return ("--model", model, *mode, "--extra-engine-args", f"{worker.role}.yaml")


def files(deployed: Deployment) -> dict[str, str]:
    """`run.sh`, and the engine's YAML where it takes one.

    Raises:
        ConfigError: a replica that spans nodes in a way the engine has no flags for.
    """
    placed = servers(deployed)
    nodes = node_count(placed)
    start = quoted(["python3", "-m", "dynamo.frontend", *frontend(deployed)])
    commands = [(0, start), *(line for s in placed for line in _lines(deployed, s, nodes))]
    if deployed.entry.backend == "tensorrt-llm":
        commands += trtllm.idle(placed)
    extra = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm"}[deployed.entry.backend]
    head = [f"Dynamo {VERSION}: pip install 'ai-dynamo[{extra}]=={VERSION}'"]
    head += ["etcd and NATS must run; ETCD_ENDPOINTS and NATS_SERVER say where."]
    texts = {"run.sh": node_script(head, commands, deployed.environment)}
    if deployed.entry.backend == "tensorrt-llm":
        for worker in deployed.entry.workers:
            texts[f"{worker.role}.yaml"] = trtllm.text(trtllm.settings(deployed, worker))
    return texts


def _lines(deployed: Deployment, server: Server, nodes: int) -> list[tuple[int, str]]:
    """The worker process of a server on each of its nodes; of TensorRT-LLM's on the first."""
    joins = {"vllm": vllm.multi_node, "sglang": sglang.multi_node}.get(deployed.entry.backend)
    lines = []
    for rank, (node, gpus) in enumerate(server.places):
        tokens = ["python3", "-m", MODULES[deployed.entry.backend]]
        tokens += arguments(deployed, server.worker)
        if joins is not None:
            tokens += joins(server, rank, nodes)
        if joins is None and server.nodes > 1:
            tokens = [*trtllm.spread(server, nodes), *tokens]
        prefix = f"{visible(gpus)} DYN_SYSTEM_PORT={SYSTEM_PORT + server.index}"
        if deployed.entry.backend == "vllm":
            prefix += f" VLLM_NIXL_SIDE_CHANNEL_PORT={NIXL_PORT + 64 * server.index}"
        if deployed.entry.backend == "sglang" and server.worker.role == "prefill":
            port = str(sglang.BOOTSTRAP_PORT + server.index)
            tokens += ["--disaggregation-bootstrap-port", port]
        lines.append((node, f"{prefix} {quoted(tokens)}"))
    return lines if joins is not None or server.nodes == 1 else lines[:1]
