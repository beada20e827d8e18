"""From a request to the question that the search answers."""

from __future__ import annotations

from autoparallel.hardware import Cluster
from autoparallel.inference import backend, setting
from autoparallel.inference.options import Demand, Limits
from autoparallel.inference.search import Question
from autoparallel.inference.setting import Setting
from autoparallel.inference.simulator import Arrivals
from autoparallel.inference.space import ServingSpace
from autoparallel.request import ServingRequest
from autoparallel.units import MS


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


def arrivals(request: ServingRequest) -> Arrivals | None:
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
