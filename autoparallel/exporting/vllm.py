"""`vllm serve` for every replica of a deployment.

Flags are those of vLLM 0.33.0, asked of its own parser (`profiles/serving_flags.json`).
"""

from __future__ import annotations

import json

from autoparallel.counts import counted
from autoparallel.errors import ConfigError
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

VERSION = "0.33.0"
IMAGE = f"vllm/vllm-openai:v{VERSION}"
KV_DTYPES = {"bf16": "auto", "fp8": "fp8"}
_NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}


def arguments(deployed: Deployment, worker: Worker) -> tuple[str, ...]:
    """The engine's flags of one worker, without the model, the place and the port."""
    sizes = {
        "--tensor-parallel-size": worker.tensor_model_parallel_size,
        "--pipeline-parallel-size": worker.pipeline_model_parallel_size,
    }
    if worker.attention_data_parallel_size > 1:
        sizes["--data-parallel-size"] = worker.attention_data_parallel_size
    tokens = [x for flag, size in sizes.items() for x in (flag, str(size))]
    if worker.expert_model_parallel_size > 1:
        tokens.append("--enable-expert-parallel")
    tokens += ["--max-num-seqs", str(worker.max_batch_size)]
    tokens += ["--max-num-batched-tokens", str(worker.max_num_tokens), "--enable-chunked-prefill"]
    tokens += ["--max-model-len", str(deployed.max_model_len)]
    tokens += ["--kv-cache-dtype", KV_DTYPES[deployed.entry.kv_dtype]]
    tokens += ["--gpu-memory-utilization", f"{deployed.memory_fraction:g}"]
    caching = "--enable-prefix-caching" if deployed.prefix_caching else "--disable-prefix-caching"
    tokens.append(caching)
    if not deployed.published_precision and deployed.entry.precision in QUANTIZATION:
        tokens += ["--quantization", QUANTIZATION[deployed.entry.precision]]
    tokens += ["--cudagraph-capture-sizes", *map(str, graph_sizes(worker.max_batch_size))]
    if worker.role != "aggregated":
        tokens += ["--kv-transfer-config", json.dumps(_NIXL)]
    return tuple(tokens)


def files(deployed: Deployment) -> dict[str, str]:
    """`run.sh`, and one file of arguments a kind of worker, one token a line."""
    placed = servers(deployed)
    nodes = node_count(placed)
    commands = [line for server in placed for line in _lines(deployed, server, nodes)]
    head = [f"vLLM {VERSION}: pip install vllm=={VERSION}", f"{counted(len(placed), 'server')}."]
    if deployed.disaggregated:
        head += ["Prefill and decode servers answer together behind a proxy for the NixlConnector,"]
        head += ["such as vLLM's toy_proxy_server.py, or Dynamo's frontend (launch/dynamo)."]
    elif len(placed) > 1:
        head += ["Every server answers alone; put any HTTP load balancer in front."]
    texts = {"run.sh": node_script(head, commands, deployed.environment)}
    for worker in deployed.entry.workers:
        listed = (deployed.checkpoint, *arguments(deployed, worker))
        texts[f"{worker.role}.args.txt"] = "\n".join(listed) + "\n"
    return texts


def _lines(deployed: Deployment, server: Server, nodes: int) -> list[tuple[int, str]]:
    """The command of a server on each of its nodes."""
    own = ["vllm", "serve", deployed.checkpoint, *arguments(deployed, server.worker)]
    lines = []
    for rank, (node, gpus) in enumerate(server.places):
        tokens = own + multi_node(server, rank, nodes)
        if rank == 0:
            tokens += ["--host", "0.0.0.0", "--port", str(server.port)]
        prefix = visible(gpus)
        if server.worker.role != "aggregated":
            prefix += f" VLLM_NIXL_SIDE_CHANNEL_PORT={5600 + 64 * server.index}"
        lines.append((node, f"{prefix} {quoted(tokens)}"))
    return lines


def multi_node(server: Server, rank: int, nodes: int) -> list[str]:
    """What joins the nodes of one server: copies of the attention spread, or ranks spread."""
    worker = server.worker
    if server.nodes == 1:
        return []
    leader, port = host(server.places[0][0], nodes), str(COORDINATION_PORT + server.index)
    copies = worker.attention_data_parallel_size
    if copies == 1:
        joined = ["--nnodes", str(server.nodes), "--node-rank", str(rank)]
        joined += ["--master-addr", leader, "--master-port", port]
        return joined + (["--headless"] if rank else [])
    local, rest = divmod(copies, server.nodes)
    if rest:
        raise ConfigError(
            f"export: {copies} attention copies do not spread over {server.nodes} nodes of plain "
            "vLLM; export another rank of the plan or --to sglang"
        )
    joined = ["--data-parallel-size-local", str(local), "--data-parallel-address", leader]
    joined += ["--data-parallel-rpc-port", port]
    return joined + (
        ["--headless", "--data-parallel-start-rank", str(rank * local)] if rank else []
    )


def set_line(worker: Worker, nodes: int, port: int) -> str:
    """`multi_node` as shell text inside a LeaderWorkerSet, the same on every node."""
    leader, rank = '"$LWS_LEADER_ADDRESS"', "$LWS_WORKER_INDEX"
    follow = "$([ $LWS_WORKER_INDEX -gt 0 ] && echo --headless"
    local, rest = divmod(worker.attention_data_parallel_size, nodes)
    if worker.attention_data_parallel_size == 1:
        joined = f"--nnodes {nodes} --node-rank {rank} --master-addr {leader} --master-port {port}"
        return f"{joined} {follow})"
    if rest:
        raise ConfigError(f"export: attention copies do not spread over {nodes} nodes")
    start = f"--data-parallel-start-rank $((LWS_WORKER_INDEX * {local})))"
    joined = f"--data-parallel-size-local {local} --data-parallel-address {leader}"
    return f"{joined} --data-parallel-rpc-port {port} {follow} {start}"
