"""The way from flags and overrides to a `ServingRequest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from autoparallel.errors import ConfigError, nearest
from autoparallel.hardware import Cluster
from autoparallel.model import Model
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
from autoparallel.request.records import MAX_GPUS, whole
from autoparallel.request.serving import (
    DISAGGREGATED,
    PERCENTILES,
    SERVING_OBJECTIVES,
    ServingRequest,
)
from autoparallel.request.serving_choices import (
    backends_asked,
    gpus_asked,
    kv_dtypes_asked,
    precisions_asked,
)
from autoparallel.request.trace import MAX_TOKENS, Trace, read_trace
from autoparallel.strict_yaml import Rule


class ServingFlags(TypedDict, total=False):
    """What a serving request may say beside its model and its GPUs; None is as not said.

    Attributes:
        input_tokens: Prompt tokens of a request; a trace has its own.
        output_tokens: Answer tokens of a request; a trace has its own.
        cluster: Catalog name or file, or a record; default `dgx-h100`.
        gpu: Replaces the cluster's GPU.
        prefill_cluster: Where prefill workers run, when that is another kind of GPU.
        prefill_gpus: How many GPUs there are of that kind.
        backend: One or more of `SERVING_BACKENDS` with commas between, or `all`: those that run on
            the GPUs.
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
    """

    input_tokens: int | None
    output_tokens: int | None
    cluster: str | Cluster | None
    gpu: str | None
    prefill_cluster: str | None
    prefill_gpus: int | None
    backend: str | None
    precision: str | None
    kv_dtype: str | None
    prefix_tokens: int | None
    accepted_tokens: float | None
    request_rate: float | None
    concurrency: int | None
    trace: str | Path | None
    ttft_ms: float | None
    tpot_ms: float | None
    e2e_ms: float | None
    percentile: str | None
    objective: str | None
    disaggregated: str | None
    allow_numerics: bool
    overrides: Sequence[str]
    config_dir: str | Path | None
    profiles_dir: str | Path | None


SERVING_FLAGS = tuple(ServingFlags.__annotations__)
_NAMED = ("backend", "precision", "kv", "percentile", "objective", "disaggregated")
"""What the first line of an answer calls assumed where it was not said."""


def serving_request(
    *, model: str | Path | Model, num_gpus: int | str, **flags: Unpack[ServingFlags]
) -> ServingRequest:
    """The request that these flags and overrides make.

    Args:
        model: Catalog name, path of a model file or Hugging Face `config.json`, or a record.
        num_gpus: GPUs to serve on; `auto` for the fewest that carry `request_rate`.
        flags: The fields of `ServingFlags`.

    Raises:
        ConfigError: anything unknown, out of range or contradictory.
    """
    if unknown := sorted(flags.keys() - set(SERVING_FLAGS)):
        raise ConfigError(f"{unknown[0]}: is not a flag; {nearest(unknown[0], SERVING_FLAGS)}")
    own = own_folder("config_dir", flags.get("config_dir"))
    overrides = tuple(flags.get("overrides", ()))
    settled, said = _settled(
        model, flags.get("cluster"), flags.get("gpu"), parsed_overrides(overrides), own
    )
    path = flags.get("trace")
    found = read_trace(Path(path)) if path is not None else None
    load, apart = _load(found, flags), _prefill(flags, own)
    return ServingRequest(
        **settled,
        **load,
        **_choices(flags, settled["model"], settled["cluster"], apart["prefill_cluster"]),
        **apart,
        num_gpus=gpus_asked(num_gpus, settled["cluster"], load["request_rate"]),
        trace=str(Path(path).expanduser().resolve()) if path is not None else "",
        trace_digest=found.digest if found else "",
        ttft_ms=flags.get("ttft_ms"),
        tpot_ms=flags.get("tpot_ms"),
        e2e_ms=flags.get("e2e_ms"),
        config_dir=str(own.resolve()) if own else "",
        profiles_dir=resolved_folder("profiles_dir", flags.get("profiles_dir")),
        overrides=overrides,
        assumptions=_assumed(flags, found, said),
    )


def _choices(
    flags: ServingFlags, model: Model, cluster: Cluster, prefill: Cluster | None
) -> dict[str, Any]:
    """What the search may choose among and what it is to make best."""
    anything = flags.get("allow_numerics", False)
    gpus = [cluster.gpu, *([prefill.gpu] if prefill else [])]
    return {
        "backends": backends_asked(flags.get("backend"), gpus),
        "precisions": precisions_asked(flags.get("precision"), model, cluster.gpu, anything),
        "kv_dtypes": kv_dtypes_asked(flags.get("kv_dtype"), cluster.gpu, anything),
        "percentile": flags.get("percentile") or PERCENTILES[0],
        "objective": flags.get("objective") or SERVING_OBJECTIVES[0],
        "disaggregated": flags.get("disaggregated") or DISAGGREGATED[0],
    }


def _prefill(flags: ServingFlags, own: Path | None) -> dict[str, Any]:
    """GPUs of another kind that prefill."""
    name = flags.get("prefill_cluster")
    chosen = composition({"cluster": name}, (), own)[0] if name else None
    return {
        "prefill_cluster": cluster_of(chosen, {}, own) if chosen else None,
        "prefill_gpus": whole("prefill_gpus", flags.get("prefill_gpus") or 0, 0, MAX_GPUS),
    }


def _assumed(
    flags: ServingFlags, trace: Trace | None, said: dict[str, str | None]
) -> tuple[str, ...]:
    """Names of what was not said."""
    given: dict[str, object] = {
        name: flags.get("kv_dtype" if name == "kv" else name) for name in _NAMED
    }
    given["load"] = trace or flags.get("request_rate") or flags.get("concurrency")
    return tuple(name for name, value in (given | said).items() if value is None)


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


def _load(trace: Trace | None, flags: ServingFlags) -> dict[str, Any]:
    """The fields that say what arrives; each of the three kinds of load excludes the others."""
    rate, clients = flags.get("request_rate"), flags.get("concurrency")
    kinds = {"trace": trace, "request_rate": rate, "concurrency": clients}
    given = [name for name, value in kinds.items() if value is not None]
    if len(given) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in given[:2])
        raise ConfigError(f"{first}: given beside {second}, and a load is one of them; leave one")
    accepted, prefix = flags.get("accepted_tokens"), flags.get("prefix_tokens") or 0
    each = {
        "prefix_tokens": whole("prefix_tokens", prefix, 0, MAX_TOKENS),
        "accepted_tokens": 1.0 if accepted is None else accepted,
    }
    lengths = {name: flags.get(name) for name in ("input_tokens", "output_tokens")}
    if trace is not None:
        return each | _trace_load(trace, lengths)
    return {
        **each,
        **_lengths(lengths),
        "request_rate": Rule(least=1e-9, most=1e9, null=True).read("request_rate", rate),
        "concurrency": 0 if clients is None else whole("concurrency", clients, 1, 1e9),
    }


def _lengths(given: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of a request, which have no default."""
    for name, value in given.items():
        if value is None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{name}: missing, and has no default; give {flag} or --trace")
    tokens = {name: whole(name, value, 1, MAX_TOKENS) for name, value in given.items()}
    return tokens | {"longest_tokens": sum(tokens.values())}


def _trace_load(trace: Trace, lengths: Mapping[str, Any]) -> dict[str, Any]:
    """Mean lengths and rate of a trace."""
    if any(value is not None for value in lengths.values()):
        raise ConfigError(
            "--trace: has the lengths of every request; leave --input-tokens and --output-tokens"
        )
    count = len(trace.arrival_s)
    return {
        "input_tokens": max(round(sum(trace.input_tokens) / count), 1),
        "output_tokens": max(round(sum(trace.output_tokens) / count), 1),
        "longest_tokens": trace.longest_tokens,
        "request_rate": trace.request_rate,
        "concurrency": 0 if trace.request_rate else count,
    }
