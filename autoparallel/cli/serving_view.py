"""A serving plan on screen: the table, what to take, what binds it, and what was left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoparallel.cli import screen
from autoparallel.cli.screen import Column, Line, firm, prose
from autoparallel.constants import NORMAL_90
from autoparallel.counts import counted
from autoparallel.reporting import serving_wording
from autoparallel.reporting.serving_wording import deployment, outcome, rate
from autoparallel.reporting.wording import number
from autoparallel.units import GIB

if TYPE_CHECKING:
    from autoparallel.inference.calibrated import ServingCalibration
    from autoparallel.request import ServingRequest
    from autoparallel.serving_plan import ServingEntry, ServingPlan

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


def table(labels: Sequence[str], entries: Sequence[ServingEntry]) -> list[Line]:
    """One row a deployment; on a narrow terminal the workers have a line of their own."""
    numbers = [
        Column(head="tok/s", cells=[rate(e.tokens_per_s) for e in entries]),
        Column(head="tok/s/GPU", cells=[rate(e.tokens_per_s_per_gpu) for e in entries]),
        Column(head="tok/s/user", cells=[number(e.tokens_per_s_per_user, 1) for e in entries]),
        Column(head="TTFT ms", cells=[number(e.ttft_ms, 0) for e in entries]),
        Column(head="TPOT ms", cells=[number(e.tpot_ms, 1) for e in entries]),
        Column(head="req/s", cells=[number(e.load, 2) for e in entries]),
        Column(head="GPUs", cells=[str(e.gpus) for e in entries]),
        Column(head="GiB", cells=[number((e.memory_bytes or 0.0) / GIB, 1) for e in entries]),
        Column(head="P(fits)", cells=[number(e.fits_probability, 2) for e in entries]),
    ]
    if any(e.usd_per_million_tokens is not None for e in entries):
        prices = [number(e.usd_per_million_tokens, 2) for e in entries]
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


def decision(entry: ServingEntry, tied: int, request: ServingRequest) -> list[Line]:
    """What to take, in one sentence, and what else there is to know before."""
    text = f"Take {firm(entry.backend)} {entry.mode}, {firm(deployment(entry))}: {outcome(entry)}."
    if tied:
        verb = "is" if tied == 1 else "are"
        text += f" {counted(tied, 'other')} (=) {verb} within the model's resolution of it."
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


def rests_on(found: ServingCalibration, entry: ServingEntry) -> list[Line]:
    """How far the latencies of `entry` may be off, and whose figures that rests on."""
    ranges = []
    for name in ("ttft_ms", "tpot_ms"):
        value = getattr(entry, name)
        if value is not None:
            kind = name.removesuffix("_ms")
            factor = math.exp(NORMAL_90 * getattr(found.spread, kind))
            ranges.append(f"{kind.upper()} {value / factor:,.1f} to {value * factor:,.1f} ms")
    text = f"With 90 % {' and '.join(ranges)}. " if ranges else ""
    return prose(f"{text}{serving_wording.rests_on(found)}", "dim")


def sieve(plan: ServingPlan) -> list[Line]:
    """How many deployments were looked at, how fast, and which rules left most out."""
    rules = [firm(f"{rule} {count:,}") for rule, count in list(plan.pruned.items())[:SHOWN_RULES]]
    text = (
        f"{counted(plan.considered, 'deployment')} considered, {plan.evaluated:,} evaluated, "
        f"{plan.feasible:,} fit and keep the limits, in {plan.search_s:.2f} s. "
        f"Left out by rule: {', '.join(rules) or 'none'}."
    )
    return prose(text, "dim")
