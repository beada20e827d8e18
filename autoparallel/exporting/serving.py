"""What every serving exporter writes about: a deployment, its place on nodes, its scripts.

An exporter turns a `Deployment` into files (name -> text). Servers that fit a node are packed onto
nodes, larger ones take whole nodes; every server gets a port of its own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autoparallel.model import Model
from autoparallel.request import ServingRequest
from autoparallel.serving_plan import ServingEntry, Worker

FIRST_PORT = 8000
QUANTIZATION = {"fp8": "fp8", "mxfp8": "mxfp8", "nvfp4": "modelopt_fp4", "mxfp4": "mxfp4"}
"""How vLLM and SGLang read a bf16 checkpoint in a narrower precision; nvfp4 needs one made so."""
COORDINATION_PORT = 29500
_HUGGING_FACE = re.compile(r"huggingface\.co/([\w.-]+/[\w.-]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One entry of a serving plan with what its launch files need to know.

    Attributes:
        checkpoint: Hugging Face id of the model where its source names one, else its name.
        max_model_len: Tokens of the longest request, prompt and answer.
        prefix_caching: Whether the plan counts on prompts found in the prefix cache.
        experts: Experts of the model; 0 for a dense one.
        nodes_of: GPUs of a node, by role.
        memory_fraction: Share of the GPU the engine is told to use, as the search assumed.
        published_precision: Whether the checkpoint is already in the plan's precision.
    """

    entry: ServingEntry
    checkpoint: str
    max_model_len: int
    input_tokens: int
    output_tokens: int
    prefix_caching: bool
    experts: int
    nodes_of: Mapping[str, int]
    memory_fraction: float
    published_precision: bool
    request_rate: float | None = None
    environment: Mapping[str, str]

    @property
    def disaggregated(self) -> bool:
        """Whether prefill and decode have workers of their own."""
        return self.entry.mode == "disaggregated"


def deployment(
    request: ServingRequest, entry: ServingEntry, memory_fraction: float, published: str
) -> Deployment:
    """The deployment of a plan's entry.

    Args:
        request: What was asked.
        entry: The chosen entry.
        memory_fraction: What the search told the backend to use.
        published: Precision of the published checkpoint; empty for bf16.
    """
    own = request.cluster.gpus_per_node
    prefill = request.prefill_cluster.gpus_per_node if request.prefill_cluster else own
    return Deployment(
        entry=entry,
        checkpoint=checkpoint(request.model),
        max_model_len=request.longest_tokens,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        prefix_caching=request.prefix_tokens > 0,
        experts=request.model.num_moe_experts,
        nodes_of={"aggregated": own, "decode": own, "prefill": prefill},
        memory_fraction=memory_fraction,
        published_precision=(published or "bf16") == entry.precision,
        request_rate=request.request_rate,
        environment=request.site.environment,
    )


def checkpoint(model: Model) -> str:
    """The Hugging Face id that the model's source names, else the model's name."""
    found = _HUGGING_FACE.search(model.source)
    return found[1] if found else model.name


def graph_sizes(largest: int) -> tuple[int, ...]:
    """Batch sizes to capture CUDA graphs for: sorted, each once, up to and with the largest."""
    dense = {1, 2, 4, *range(8, 257, 8), *range(272, 513, 16), *range(544, 4097, 32)}
    return tuple(sorted({size for size in dense if size < largest} | {largest}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One replica on its nodes.

    Attributes:
        places: Node and GPU numbers on it, one pair a node, the first node leading.
        index: Number among all servers of the deployment.
    """

    worker: Worker
    places: tuple[tuple[int, tuple[int, ...]], ...]
    index: int

    @property
    def port(self) -> int:
        """Where it listens on its first node."""
        return FIRST_PORT + self.index

    @property
    def nodes(self) -> int:
        """Nodes it spans."""
        return len(self.places)


def servers(deployed: Deployment) -> tuple[Server, ...]:
    """Every replica placed: larger ones first, each kind of GPU on nodes of its own."""
    found: list[Server] = []
    free: dict[int, list[int]] = {}
    kinds: dict[int, int] = {}
    for worker in sorted(deployed.entry.workers, key=lambda w: -w.gpus):
        size = deployed.nodes_of[worker.role]
        for _ in range(worker.replicas):
            places = _place(free, kinds, worker.gpus, size)
            found.append(Server(worker=worker, places=places, index=len(found)))
    return tuple(found)


def _place(
    free: dict[int, list[int]], kinds: dict[int, int], gpus: int, node_gpus: int
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """GPUs for one replica, taken from what is free; new nodes are opened as needed."""
    if gpus <= node_gpus:
        fitting = [n for n in free if kinds[n] == node_gpus and len(free[n]) >= gpus]
        node = fitting[0] if fitting else _opened(free, kinds, node_gpus)
        return ((node, tuple(free[node].pop(0) for _ in range(gpus))),)
    nodes = [_opened(free, kinds, node_gpus) for _ in range(-(-gpus // node_gpus))]
    each = gpus // len(nodes)
    return tuple((node, tuple(free[node].pop(0) for _ in range(each))) for node in nodes)


def _opened(free: dict[int, list[int]], kinds: dict[int, int], node_gpus: int) -> int:
    node = len(free)
    free[node] = list(range(node_gpus))
    kinds[node] = node_gpus
    return node


def node_script(
    head: Sequence[str], commands: Iterable[tuple[int, str]], environment: Mapping[str, str]
) -> str:
    """A bash script to run on every node with its number in `NODE_RANK`.

    Args:
        head: Comment lines.
        commands: Node and command; a node's commands run side by side until one ends. An empty
            command is of a node on which others start what runs.
        environment: Variables for all of them.
    """
    by_node: dict[int, list[str]] = {}
    for node, command in commands:
        by_node.setdefault(node, []).extend([command] if command else [])
    lines = ["#!/usr/bin/env bash", *(f"# {line}" for line in head), "set -euo pipefail"]
    lines.append('cd "$(dirname "$0")"')
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    if len(by_node) == 1:
        body = next(iter(by_node.values()))
        lines += [f"{command} &" for command in body]
    else:
        lines += [
            f'# On node N of {len(by_node)}: NODE_RANK=N NODE_HOSTS="host0 host1 ..." bash $0'
        ]
        lines += ['read -r -a hosts <<< "${NODE_HOSTS:?names of all nodes, the first first}"']
        lines += ['case "${NODE_RANK:?number of this node}" in']
        for node, body in sorted(by_node.items()):
            started = [f"  {command} &" for command in body]
            lines += [f"{node})", *(started or ["  exit 0  # started from another node"]), "  ;;"]
        lines += ['*) echo "NODE_RANK $NODE_RANK has no servers" >&2; exit 2 ;;', "esac"]
    return "\n".join([*lines, "wait -n", ""])


def host(node: int, of: int) -> str:
    """A node's name in a script: this machine when there is only one."""
    return "127.0.0.1" if of == 1 else f"${{hosts[{node}]}}"


def visible(gpus: Sequence[int]) -> str:
    """The variable that shows a process only its GPUs."""
    return f"CUDA_VISIBLE_DEVICES={','.join(map(str, gpus))}"


def quoted(tokens: Iterable[str]) -> str:
    """Tokens as one shell line; `${hosts[0]}` stays open for the shell to fill in."""
    return " ".join(t if t.startswith("${hosts") else shlex.quote(t) for t in tokens)


def node_count(found: Sequence[Server]) -> int:
    """Nodes that a deployment's servers stand on."""
    return 1 + max(node for server in found for node, _ in server.places)
