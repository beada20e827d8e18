"""Serving plans: a `ServingRequest` in, a `ServingPlan` out.

The whole way down in one place: request -> settings and space -> search -> the saved records. Also
the fewest GPUs for a rate, and what would help when nothing keeps the limits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from autoparallel.hardware import Cluster
from autoparallel.inference import Load, backend, closed_loop, setting
from autoparallel.inference.calibrated import ServingCalibration
from autoparallel.inference.instance import Instance
from autoparallel.inference.options import Demand, Limits, Options, instance_rows
from autoparallel.inference.refinement import refined
from autoparallel.inference.search import (
    Found,
    Question,
    binding,
    explained,
    front,
    miss,
    searched,
    short_list,
    ties,
)
from autoparallel.inference.setting import Setting
from autoparallel.inference.simulator import Arrivals
from autoparallel.inference.space import EXPLANATIONS, ServingSpace
from autoparallel.inference.steps import Batch, StepTime, mixed_step
from autoparallel.provenance import provenance
from autoparallel.request import ServingRequest
from autoparallel.request.serving import AUTO_GPUS
from autoparallel.serving_plan import ServingEntry, ServingPlan, Worker
from autoparallel.units import MS

TOP = 10
MOST_GPUS = 8192
"""Where the search for the fewest GPUs ends on a cluster of any size."""
MOST_SIMULATED = 40
"""Deployments that are simulated at most."""
GROWTH = 1.125
"""How much more GPUs are tried when a number is not enough."""
MILLION = 1e6


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
    if request.num_gpus == AUTO_GPUS:
        found, entries, broken = _fewest(request, top)
    else:
        found = searched(question(request))
        entries, broken = _listed(request, found, top)
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


def _listed(
    request: ServingRequest, found: Found, top: int
) -> tuple[tuple[ServingEntry, ...], int]:
    """The short list through the simulator, and how many it showed to break a limit.

    Order is the closed form's; a deployment whose simulated figures break a limit is left out.
    """
    trace = _arrivals(request)
    bound, demand = found.question.limits, found.question.demand
    entries: list[ServingEntry] = []
    broken = 0
    for row in short_list(found, MOST_SIMULATED):
        one = refined(found.options.take(np.array([row])), demand, trace)
        if not one.meets(bound)[0]:
            broken += 1
            continue
        entries.append(_entry(found, int(row), len(entries) + 1, one))
        if len(entries) == top:
            break
    return tuple(entries), broken


def _arrivals(request: ServingRequest) -> Arrivals | None:
    """The requests of a trace as the simulator takes them."""
    trace = request.arrivals()
    if trace is None:
        return None
    return Arrivals(
        arrival_s=trace.arrival_s,
        input_tokens=trace.input_tokens,
        output_tokens=trace.output_tokens,
        prefix_tokens=request.prefix_tokens,
        accepted_tokens=request.accepted_tokens,
    )


def _fewest(request: ServingRequest, top: int) -> tuple[Found, tuple[ServingEntry, ...], int]:
    """The short list on the fewest GPUs whose deployments the simulator bears out."""
    most = min(request.cluster.max_gpus or MOST_GPUS, MOST_GPUS)
    found = fewest(request)
    entries, broken = _listed(request, found, top)
    while found.good.size and not entries and found.question.gpus < most:
        gpus = min(math.ceil(found.question.gpus * GROWTH), most)
        found = searched(question(request, gpus))
        entries, broken = _listed(request, found, top)
    return found, entries, broken


def question(request: ServingRequest, gpus: int | None = None) -> Question:
    """The search that a request asks for, on another number of GPUs when one is given."""
    demand = Demand(
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        longest_tokens=request.longest_tokens,
        prefix_tokens=request.prefix_tokens,
        accepted_tokens=request.accepted_tokens,
        request_rate=request.request_rate,
        concurrency=request.concurrency,
    )
    both = {"auto": ("aggregated", "disaggregated"), "off": ("aggregated",)}
    if request.trace:
        both["auto"] = both["off"]
    return Question(
        settings=_settings(request, request.cluster),
        prefill_settings=(
            _settings(request, request.prefill_cluster) if request.prefill_cluster else ()
        ),
        space=ServingSpace.from_mapping(request.space),
        demand=demand,
        limits=limits(request),
        objective=request.objective,
        kv_dtypes=request.kv_dtypes,
        gpus=request.num_gpus if gpus is None else gpus,
        prefill_gpus=request.prefill_gpus,
        modes=both.get(request.disaggregated, ("disaggregated",)),
    )


def limits(request: ServingRequest) -> Limits:
    """The request's limits in seconds."""

    def seconds(value: float | None) -> float | None:
        return None if value is None else value * MS

    return Limits(
        ttft_s=seconds(request.ttft_ms),
        tpot_s=seconds(request.tpot_ms),
        e2e_s=seconds(request.e2e_ms),
        percentile=request.percentile,
    )


def _settings(request: ServingRequest, cluster: Cluster) -> tuple[Setting, ...]:
    """One per backend and precision."""
    return tuple(
        setting(
            request.model, cluster, backend(name), precision, profiles_dir=request.profiles_path
        )
        for name in request.backends
        for precision in request.precisions
    )


def fewest(request: ServingRequest) -> Found:
    """The search on the fewest GPUs that carry the request's rate within its limits.

    The search starts where the best GPU, fully busy, would carry the rate, and grows by an eighth
    until a deployment is found; then the gap is halved.
    """
    most = min(request.cluster.max_gpus or MOST_GPUS, MOST_GPUS)
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


# --- the records -----------------------------------------------------------------------------


def _entry(found: Found, row: int, rank: int | None, seen: Options | None = None) -> ServingEntry:
    """Row `row` of the evaluated deployments as a record, with the latencies of `seen`."""
    one = found.options.take(np.array([row])) if seen is None else seen
    here = one.settings[int(one.setting[0])]
    gpus, per_s = float(one.gpus[0]), float(one.tokens_per_s[0])
    price = float(one.usd_per_s[0])
    tpot = float(one.tpot_s[0][0])
    split = bool(one.prefill_count[0])
    return ServingEntry(
        rank=rank,
        backend=here.backend.name,
        mode="disaggregated" if split else "aggregated",
        workers=_workers(one, split),
        precision=here.precision,
        kv_dtype="fp8" if _at(one.worker.kv_element_bytes) == 1.0 else "bf16",
        concurrency=_finite(float(one.concurrency[0])) or 0.0,
        load=float(one.requests_per_s[0]),
        **_latencies("ttft_ms", one.ttft_s),
        **_latencies("tpot_ms", one.tpot_s, found.question.demand.output_tokens > 1),
        tokens_per_s_per_gpu=per_s / gpus,
        tokens_per_s_per_user=1.0 / tpot if 0 < tpot < math.inf else None,
        memory_bytes=float(one.memory_bytes[0]),
        fits_probability=float(one.fits_probability[0]),
        usd_per_million_tokens=_finite(price / max(per_s, 1e-12) * MILLION),
        binding_constraint=binding(found, row),
        parts=_parts(found, one),
    )


def _latencies(name: str, block: Any, there: bool = True) -> dict[str, float | None]:
    known = there and bool(np.isfinite(block[0, 0]))
    mean, *rest = (float(value) / MS if known else None for value in block[:, 0])
    return {name: mean} | {
        f"{name}_{p}": v for p, v in zip(("p50", "p90", "p99"), rest, strict=True)
    }


def _finite(value: float) -> float | None:
    """The value, or None where there is no such number."""
    return value if math.isfinite(value) else None


def _at(value: Any) -> float:
    """The one value of a column of one row."""
    return float(np.ravel(np.asarray(value))[0])


def _workers(one: Options, split: bool) -> tuple[Worker, ...]:
    """The kinds of replicas of a deployment of one row."""
    main = _worker("decode" if split else "aggregated", one.worker, _at(one.count))
    if not split:
        return (main,)
    return (_worker("prefill", one.prefill, _at(one.prefill_count)), main)


def _worker(role: str, instance: Instance, count: float) -> Worker:
    stages = _at(instance.pipeline_model_parallel_size)
    return Worker(
        role=role,
        replicas=round(count),
        gpus=round(_at(instance.gpus)),
        tensor_model_parallel_size=round(_at(instance.tensor_model_parallel_size)),
        pipeline_model_parallel_size=round(stages),
        expert_model_parallel_size=round(_at(instance.expert_model_parallel_size)),
        attention_data_parallel_size=round(_at(instance.attention_data_parallel_size)),
        max_batch_size=round(_at(instance.max_batch_size) * stages),
        max_num_tokens=round(_at(instance.max_num_tokens)),
    )


def _parts(found: Found, one: Options) -> dict[str, float]:
    """Seconds of a decode step and of a prompt step by cause, as `decode_` and `prompt_`."""
    demand = found.question.demand
    here, there = (one.settings[int(i[0])] for i in (one.setting, one.prefill_setting))
    worker, prefill = (instance_rows(x, np.array([0])) for x in (one.worker, one.prefill))
    if not one.prefill_count[0]:
        load = Load(
            input_tokens=float(demand.input_tokens),
            output_tokens=float(demand.output_tokens),
            prefix_tokens=float(demand.prefix_tokens),
            accepted_tokens=demand.accepted_tokens,
            concurrency=max((_finite(_at(one.concurrency)) or 1.0) / _at(one.count), 1e-9),
        )
        seen = closed_loop(here, worker, load)
        return _named("decode", seen.decode) | _named("prompt", seen.prompt)
    context = demand.input_tokens + demand.output_tokens / 2
    lane = worker.max_batch_size * worker.attention_data_parallel_size
    copies = prefill.attention_data_parallel_size
    chunk = np.minimum(prefill.max_num_tokens, float(demand.new_tokens)) * copies
    prompt = Batch(
        prompt_tokens=chunk,
        prompt_context=demand.prefix_tokens + demand.new_tokens / 2,
        prompts=copies,
    )
    decode = Batch(decoding=lane, context_tokens=context)
    return _named("decode", mixed_step(here, worker, decode)) | _named(
        "prompt", mixed_step(there, prefill, prompt)
    )


def _named(prefix: str, step: StepTime) -> dict[str, float]:
    return {f"{prefix}_{f.name}": _at(getattr(step, f.name)) for f in fields(step)}


def front_entries(solved: Solved) -> tuple[ServingEntry, ...]:
    """The deployments that no other beats in tokens/s/GPU and tokens/s/user both."""
    return tuple(_entry(solved.found, int(row), None) for row in front(solved.found))


def nearest_miss(solved: Solved) -> ServingEntry | None:
    """The fitting deployment that comes nearest to the limits; None when nothing fits."""
    row = miss(solved.found)
    return None if row is None else _entry(solved.found, row, None)


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


def explanation(rule: str) -> str:
    """What a rule of the space leaves out."""
    return EXPLANATIONS.get(rule, rule)


# --- what would help -------------------------------------------------------------------------


def rescues(request: ServingRequest) -> Iterator[tuple[str, ServingEntry]]:
    """Flags that change one thing, each with the best deployment it makes possible."""
    more_gpus = False
    for flags, changed in _changes(request):
        if more_gpus and flags.startswith("--gpus"):
            return
        found = searched(question(changed))
        entries, _ = _listed(changed, found, 1)
        if entries:
            more_gpus = flags.startswith("--gpus")
            yield flags, entries[0]


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
