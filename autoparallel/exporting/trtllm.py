"""`trtllm-serve` with its YAML for every replica of a deployment.

Keys are those of TensorRT-LLM 1.3 (`TorchLlmArgs`, docs of `trtllm-serve`); the package itself was
not asked, since it comes compiled only. Its tensor size counts all GPUs of a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from autoparallel.counts import counted
from autoparallel.exporting.serving import (
    FIRST_PORT,
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

VERSION = "1.3.0rc29"
IMAGE = f"nvcr.io/nvidia/tensorrt-llm/release:{VERSION}"
KV_DTYPES = {"bf16": "auto", "fp8": "fp8"}
TOKENS_PER_BLOCK = 32


def settings(deployed: Deployment, worker: Worker) -> dict[str, Any]:
    """The YAML of one worker as plain data."""
    copies = worker.attention_data_parallel_size
    stage = worker.tensor_model_parallel_size * copies
    values: dict[str, Any] = {
        "backend": "pytorch",
        "tensor_parallel_size": stage,
        "pipeline_parallel_size": worker.pipeline_model_parallel_size,
    }
    if deployed.experts:
        values["moe_expert_parallel_size"] = worker.expert_model_parallel_size
        values["moe_tensor_parallel_size"] = stage // worker.expert_model_parallel_size
    values |= {
        "enable_attention_dp": copies > 1,
        "max_batch_size": worker.max_batch_size,
        "max_num_tokens": worker.max_num_tokens,
        "max_seq_len": deployed.max_model_len,
        "enable_chunked_prefill": True,
        "kv_cache_config": {
            "dtype": KV_DTYPES[deployed.entry.kv_dtype],
            "free_gpu_memory_fraction": deployed.memory_fraction,
            "tokens_per_block": TOKENS_PER_BLOCK,
            "enable_block_reuse": deployed.prefix_caching,
        },
        "cuda_graph_config": {
            "enable_padding": True,
            "batch_sizes": list(graph_sizes(worker.max_batch_size)),
        },
    }
    if worker.role != "aggregated":
        values["cache_transceiver_config"] = {
            "backend": "DEFAULT",
            "max_tokens_in_buffer": max(deployed.input_tokens, worker.max_num_tokens),
        }
        values["disable_overlap_scheduler"] = worker.role == "prefill"
    return values


def text(values: dict[str, Any]) -> str:
    """Plain YAML in the given order."""
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)


def files(deployed: Deployment) -> dict[str, str]:
    """`run.sh`, a YAML a kind of worker, and the YAML that joins disaggregated servers."""
    placed = servers(deployed)
    nodes = node_count(placed)
    commands = [_line(deployed, server, nodes) for server in placed]
    commands += idle(placed)
    head = [f"TensorRT-LLM {VERSION}, container {IMAGE}", f"{counted(len(placed), 'server')}."]
    if deployed.entry.precision == "nvfp4" or not deployed.published_precision:
        head.append(f"Give a checkpoint in {deployed.entry.precision} in place of the id.")
    if any(server.nodes > 1 for server in placed):
        head.append(
            "Servers on several nodes start from their first one, inside a Slurm allocation."
        )
    texts = {}
    if deployed.disaggregated:
        texts["disagg_config.yaml"] = text(_joined(placed, nodes))
        join = "trtllm-serve disaggregated -c disagg_config.yaml"
        commands.append((0, join))
    texts["run.sh"] = node_script(head, commands, deployed.environment)
    for worker in deployed.entry.workers:
        texts[f"{worker.role}.yaml"] = text(settings(deployed, worker))
    return texts


def _line(deployed: Deployment, server: Server, nodes: int) -> tuple[int, str]:
    """The command of a server, on its first node; `nodes` are all of the deployment."""
    own = ["trtllm-serve", deployed.checkpoint, "--config", f"{server.worker.role}.yaml"]
    own += ["--host", "0.0.0.0", "--port", str(port(server))]
    node, gpus = server.places[0]
    if server.nodes == 1:
        return node, f"{visible(gpus)} {quoted(own)}"
    return node, quoted([*spread(server, nodes), *own])


def spread(server: Server, nodes: int) -> list[str]:
    """What starts a rank on every GPU of a server on several nodes, of all `nodes` there are."""
    each = str(len(server.places[0][1]))
    tokens = ["srun", "--overlap", "--nodes", str(server.nodes)]
    tokens += ["--ntasks", str(server.worker.gpus), "--ntasks-per-node", each]
    if server.nodes < nodes:
        tokens += ["--nodelist", ",".join(host(place, nodes) for place, _ in server.places)]
    return [*tokens, "--mpi", "pmix", "trtllm-llmapi-launch"]


def idle(placed: Sequence[Server]) -> list[tuple[int, str]]:
    """Nodes of spread servers that start nothing themselves, as commands of a node script."""
    if len({server.places[0][0] for server in placed}) == 1:
        return []
    return [(node, "") for server in placed for node, _ in server.places[1:]]


def port(server: Server) -> int:
    """Where a server listens; disaggregated ones leave the first port to what joins them."""
    return server.port + (server.worker.role != "aggregated")


def _joined(placed: tuple[Server, ...], nodes: int) -> dict[str, Any]:
    """What `trtllm-serve disaggregated` reads; node names are to be filled in on several nodes."""

    def side(role: str) -> dict[str, Any]:
        of = [server for server in placed if server.worker.role == role]
        names = ["localhost" if nodes == 1 else f"node{server.places[0][0]}" for server in of]
        urls = [f"{name}:{port(server)}" for name, server in zip(names, of, strict=True)]
        return {"num_instances": len(of), "urls": urls}

    return {
        "hostname": "0.0.0.0",
        "port": FIRST_PORT,
        "backend": "pytorch",
        "context_servers": side("prefill"),
        "generation_servers": side("decode"),
    }
