"""Solve a request: search, simulate the short list, keep what keeps the limits."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from autoparallel.inference.calibrated import ServingCalibration
from autoparallel.inference.options import Limits
from autoparallel.inference.refinement import refined
from autoparallel.inference.search import Found, explained, front, miss, searched, short_list, ties
from autoparallel.provenance import provenance
from autoparallel.request import ServingRequest
from autoparallel.request.records import MAX_TOP, whole
from autoparallel.request.serving import AUTO_GPUS
from autoparallel.serving_plan import ServingEntry, ServingPlan
from autoparallel.serving_planning.entries import entry_of
from autoparallel.serving_planning.questions import arrivals, question
from autoparallel.units import MS

TOP = 10
MOST_GPUS = 8192
"""Where the search for the fewest GPUs ends on a cluster of any size."""
MOST_SIMULATED = 40
"""Deployments that are simulated at most."""
GROWTH = 1.125
"""How much more GPUs are tried when a number is not enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """A plan with everything its search kept."""

    request: ServingRequest
    plan: ServingPlan
    found: Found


def solve(request: ServingRequest, *, top: int = TOP) -> Solved:
    """The best deployments of a request, best first.

    Raises:
        ConfigError: a space that cannot be used, or a trace that changed.
    """
    start = time.perf_counter()
    top = whole("top", top, 1, MAX_TOP)
    if request.num_gpus == AUTO_GPUS:
        found, entries, broken = _fewest(request, top)
    else:
        found = searched(question(request))
        entries, broken = listed(request, found, top)
    plan = ServingPlan(
        request=request.to_mapping(),
        provenance=provenance(),
        considered=found.considered,
        legal=found.evaluated,
        evaluated=found.evaluated,
        feasible=int(found.good.size) - broken,
        pruned=explained(found.pruned),
        search_s=time.perf_counter() - start,
        entries=entries,
    )
    return Solved(request=request, plan=plan, found=found)


def calibration_of(solved: Solved) -> ServingCalibration:
    """Whose constants the first deployment of a plan rests on."""
    first = solved.plan.entries[0]
    known = {s.backend.name: s.calibration for s in solved.found.question.settings}
    return known[first.backend]


def listed(request: ServingRequest, found: Found, top: int) -> tuple[tuple[ServingEntry, ...], int]:
    """The short list through the simulator, and how many it showed to break a limit.

    Order is the closed form's; a deployment whose simulated figures break a limit is left out.
    """
    trace = arrivals(request)
    bound, demand = found.question.limits, found.question.demand
    entries: list[ServingEntry] = []
    broken = 0
    for row in short_list(found, MOST_SIMULATED):
        one = refined(found.options.take(np.array([row])), demand, trace)
        if not one.meets(bound)[0]:
            broken += 1
            continue
        entries.append(entry_of(found, int(row), len(entries) + 1, one))
        if len(entries) == top:
            break
    return tuple(entries), broken


def _fewest(request: ServingRequest, top: int) -> tuple[Found, tuple[ServingEntry, ...], int]:
    """The short list on the fewest GPUs whose deployments the simulator bears out."""
    most = most_gpus(request)
    found = fewest(request)
    entries, broken = listed(request, found, top)
    while found.good.size and not entries and found.question.gpus < most:
        gpus = min(math.ceil(found.question.gpus * GROWTH), most)
        found = searched(question(request, gpus))
        entries, broken = listed(request, found, top)
    return found, entries, broken


def most_gpus(request: ServingRequest) -> int:
    """Where the search for the fewest GPUs ends."""
    return min(request.cluster.max_gpus or MOST_GPUS, MOST_GPUS)


def fewest(request: ServingRequest) -> Found:
    """The search on the fewest GPUs that carry the request's rate within its limits.

    The search starts where the best GPU, fully busy, would carry the rate, and grows by an eighth
    until a deployment is found; then the gap is halved.
    """
    most = most_gpus(request)
    low = min(_fewest_busy(request), most) - 1
    high = low + 1
    found = searched(question(request, high))
    while not found.good.size and high < most:
        low, high = high, min(max(high + 1, math.ceil(high * GROWTH)), most)
        found = searched(question(request, high))
    while found.good.size and high - low > 1:
        middle = (low + high) // 2
        tried = searched(question(request, middle))
        low, high = (low, middle) if tried.good.size else (middle, high)
        found = tried if tried.good.size else found
    return found


def _fewest_busy(request: ServingRequest) -> int:
    """GPUs that carry the rate when every one is as busy as it can be: a lower bound."""
    asked = question(request, 4 * request.cluster.nvlink_domain_gpus)
    free = replace(asked, demand=replace(asked.demand, request_rate=None), limits=Limits())
    best = searched(free)
    if not best.good.size:
        return 1
    options = best.options
    each = float(np.max((options.requests_per_s / np.maximum(options.gpus, 1.0))[best.good]))
    return max(math.floor((request.request_rate or 0.0) / each), 1)


def front_entries(solved: Solved) -> tuple[ServingEntry, ...]:
    """The deployments that no other beats in tokens/s/GPU and tokens/s/user both."""
    return tuple(entry_of(solved.found, int(row), None) for row in front(solved.found))


def nearest_miss(solved: Solved) -> ServingEntry | None:
    """The fitting deployment that comes nearest to the limits; None when nothing fits."""
    row = miss(solved.found)
    return None if row is None else entry_of(solved.found, row, None)


def miss_ms(solved: Solved) -> dict[str, float]:
    """What the nearest miss reaches of every limit, in ms; infinite where requests pile up."""
    row, bound = miss(solved.found), solved.found.question.limits
    if row is None:
        return {}
    return {
        name.removesuffix("_s") + "_ms": float(
            getattr(solved.found.options, name)[bound.row][row] / MS
        )
        for name in bound.named()
    }


def tied(solved: Solved) -> list[bool]:
    """Which entries of the plan cannot be told from the first."""
    found = solved.found
    objective, first = found.question.objective, solved.plan.entries[0]
    fixed = found.question.demand.request_rate is not None
    if objective == "latency" or (fixed and objective == "throughput"):
        return ties([_e2e_ms(entry, solved.request) for entry in solved.plan.entries])
    if objective == "cost" and first.usd_per_million_tokens is not None:
        return ties([entry.usd_per_million_tokens or 0.0 for entry in solved.plan.entries])
    return ties([1.0 / max(entry.tokens_per_s, 1e-9) for entry in solved.plan.entries])


def _e2e_ms(entry: ServingEntry, request: ServingRequest) -> float:
    """Time to the last token of a request of the mean length."""
    return (entry.ttft_ms or 0.0) + (entry.tpot_ms or 0.0) * (request.output_tokens - 1)
