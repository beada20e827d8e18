"""`python -m sglang.launch_server` for every replica of a deployment.

Flags are those of SGLang 0.5.23, asked of its own parser (`profiles/serving_flags.json`). Its
tensor size counts all GPUs of a stage, and its limits are of all attention copies together.
"""

from __future__ import annotations

from autoparallel.counts import counted
from autoparallel.exporting.serving import (
    COORDINATION_PORT,
    QUANTIZATION,
    Deployment,
    Server,
    graph_sizes,
    host,
    node_count,
    node_script,
    quoted,
    servers,
    visible,
)
from autoparallel.serving_plan import Worker

VERSION = "0.5.23"
IMAGE = f"lmsysorg/sglang:v{VERSION}"
KV_DTYPES = {"bf16": "auto", "fp8": "fp8_e4m3"}
BOOTSTRAP_PORT = 8998


def arguments(deployed: Deployment, worker: Worker) -> tuple[str, ...]:
    """The engine's flags of one worker, without the model, the place and the port."""
    copies = worker.attention_data_parallel_size
    tokens = ["--tp-size", str(worker.tensor_model_parallel_size * copies)]
    tokens += ["--pp-size", str(worker.pipeline_model_parallel_size)]
    if copies > 1:
        tokens += ["--attn-dp-size", str(copies)]
    if worker.expert_model_parallel_size > 1:
        tokens += ["--ep-size", str(worker.expert_model_parallel_size)]
    tokens += ["--max-running-requests", str(worker.max_batch_size * copies)]
    budget = str(worker.max_num_tokens * copies)
    tokens += ["--chunked-prefill-size", budget, "--max-prefill-tokens", budget]
    tokens += ["--context-length", str(deployed.max_model_len)]
    tokens += ["--kv-cache-dtype", KV_DTYPES[deployed.entry.kv_dtype]]
    tokens += ["--mem-fraction-static", f"{deployed.memory_fraction:g}"]
    if not deployed.prefix_caching:
        tokens.append("--disable-radix-cache")
    if not deployed.published_precision and deployed.entry.precision in QUANTIZATION:
        tokens += ["--quantization", QUANTIZATION[deployed.entry.precision]]
    tokens += ["--cuda-graph-bs-decode", *map(str, graph_sizes(worker.max_batch_size))]
    if worker.role != "aggregated":
        tokens += ["--disaggregation-mode", worker.role]
        tokens += ["--disaggregation-transfer-backend", "nixl"]
    return tuple(tokens)


def files(deployed: Deployment) -> dict[str, str]:
    """`run.sh`, and one file of arguments a kind of worker, one token a line."""
    placed = servers(deployed)
    nodes = node_count(placed)
    commands = [line for server in placed for line in _lines(deployed, server, nodes)]
    head = [
        f"SGLang {VERSION}: pip install 'sglang=={VERSION}'",
        f"{counted(len(placed), 'server')}.",
    ]
    if deployed.disaggregated or len(placed) > 1:
        head += ["One address for all of them: the router of the package sglang-router."]
    texts = {"run.sh": node_script(head, commands, deployed.environment)}
    for worker in deployed.entry.workers:
        listed = ("--model-path", deployed.checkpoint, *arguments(deployed, worker))
        texts[f"{worker.role}.args.txt"] = "\n".join(listed) + "\n"
    return texts


def _lines(deployed: Deployment, server: Server, nodes: int) -> list[tuple[int, str]]:
    """The command of a server on each of its nodes."""
    own = ["python3", "-m", "sglang.launch_server", "--model-path", deployed.checkpoint]
    own += arguments(deployed, server.worker)
    if server.worker.role == "prefill":
        own += ["--disaggregation-bootstrap-port", str(BOOTSTRAP_PORT + server.index)]
    own += ["--host", "0.0.0.0", "--port", str(server.port)]
    lines = []
    for rank, (node, gpus) in enumerate(server.places):
        tokens = own + multi_node(server, rank, nodes)
        lines.append((node, f"{visible(gpus)} {quoted(tokens)}"))
    return lines


def multi_node(server: Server, rank: int, nodes: int) -> list[str]:
    """What joins the nodes of one server."""
    if server.nodes == 1:
        return []
    leader = host(server.places[0][0], nodes)
    tokens = ["--nnodes", str(server.nodes), "--node-rank", str(rank)]
    return [*tokens, "--dist-init-addr", f"{leader}:{COORDINATION_PORT + server.index}"]


def set_line(nodes: int, port: int) -> str:
    """`multi_node` as shell text inside a LeaderWorkerSet, the same on every node."""
    joined = f"--nnodes {nodes} --node-rank $LWS_WORKER_INDEX"
    return f'{joined} --dist-init-addr "$LWS_LEADER_ADDRESS":{port}'
