"""What would help when no deployment keeps the limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from autoparallel.inference.search import searched
from autoparallel.inference.space import EXPLANATIONS
from autoparallel.request import ServingRequest
from autoparallel.request.serving import AUTO_GPUS
from autoparallel.serving_plan import ServingEntry
from autoparallel.serving_planning.questions import question
from autoparallel.serving_planning.solving import MOST_GPUS, listed, most_gpus

SEVERAL = ("--gpus", "--request-rate", "--concurrency")
"""Flags that are tried with several values, the nearest first."""
SHARES = (1.0, 0.9, 0.8, 0.65, 0.5, 0.25)
"""Shares of what the limits allow at most that are tried as a lighter load."""


def explanation(rule: str) -> str:
    """What a rule of the space leaves out."""
    return EXPLANATIONS.get(rule, rule)


def rescues(request: ServingRequest) -> Iterator[tuple[str, ServingEntry]]:
    """Flags that change one thing, each with the best deployment it makes possible.

    Of one flag's values only the first that helps, which is the nearest.
    """
    helped: set[str] = set()
    for flags, changed in _changes(request):
        flag = flags.split()[0]
        if flag in helped and flag in SEVERAL:
            continue
        found = searched(question(changed, _gpus(changed)))
        entries, _ = listed(changed, found, 1)
        if entries:
            helped.add(flag)
            yield flags, entries[0]


def too_much(request: ServingRequest, miss: ServingEntry) -> str:
    """Where `--gpus auto` stopped, and about how many GPUs the rate takes; else empty.

    Counted by what `miss`, on as many GPUs as are looked at, carries.
    """
    rate = request.request_rate or 0.0
    if request.num_gpus != AUTO_GPUS or not miss.load or miss.load >= rate:
        return ""
    most = most_gpus(request)
    where = "the cluster ends" if request.cluster.max_gpus == most else "--gpus auto stops"
    taken = miss.gpus * rate / miss.load
    return f"{where} at {most:,} GPUs; {rate:g} requests/s take about {taken:.3g}"


def _gpus(request: ServingRequest) -> int | None:
    """GPUs to ask about: as many as are looked at when the request does not say."""
    return most_gpus(request) if request.num_gpus == AUTO_GPUS else None


def _changes(request: ServingRequest) -> Iterator[tuple[str, ServingRequest]]:
    """Requests that differ in one thing, the least far first."""
    gpu = request.cluster.gpu.peak_flops_per_s
    if "fp8" in gpu and "fp8" not in request.kv_dtypes:
        yield "--kv-dtype fp8", replace(request, kv_dtypes=("fp8",))
    if "fp8" in gpu and request.precisions == ("bf16",):
        yield "--precision fp8", replace(request, precisions=("fp8",))
    if request.disaggregated != "auto" and not request.prefill_cluster:
        yield "--disaggregated auto", replace(request, disaggregated="auto")
    most = request.cluster.max_gpus or MOST_GPUS
    gpus = request.num_gpus or most
    for factor in (2, 4, 8, 16, 32):
        if request.num_gpus and gpus * factor <= most:
            yield f"--gpus {gpus * factor}", replace(request, num_gpus=gpus * factor)
    yield from _lighter(request)


def _lighter(request: ServingRequest) -> Iterator[tuple[str, ServingRequest]]:
    """The same request under a load that the limits leave room for."""
    if request.trace or not (request.request_rate or request.concurrency):
        return
    unloaded = replace(request, request_rate=None, concurrency=0)
    free = searched(question(unloaded, _gpus(request)))
    if not free.good.size:
        return
    rate = float(np.max(free.options.requests_per_s[free.good]))
    clients = float(np.max(free.options.concurrency[free.good]))
    for share in SHARES:
        if request.request_rate and rate * share < request.request_rate:
            less = float(f"{rate * share:.2g}")
            yield f"--request-rate {less:g}", replace(request, request_rate=less)
        if 1 <= int(clients * share) < request.concurrency:
            fewer = int(clients * share)
            yield f"--concurrency {fewer}", replace(request, concurrency=fewer)
