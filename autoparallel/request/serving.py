"""A serving question: the frozen record, its saved form, and the way from flags to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from autoparallel.errors import ConfigError, bad_value, nearest
from autoparallel.hardware import Cluster
from autoparallel.model import Model
from autoparallel.request.records import SavedRequest, Site
from autoparallel.request.trace import Trace, read_trace
from autoparallel.strict_yaml import Rule

SERVING_BACKENDS = ("vllm", "sglang", "tensorrt-llm")
BACKEND_ALIASES = {"trtllm": "tensorrt-llm", "trt-llm": "tensorrt-llm"}
BACKEND_GENERATIONS = {"tensorrt-llm": ("ampere", "ada", "hopper", "blackwell", "blackwell-rtx")}
"""GPU generations of a backend that does not run everywhere: TensorRT-LLM's documentation,
https://nvidia.github.io/TensorRT-LLM/supported-hardware.html."""
SERVING_PRECISIONS = ("bf16", "fp16", "fp8", "fp8-blockwise", "mxfp8", "nvfp4", "mxfp4")
KV_DTYPES = ("bf16", "fp8")
SERVING_OBJECTIVES = ("throughput", "latency", "cost")
PERCENTILES = ("mean", "p50", "p90", "p99")
DISAGGREGATED = ("auto", "on", "off")
AUTO_GPUS = 0
"""`num_gpus` of a request that asks for the fewest."""
_LIMIT = Rule(least=1e-3, most=1e9, null=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRequest(SavedRequest):
    """One serving question with nothing left open.

    Attributes:
        num_gpus: GPUs of `cluster`; 0 asks for the fewest that carry `request_rate`.
        prefill_cluster, prefill_gpus: GPUs of another kind that prefill in a disaggregated plan.
        precisions, kv_dtypes: What the search may choose between.
        input_tokens, output_tokens: A request's mean prompt and answer; the answer's first token
            is counted.
        longest_tokens: Prompt and answer of the longest request: what an engine is set up for.
        prefix_tokens: Leading prompt tokens found in the prefix cache.
        accepted_tokens: Tokens a decode step yields: 1, or more with speculative decoding.
        request_rate: Requests a second, arriving at random; None when `concurrency` is the load.
        concurrency: Requests in the system of a closed loop; 0 lets every plan take what it can.
        trace, trace_digest: A file of arrivals in place of random ones; empty for none.
        ttft_ms, tpot_ms, e2e_ms: Limits that `percentile` of a plan must keep; None for no limit.
    """

    KIND: ClassVar[str] = "serving"
    VERB: ClassVar[str] = "infer"

    model: Model
    cluster: Cluster
    num_gpus: int
    prefill_cluster: Cluster | None = None
    prefill_gpus: int = 0
    backends: tuple[str, ...]
    precisions: tuple[str, ...]
    kv_dtypes: tuple[str, ...]
    input_tokens: int
    output_tokens: int
    longest_tokens: int
    prefix_tokens: int = 0
    accepted_tokens: float = 1.0
    request_rate: float | None = None
    concurrency: int = 0
    trace: str = ""
    trace_digest: str = ""
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    percentile: str = PERCENTILES[0]
    objective: str = SERVING_OBJECTIVES[0]
    disaggregated: str = DISAGGREGATED[0]
    space_name: str
    space: Mapping[str, Any]
    site: Site
    config_dir: str = ""
    profiles_dir: str = ""
    overrides: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def arrivals(self) -> Trace | None:
        """The trace, read again; None when the load is not one.

        Raises:
            ConfigError: the file is gone or is not the one that was asked about.
        """
        if not self.trace:
            return None
        found = read_trace(Path(self.trace))
        if found.digest != self.trace_digest:
            rule = "is not the file this request was made with"
            raise bad_value("trace", self.trace, rule, "ask again with --trace")
        return found


def _check(request: ServingRequest) -> None:
    """Ranges, and rules between the request's own fields."""
    for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
        _LIMIT.read(name, getattr(request, name))
    Rule(least=1.0, most=64.0).read("accepted_tokens", request.accepted_tokens)
    for name, known in (
        ("percentile", PERCENTILES),
        ("objective", SERVING_OBJECTIVES),
        ("disaggregated", DISAGGREGATED),
    ):
        if (value := getattr(request, name)) not in known:
            raise bad_value(name, value, "is not a choice", nearest(value, known))
    if request.prefix_tokens >= request.input_tokens:
        rule = f"leaves no token of a prompt of {request.input_tokens} to compute"
        raise bad_value("prefix_tokens", request.prefix_tokens, rule, "give fewer")
    longest, most = request.longest_tokens, request.model.max_position_embeddings
    if most and longest > most:
        rule = f"is more than the {most} positions of {request.model.name}"
        raise bad_value("input_tokens + output_tokens", longest, rule, "give shorter requests")
    if request.objective == "cost" and request.cluster.usd_per_gpu_hour is None:
        rule = f"needs a price, {request.cluster.name} has none"
        raise bad_value("objective", "cost", rule, "give cluster.usd_per_gpu_hour=2.5")
    if request.trace and (request.disaggregated == "on" or request.prefill_cluster):
        raise ConfigError(
            "--trace: is simulated request by request, which is done for aggregated serving only; "
            "leave --disaggregated on, or give --request-rate in place of the trace"
        )
    if bool(request.prefill_cluster) != bool(request.prefill_gpus):
        raise ConfigError(
            "--prefill-cluster: goes with --prefill-gpus; give both, or neither for one kind of GPU"
        )
    if request.prefill_cluster and (request.disaggregated == "off" or not request.num_gpus):
        other = "--disaggregated off" if request.num_gpus else "--gpus auto"
        raise ConfigError(f"--prefill-cluster: cannot go with {other}; leave one")
