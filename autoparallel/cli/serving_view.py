"""A serving plan on screen: the table, what to take, what binds it, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoparallel.cli import screen
from autoparallel.cli.screen import Column, Line, firm, prose
from autoparallel.units import GIB

if TYPE_CHECKING:
    from autoparallel.request import ServingRequest
    from autoparallel.serving_plan import ServingEntry, ServingPlan, Worker

SHOWN_RULES = 5
PARTS_SHOWN = 4


def first_line(request: ServingRequest) -> str:
    """What is asked and what was assumed; defaults are marked with a star."""
    taken = set(request.assumptions)
    gpus = f"{request.num_gpus}" if request.num_gpus else "fewest"
    shown = {
        "": f"{request.model.name} on {gpus} x {request.cluster.gpu.name}",
        "cluster": request.cluster.name,
        "backend": " ".join(request.backends),
        "precision": " or ".join(request.precisions),
        "kv": "KV " + " or ".join(request.kv_dtypes),
        "lengths": f"{request.input_tokens} + {request.output_tokens} tokens",
        "load": _load(request),
        "limits": _limits(request),
        "percentile": f"limits on the {request.percentile}",
        "objective": request.objective,
        "disaggregated": f"disaggregated {request.disaggregated}",
        "space": f"space {request.space_name}",
    }
    if request.prefill_cluster:
        where = f"{request.prefill_gpus} x {request.prefill_cluster.gpu.name}"
        shown[""] += f" with {where} for prefill"
    words = [text + "*" * (key in taken) for key, text in shown.items()]
    return ", ".join(words) + (" (* default)" if taken else "")


def _load(request: ServingRequest) -> str:
    if request.trace:
        return f"trace of {request.trace.rpartition('/')[2]}"
    if request.request_rate is not None:
        return f"{request.request_rate:g} requests/s at random"
    if request.concurrency:
        return f"closed loop of {request.concurrency}"
    return "closed loop, as many as the limits allow"


def _limits(request: ServingRequest) -> str:
    names = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2e_ms": "end to end"}
    given = [
        f"{word} <= {getattr(request, name):g} ms"
        for name, word in names.items()
        if getattr(request, name) is not None
    ]
    return ", ".join(given) or "no latency limit"


def worker_text(worker: Worker) -> str:
    """A kind of replica in one word: `2x tp4 b64`."""
    sizes = (
        ("tp", worker.tensor_model_parallel_size),
        ("pp", worker.pipeline_model_parallel_size),
        ("dp", worker.attention_data_parallel_size),
        ("ep", worker.expert_model_parallel_size),
    )
    words = [f"{name}{size}" for name, size in sizes if size > 1 or name == "tp"]
    words.append(f"batch{worker.max_batch_size}")
    if worker.role != "decode":
        words.append(f"tokens{worker.max_num_tokens}")
    role = "" if worker.role == "aggregated" else f"{worker.role} "
    return f"{role}{worker.replicas} x {' '.join(words)}"


def deployment(entry: ServingEntry) -> str:
    """All workers of a deployment."""
    return " | ".join(worker_text(worker) for worker in entry.workers)


def table(labels: Sequence[str], entries: Sequence[ServingEntry]) -> list[Line]:
    """One row a deployment; on a narrow terminal the workers have a line of their own."""
    numbers = [
        Column(head="tok/s", cells=[_amount(e.tokens_per_s) for e in entries]),
        Column(head="tok/s/GPU", cells=[_amount(e.tokens_per_s_per_gpu) for e in entries]),
        Column(head="tok/s/user", cells=[_of(e.tokens_per_s_per_user, 1) for e in entries]),
        Column(head="TTFT ms", cells=[_of(e.ttft_ms, 0) for e in entries]),
        Column(head="TPOT ms", cells=[_of(e.tpot_ms, 1) for e in entries]),
        Column(head="req/s", cells=[_of(e.load, 2) for e in entries]),
        Column(head="GPUs", cells=[str(e.gpus) for e in entries]),
        Column(head="GiB", cells=[_of((e.memory_bytes or 0.0) / GIB, 1) for e in entries]),
        Column(head="P(fits)", cells=[_of(e.fits_probability, 2) for e in entries]),
    ]
    if any(e.usd_per_million_tokens is not None for e in entries):
        prices = [_of(e.usd_per_million_tokens, 2) for e in entries]
        numbers.append(Column(head="$/M tok", cells=prices))
    kinds = [f"{e.backend} {e.precision}/{e.kv_dtype}" for e in entries]
    head = [
        Column(head="#", cells=labels, right=False),
        Column(head="backend", cells=kinds, right=False),
    ]
    workers = Column(head="workers", cells=[deployment(e) for e in entries], right=False)
    if sum(c.width + 2 for c in (*head, workers, *numbers)) <= screen.width():
        return screen.rows([*head, workers, *numbers])
    lines = screen.rows([*head, *numbers])
    out = [lines[0]]
    for line, text in zip(lines[1:], workers.cells, strict=True):
        out += [line, [("   " + text, "cyan")]]
    return out


def _of(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _amount(value: float | None) -> str:
    """A rate with the digits it is worth."""
    return _of(value, 0 if value is None or value >= 100 else 1 if value >= 1 else 3)


BINDS = {
    "ttft_ms": "the TTFT limit stops more",
    "tpot_ms": "the TPOT limit stops more",
    "e2e_ms": "the end-to-end limit stops more",
    "kv_cache": "the KV cache is full",
    "load": "the load is what was asked",
    "max_batch_size": "the largest batch of the space is reached",
    "compute": "more requests would not make it faster",
}


def decision(entry: ServingEntry, tied: int, request: ServingRequest) -> list[Line]:
    """What to take, in one sentence."""
    text = (
        f"Take {firm(entry.backend)} {entry.mode}, {firm(deployment(entry))}: "
        f"{_amount(entry.tokens_per_s)} tokens/s ({_amount(entry.tokens_per_s_per_gpu)} a GPU, "
        f"{_of(entry.tokens_per_s_per_user, 1)} a user) at {entry.concurrency:,.0f} requests in "
        f"flight, TTFT {_of(entry.ttft_ms, 0)} ms, TPOT {_of(entry.tpot_ms, 1)} ms"
    )
    if entry.usd_per_million_tokens is not None:
        text += f", USD {entry.usd_per_million_tokens:.2f} a million tokens"
    text += f"; {BINDS.get(entry.binding_constraint or '', entry.binding_constraint)}."
    if tied:
        others = "1 other (=) is" if tied == 1 else f"{tied} others (=) are"
        text += f" {others} within the model's resolution of it."
    idle = request.num_gpus + request.prefill_gpus - entry.gpus
    if request.num_gpus and idle > 0:
        text += f" {idle} of {request.num_gpus + request.prefill_gpus} GPUs stay idle."
    return prose(text, "bold green")


def shares(entry: ServingEntry) -> list[Line]:
    """Where a decode step and a prompt step spend their time."""
    lines: list[Line] = []
    for kind in ("decode", "prompt"):
        parts = {k: v for k, v in (entry.parts or {}).items() if k.startswith(kind)}
        total = sum(parts.values())
        if total > 0:
            named = sorted(parts.items(), key=lambda item: -item[1])[:PARTS_SHOWN]
            words = [
                f"{k.removeprefix(kind + '_').removesuffix('_s').replace('_', ' ')} {v / total:.0%}"
                for k, v in named
                if v > 0.005 * total
            ]
            lines += prose(f"A {kind} step of 1: {total * 1e3:.1f} ms, {', '.join(words)}.", "dim")
    return lines


def sieve(plan: ServingPlan) -> list[Line]:
    """How many deployments were looked at, how fast, and which rules left most out."""
    rules = [firm(f"{rule} {count:,}") for rule, count in list(plan.pruned.items())[:SHOWN_RULES]]
    text = (
        f"{plan.considered:,} deployments considered, {plan.evaluated:,} evaluated, "
        f"{plan.feasible:,} fit and keep the limits, in {plan.search_s:.2f} s. "
        f"Left out by rule: {', '.join(rules) or 'none'}."
    )
    return prose(text, "dim")
