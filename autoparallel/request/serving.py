"""A serving question: the frozen record, its saved form, and the way from flags to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoparallel.errors import ConfigError, bad_value, nearest
from autoparallel.files import write_text
from autoparallel.hardware import Cluster, Gpu
from autoparallel.model import Model, published_precision
from autoparallel.request.build import (
    cluster_of,
    composition,
    mapping_of,
    model_of,
    own_folder,
    resolved_folder,
    said_names,
    site_of,
)
from autoparallel.request.compose import Override, parsed_overrides
from autoparallel.request.records import (
    MAX_GPUS,
    SCHEMA_VERSION,
    Site,
    plain,
    saved_request,
    whole,
    yaml_text,
)
from autoparallel.request.trace import MAX_TOKENS, Trace, read_trace
from autoparallel.strict_yaml import Rule, read_yaml

SERVING_BACKENDS = ("vllm", "sglang", "tensorrt-llm")
BACKEND_ALIASES = {"trtllm": "tensorrt-llm", "trt-llm": "tensorrt-llm"}
SERVING_PRECISIONS = ("bf16", "fp16", "fp8", "fp8-blockwise", "mxfp8", "nvfp4", "mxfp4")
KV_DTYPES = ("bf16", "fp8")
SERVING_OBJECTIVES = ("throughput", "latency", "cost")
PERCENTILES = ("mean", "p50", "p90", "p99")
DISAGGREGATED = ("auto", "on", "off")
AUTO_GPUS = 0
"""`num_gpus` of a request that asks for the fewest."""
_LIMIT = Rule(least=1e-3, most=1e9, null=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRequest:
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

    @property
    def profiles_path(self) -> Path | None:
        """The user's folder of calibrated constants; None without one."""
        return Path(self.profiles_dir) if self.profiles_dir else None

    def to_mapping(self) -> dict[str, Any]:
        """The request as plain data, for `request.yaml` and the `request` block of a plan."""
        return {"schema_version": SCHEMA_VERSION, "kind": "serving", **plain(asdict(self))}

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], where: str = "request") -> ServingRequest:
        """The request that `to_mapping` described.

        Raises:
            ConfigError: an unknown, missing or impossible value.
        """
        request: ServingRequest = saved_request(cls, "serving", "infer", values, where)
        return request

    def write_yaml(self, path: Path) -> None:
        """Save as YAML, whole or not at all."""
        write_text(path.parent, path.name, yaml_text(self.to_mapping()))

    @classmethod
    def from_yaml(cls, path: Path) -> ServingRequest:
        """The request saved at `path`; equal to the one that was written.

        Raises:
            ConfigError: a file that cannot be read or does not hold a request.
        """
        return cls.from_mapping(read_yaml(path), str(path))

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


def serving_request(
    *,
    model: str | Path | Model,
    num_gpus: int | str,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    cluster: str | Cluster | None = None,
    gpu: str | None = None,
    prefill_cluster: str | None = None,
    prefill_gpus: int | None = None,
    backend: str | None = None,
    precision: str | None = None,
    kv_dtype: str | None = None,
    prefix_tokens: int | None = None,
    accepted_tokens: float | None = None,
    request_rate: float | None = None,
    concurrency: int | None = None,
    trace: str | Path | None = None,
    ttft_ms: float | None = None,
    tpot_ms: float | None = None,
    e2e_ms: float | None = None,
    percentile: str | None = None,
    objective: str | None = None,
    disaggregated: str | None = None,
    allow_numerics: bool = False,
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    profiles_dir: str | Path | None = None,
) -> ServingRequest:
    """The request that these flags and overrides make.

    Args:
        model: Catalog name, path of a model file or Hugging Face `config.json`, or a record.
        num_gpus: GPUs to serve on; `auto` for the fewest that carry `request_rate`.
        input_tokens: Prompt tokens of a request; a trace has its own.
        output_tokens: Answer tokens of a request; a trace has its own.
        cluster: Catalog name or file, or a record; default `dgx-h100`.
        gpu: Replaces the cluster's GPU.
        prefill_cluster: Where prefill workers run, when that is another kind of GPU.
        prefill_gpus: How many GPUs there are of that kind.
        backend: One or more of `SERVING_BACKENDS` with commas between, or `all`.
        precision: Of the weights, one or more; None takes the published checkpoint's.
        kv_dtype: Of the KV cache, one or more of `KV_DTYPES`; None takes bf16.
        prefix_tokens: Prompt tokens found in the prefix cache.
        accepted_tokens: Tokens a decode step yields, with speculative decoding more than 1.
        request_rate: Requests a second, arriving at random.
        concurrency: Requests in the system of a closed loop.
        trace: CSV file of arrivals.
        ttft_ms: Limit of the time to the first token.
        tpot_ms: Limit of the time per token after the first.
        e2e_ms: Limit of the time to the last token.
        percentile: Which figure the limits bind, one of `PERCENTILES`.
        objective: One of `SERVING_OBJECTIVES`.
        disaggregated: Whether prefill and decode may, must or must not have workers of their own.
        allow_numerics: Let the search choose among all precisions of weights and KV cache.
        overrides: `GROUP.KEY=VALUE` for `model`, `cluster`, `gpu`, `space` and `site`.
        config_dir: A folder laid out as `search_spaces/`, in front of the shipped one.
        profiles_dir: A folder of calibrated constants in front of the shipped one.

    Raises:
        ConfigError: anything unknown, out of range or contradictory.
    """
    own = own_folder("config_dir", config_dir)
    settled, said = _settled(model, cluster, gpu, parsed_overrides(overrides), own)
    prefill = composition({"cluster": prefill_cluster}, (), own)[0] if prefill_cluster else None
    found = read_trace(Path(trace)) if trace is not None else None
    load = _load(found, input_tokens, output_tokens, request_rate, concurrency)
    gpu_record: Gpu = settled["cluster"].gpu
    precisions = _precisions(precision, settled["model"], gpu_record, allow_numerics)
    kv_dtypes = _kv_dtypes(kv_dtype, gpu_record, allow_numerics)
    given = {
        "backend": backend,
        "precision": precision,
        "kv": kv_dtype,
        "percentile": percentile,
        "objective": objective,
        "disaggregated": disaggregated,
        "load": found or request_rate or concurrency,
        **said,
    }
    return ServingRequest(
        **settled,
        **load,
        num_gpus=_gpus(num_gpus, settled["cluster"], load["request_rate"]),
        prefill_cluster=cluster_of(prefill, {}, own) if prefill else None,
        prefill_gpus=whole("prefill_gpus", prefill_gpus or 0, 0, MAX_GPUS),
        backends=_choices("backend", backend, SERVING_BACKENDS, BACKEND_ALIASES),
        precisions=precisions,
        kv_dtypes=kv_dtypes,
        prefix_tokens=whole("prefix_tokens", prefix_tokens or 0, 0, MAX_TOKENS),
        accepted_tokens=1.0 if accepted_tokens is None else accepted_tokens,
        trace=str(Path(trace).expanduser().resolve()) if trace is not None else "",
        trace_digest=found.digest if found else "",
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        e2e_ms=e2e_ms,
        percentile=percentile or PERCENTILES[0],
        objective=objective or SERVING_OBJECTIVES[0],
        disaggregated=disaggregated or DISAGGREGATED[0],
        config_dir=str(own.resolve()) if own else "",
        profiles_dir=resolved_folder("profiles_dir", profiles_dir),
        overrides=tuple(overrides),
        assumptions=tuple(name for name, value in given.items() if value is None),
    )


def _settled(
    model: str | Path | Model,
    cluster: str | Cluster | None,
    gpu: str | None,
    overrides: Sequence[Override],
    own: Path | None,
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Model, cluster, space and site, and which of their names were given."""
    records = (model if isinstance(model, Model) else None, isinstance(cluster, Cluster))
    if any(records) and any(o.key.split(".")[0] in ("model", "cluster", "gpu") for o in overrides):
        raise ConfigError("override: the plan's own model and cluster stand; leave the override")
    flags = {"model": None if records[0] else str(model), "gpu": gpu}
    flags["cluster"] = None if isinstance(cluster, Cluster) else cluster
    said = said_names(flags, {}, overrides)
    defaults = {"space": "serving"} | ({"model": "gpt-tiny"} if records[0] else {})
    chosen, config = composition(said, overrides, own, defaults)
    settled = {
        "model": records[0] or model_of(chosen, config, own),
        "cluster": cluster if isinstance(cluster, Cluster) else cluster_of(chosen, config, own),
        "space_name": chosen["space"],
        "space": mapping_of(config, "space"),
        "site": site_of(chosen["site"], mapping_of(config, "site")),
    }
    named = {"cluster": "" if records[1] else said.get("cluster"), "space": said.get("space")}
    return settled, named


def _load(
    trace: Trace | None,
    input_tokens: int | None,
    output_tokens: int | None,
    request_rate: float | None,
    concurrency: int | None,
) -> dict[str, Any]:
    """The fields that say what arrives; each of the three kinds of load excludes the others."""
    kinds = {"trace": trace, "request_rate": request_rate, "concurrency": concurrency}
    given = [name for name, value in kinds.items() if value is not None]
    if len(given) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in given[:2])
        raise ConfigError(f"{first}: given beside {second}, and a load is one of them; leave one")
    if trace is not None:
        return _trace_load(trace, input_tokens, output_tokens)
    lengths = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    for name, value in lengths.items():
        if value is None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{name}: missing, and has no default; give {flag} or --trace")
        whole(name, value, 1, MAX_TOKENS)
    return {
        **lengths,
        "longest_tokens": (input_tokens or 0) + (output_tokens or 0),
        "request_rate": Rule(least=1e-9, most=1e9, null=True).read("request_rate", request_rate),
        "concurrency": 0 if concurrency is None else whole("concurrency", concurrency, 1, 1e9),
    }


def _trace_load(
    trace: Trace, input_tokens: int | None, output_tokens: int | None
) -> dict[str, Any]:
    """Mean lengths and rate of a trace."""
    if input_tokens is not None or output_tokens is not None:
        raise ConfigError(
            "--trace: has the lengths of every request; leave --input-tokens and -out"
        )
    count = len(trace.arrival_s)
    return {
        "input_tokens": max(round(sum(trace.input_tokens) / count), 1),
        "output_tokens": max(round(sum(trace.output_tokens) / count), 1),
        "longest_tokens": trace.longest_tokens,
        "request_rate": trace.request_rate,
        "concurrency": 0 if trace.request_rate else count,
    }


def _gpus(asked: int | str, cluster: Cluster, request_rate: float | None) -> int:
    if isinstance(asked, str):
        word = asked.strip().lower()
        if word == "auto":
            if request_rate is None:
                rule = "is the fewest GPUs for a rate, and none is given"
                raise bad_value("num_gpus", asked, rule, "add --request-rate R or --trace FILE")
            return AUTO_GPUS
        if not word.isdecimal():
            raise bad_value("num_gpus", asked, "is neither a number nor auto")
        asked = int(word[:20])
    return whole("num_gpus", asked, 1, min(cluster.max_gpus or MAX_GPUS, MAX_GPUS))


def _choices(
    name: str, asked: str | None, known: Sequence[str], aliases: Mapping[str, str]
) -> tuple[str, ...]:
    """Words with commas between, each a known one; all of them for None and `all`."""
    words = [w.strip().lower() for w in (asked or "all").split(",")]
    if words == ["all"]:
        return tuple(known)
    found = [aliases.get(word, word) for word in words]
    for word, asked_word in zip(found, words, strict=True):
        if word not in known:
            raise bad_value(name, asked_word, "is not a choice", nearest(word, known))
    return tuple(dict.fromkeys(found))


def _precisions(asked: str | None, model: Model, gpu: Gpu, anything: bool) -> tuple[str, ...]:
    """What weights may be in: as asked, else as published when the GPU computes in that."""
    if asked is not None:
        found = _choices("precision", asked, SERVING_PRECISIONS, {})
        missing = next((p for p in found if not computes(gpu, p)), None)
        if missing is not None:
            raise _not_on("precision", missing, gpu, f"take --precision {_half(gpu)}")
        return found
    published = published_precision(model)
    own = published if published and computes(gpu, published) else _half(gpu)
    if not anything:
        return (own,)
    others = [p for p in ("bf16", "fp8", "nvfp4") if computes(gpu, p)]
    return tuple(dict.fromkeys((own, *others)))


def _kv_dtypes(asked: str | None, gpu: Gpu, anything: bool) -> tuple[str, ...]:
    """What the KV cache may be in; 8 bits only where the GPU has them."""
    fp8 = "fp8" in gpu.peak_flops_per_s
    if asked is None:
        return KV_DTYPES if anything and fp8 else KV_DTYPES[:1]
    found = _choices("kv_dtype", asked, KV_DTYPES, {"auto": "bf16", "fp8_e4m3": "fp8"})
    if "fp8" in found and not fp8:
        raise _not_on("kv_dtype", "fp8", gpu, "take --kv-dtype bf16")
    return found


def computes(gpu: Gpu, precision: str) -> bool:
    """Whether engines serve weights in `precision` on a GPU.

    mxfp4 checkpoints run on any GPU with bf16, whose kernels widen the weights as they read them.
    """
    peaks = gpu.peak_flops_per_s
    needed = {"mxfp4": "bf16", "fp8-blockwise": "fp8"}.get(precision, precision)
    return needed in peaks or (precision == "mxfp8" and "fp8" in peaks)


def _half(gpu: Gpu) -> str:
    return "bf16" if "bf16" in gpu.peak_flops_per_s else "fp16"


def _not_on(name: str, value: str, gpu: Gpu, hint: str) -> ConfigError:
    rule = f"is not what {gpu.name} computes in (it has {', '.join(gpu.peak_flops_per_s)})"
    return bad_value(name, value, rule, hint)


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
