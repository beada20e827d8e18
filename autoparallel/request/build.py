"""From flags and overrides to a `TrainingRequest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autoparallel import catalog
from autoparallel.catalog_schema import cluster_record, gpu_record, model_record
from autoparallel.errors import ConfigError, bad_value, nearest, shown
from autoparallel.files import check_name
from autoparallel.hardware import Cluster, Gpu
from autoparallel.model import Model
from autoparallel.request.compose import (
    ENTRIES,
    SCALARS,
    Override,
    composed,
    parsed_overrides,
    picked,
    root,
)
from autoparallel.request.records import (
    MAX_GPUS,
    Site,
    TrainingRequest,
    objective_name,
    text_mapping,
    texts,
    whole,
)
from autoparallel.strict_yaml import Rule, read_fields

SEQ_LENGTH_CAP = 8192
"""Longest sequence assumed for a model that states a maximum and no training job."""

_WORKLOAD_RULES = {
    "global_batch_size": Rule(kind=int, least=1, most=1e8, null=True),
    "seq_length": Rule(kind=int, least=1, most=1e9, null=True),
    "tokens": Rule(least=1.0, most=1e18, null=True),
}


def training_request(
    *,
    model: str | Path,
    num_gpus: int,
    cluster: str | None = None,
    gpu: str | None = None,
    framework: str | None = None,
    precision: str | None = None,
    global_batch_size: int | None = None,
    seq_length: int | None = None,
    tokens: float | None = None,
    space: str | None = None,
    objective: str | None = None,
    allow_numerics: bool = False,
    baseline: str = "",
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    profiles_dir: str | Path | None = None,
) -> TrainingRequest:
    """The request that these flags and overrides make.

    Args:
        model: Catalog name, or the path of a model file or a Hugging Face `config.json`.
        num_gpus: Size of the job.
        cluster: Catalog name or file; default `dgx-h100`, or a cluster of `gpu` when only that is
            given.
        gpu: Replaces the cluster's GPU.
        overrides: Hydra overrides, `GROUP.KEY=VALUE`.
        config_dir: A folder laid out as `search_spaces/`, in front of the shipped one.
        profiles_dir: A folder of calibrated constants in front of the shipped one.
        framework: Catalog name; None takes `megatron-core` and says so in `assumptions`.
        precision: Precision of the linear layers; None takes `bf16` and says so.
        global_batch_size: Sequences a step; None takes the model's own, as the next two.
        seq_length: Tokens a sequence.
        tokens: Tokens of the whole run.
        space: Catalog name or file of what is searched; None takes `default`.
        objective: One of `OBJECTIVES`, or its short word.
        allow_numerics: Let the search move knobs that change the mathematics.
        baseline: A layout to compare with.

    Raises:
        ConfigError: anything unknown, out of range or contradictory.
    """
    own = own_folder("config_dir", config_dir)
    parsed = parsed_overrides(overrides)
    named = {"model": str(model), "cluster": cluster, "gpu": gpu, "space": space}
    plain = {"framework": framework, "precision": precision, "objective": objective}
    job = {"global_batch_size": global_batch_size, "seq_length": seq_length, "tokens": tokens}
    settled = _settled(said_names({**named, **plain}, job, parsed), job, parsed, own)
    return TrainingRequest(
        num_gpus=whole("num_gpus", num_gpus, 1, MAX_GPUS),
        allow_numerics=allow_numerics,
        baseline=baseline,
        config_dir=str(own.resolve()) if own else "",
        profiles_dir=resolved_folder("profiles_dir", profiles_dir),
        overrides=tuple(overrides),
        **settled,
    )


def _settled(
    said: Mapping[str, str],
    job: Mapping[str, object],
    overrides: Sequence[Override],
    own: Path | None,
) -> dict[str, Any]:
    """The fields of a request that names, files and overrides decide together."""
    chosen, config = composition(said, overrides, own)
    model = model_of(chosen, config, own)
    workload = _workload(config, job, model)
    cluster = cluster_of(chosen, config, own)
    objective = objective_name(_text(config, "objective"))
    if objective == "cost_usd" and cluster.usd_per_gpu_hour is None:
        hint = "give cluster.usd_per_gpu_hour=2.5"
        raise bad_value("objective", objective, f"needs a price, {cluster.name} has none", hint)
    return {
        "model": model,
        "cluster": cluster,
        **{key: _text(config, key) for key in SCALARS},
        "objective": objective,
        **{key: value for key, (value, _) in workload.items()},
        "space_name": chosen["space"],
        "space": mapping_of(config, "space"),
        "site": site_of(chosen["site"], mapping_of(config, "site")),
        "assumptions": _assumptions(config, chosen, said, overrides, workload),
    }


def composition(
    said: Mapping[str, str],
    overrides: Sequence[Override],
    own: Path | None,
    defaults: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], dict[str, Any]]:
    """The chosen name of every group, and what these entries and the overrides make together.

    Args:
        said: Names that were given.
        overrides: All overrides, picks among them.
        own: The user's folder.
        defaults: Names that take the place of those in `config.yaml`.
    """
    chosen = {**root(own), **(defaults or {}), **said}
    if "gpu" in said and "cluster" not in said:
        chosen["cluster"] = _cluster_of(said["gpu"], chosen["cluster"], own)
    changes = [o for o in overrides if not o.is_pick]
    entries = {e: _entry(e, chosen, own) for e in ENTRIES if any(_reaches(o, e) for o in changes)}
    config = composed(chosen, entries, changes, own)
    for entry in entries:
        _cite(mapping_of(config, entry), entry, changes)
    return chosen, config


def site_record(name: str, config_dir: str | Path | None = None) -> Site:
    """An entry of `site/`, as a request holds it.

    Raises:
        ConfigError: no such entry, or one that breaks the schema.
    """
    own = own_folder("config_dir", config_dir)
    config = composed(root(own) | {"site": name}, {}, (), own)
    return site_of(name, mapping_of(config, "site"))


_HELD = {"profiles_dir": ("training", "serving", "operators")}
"""What a folder of the user's has some of, or it would be left out in silence."""


def own_folder(name: str, path: str | Path | None) -> Path | None:
    """The user's folder, if one is given."""
    if path is None or str(path) == "":
        return None
    folder = Path(path).expanduser()
    held = _HELD.get(name, ())
    try:
        found = folder.is_dir()
        useful = not held or any((folder / part).is_dir() for part in held)
    except (OSError, ValueError):
        found = useful = False
    if not found:
        raise bad_value(name, str(path), "is not a folder", "give one laid out as the shipped data")
    if not useful:
        rule, hint = f"holds none of {', '.join(held)}", "give what calibrate or measure-ops wrote"
        raise bad_value(name, str(path), rule, hint)
    check_name(name, folder.resolve())
    return folder


def resolved_folder(name: str, path: str | Path | None) -> str:
    """Its absolute path as text; empty when none is given."""
    folder = own_folder(name, path)
    return str(folder.resolve()) if folder else ""


def said_names(
    flags: Mapping[str, str | None], job: Mapping[str, object], overrides: Sequence[Override]
) -> dict[str, str]:
    """Names and plain values that were given, each by a flag or by an override, not by both."""
    said = {key: value for key, value in flags.items() if value is not None}
    given = {**said, **{f"workload.{k}": v for k, v in job.items() if v is not None}}
    for override in overrides:
        if override.key in given:
            flag = "--" + override.key.rpartition(".")[2].replace("_", "-")
            raise ConfigError(f"override: {override.key} is given by {flag} too; leave one")
        if override.is_pick:
            said[override.key] = picked(override)
    return said


def _cluster_of(gpu: str, default: str, config_dir: Path | None) -> str:
    """The default cluster if it has that GPU, else NVIDIA's own system, else the first that has.

    Raises:
        ConfigError: no cluster of the catalog has that GPU, so its links are unknown.
    """
    wanted = catalog.gpu(gpu, config_dir).name
    others = sorted(catalog.names("cluster", config_dir), key=lambda n: not n.startswith("dgx-"))
    for name in (default, *others):
        if catalog.cluster(name, config_dir).gpu.name == wanted:
            return name
    raise bad_value("gpu", gpu, "is in no cluster of the catalog", "name its node with --cluster")


def _reaches(override: Override, entry: str) -> bool:
    """Whether an override changes a field of a catalog entry, or of the GPU in a cluster."""
    return override.key.partition(".")[0] == entry


def _entry(group: str, chosen: Mapping[str, str], config_dir: Path | None) -> dict[str, Any]:
    """A catalog entry in its file's own keys."""
    if group == "model" and _is_json(chosen["model"]):
        return _file_keys(catalog.model(chosen["model"], config_dir))
    if group == "gpu":
        return dict(catalog.entry("gpu", _gpu_name(chosen, config_dir), config_dir))
    return dict(catalog.entry(group, chosen[group], config_dir))


def _cite(values: dict[str, Any], entry: str, changes: Sequence[Override]) -> None:
    """Say of every overridden number that the request gave it, not the catalog's source."""
    sources = values.get("sources") or {}
    for change in changes:
        field = change.key.removeprefix(f"{entry}.")
        if field != change.key and not change.text.startswith("~") and isinstance(sources, dict):
            values["sources"] = sources | {field: f"given by the override {change.key}"}
            sources = values["sources"]


def _is_json(name: str) -> bool:
    path = Path(name)
    return path.suffix == ".json" or path.is_dir()


def _file_keys(model: Model) -> dict[str, Any]:
    """A model as its catalog file would be; what is unknown is left out."""
    values = {
        k: v for k, v in asdict(model).items() if k not in ("name", "source") and v is not None
    }
    return values | {"sources": {"*": model.source}} if model.source else values


def _gpu_name(chosen: Mapping[str, str], config_dir: Path | None) -> str:
    return chosen.get("gpu") or catalog.cluster(chosen["cluster"], config_dir).gpu.name


def model_of(
    chosen: Mapping[str, str], config: Mapping[str, Any], config_dir: Path | None
) -> Model:
    """The model with its overrides."""
    plain = catalog.model(chosen["model"], config_dir)
    return model_record(plain.name, mapping_of(config, "model")) if "model" in config else plain


def cluster_of(
    chosen: Mapping[str, str], config: Mapping[str, Any], config_dir: Path | None
) -> Cluster:
    """The cluster with its overrides, its GPU replaced or changed when that was asked for."""
    plain = catalog.cluster(chosen["cluster"], config_dir)
    if not {"cluster", "gpu"} & config.keys() and "gpu" not in chosen:
        return plain
    values = mapping_of(config, "cluster") if "cluster" in config else None
    named = str(values.get("gpu")) if values else plain.gpu.name
    gpu = catalog.gpu(chosen.get("gpu") or named, config_dir)
    if "gpu" in config:
        gpu = _with_its_share(gpu_record(gpu.name, mapping_of(config, "gpu")), gpu)
    content = values or dict(catalog.entry("cluster", chosen["cluster"], config_dir))
    return cluster_record(plain.name, content, gpu)


def _with_its_share(changed: Gpu, plain: Gpu) -> Gpu:
    """A GPU that overrides changed: of another peak its best product reaches the same share."""
    best = plain.measured_matmul_flops_per_s
    if changed.measured_matmul_flops_per_s != best:
        return changed
    more = changed.half_flops_per_s / plain.half_flops_per_s
    return replace(changed, measured_matmul_flops_per_s=best * more)


def _workload(
    config: Mapping[str, Any], flags: Mapping[str, object], model: Model
) -> dict[str, tuple[Any, str]]:
    """Batch, sequence and tokens, each with where it came from ("" when it was said)."""
    values = {k: v for k, v in mapping_of(config, "workload").items() if k != "sources"}
    composed = read_fields(values, _WORKLOAD_RULES, required=(), where="workload")
    given = {k: v for k, v in flags.items() if v is not None}
    said = composed | read_fields(given, _WORKLOAD_RULES, required=(), where="workload")
    usual = asdict(model.training) if model.training else {}
    job: dict[str, tuple[Any, str]] = {}
    for key in _WORKLOAD_RULES:
        if said.get(key) is not None:
            job[key] = (said[key], "")
        else:
            job[key] = (usual[key], f"of {model.name}") if usual else _unstated(key, model)
    return job


def _unstated(key: str, model: Model) -> tuple[Any, str]:
    """What a model without a training job leaves open."""
    if key == "tokens":
        return None, "unknown"
    if key == "seq_length" and model.max_position_embeddings:
        longest = model.max_position_embeddings
        return min(longest, SEQ_LENGTH_CAP), f"of {model.name}'s maximum {longest}"
    flag = "--" + key.replace("_", "-")
    raise ConfigError(
        f"{key}: {model.name} states no training job, so there is no default; give {flag}"
    )


def mapping_of(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping under `key`."""
    values = config.get(key)
    if not isinstance(values, dict):
        raise bad_value(key, values, "is not a mapping", f"override its keys: {key}.KEY=VALUE")
    return values


def _text(config: Mapping[str, Any], key: str) -> str:
    return str(Rule(kind=str).read(key, config.get(key)))


def site_of(name: str, values: Mapping[str, Any]) -> Site:
    """The record of a site's entry."""
    known = Site.__dataclass_fields__.keys() - {"name"}
    if odd := sorted(values.keys() - known - {"sources"}):
        raise ConfigError(f"site: unknown key {shown(odd[0])}; {nearest(odd[0], known)}")
    lists: dict[str, Any] = {
        key: tuple(texts(values.get(key) or (), f"site.{key}")) for key in ("mounts", "data_path")
    }
    maps: dict[str, Any] = {
        "environment": text_mapping(values.get("environment") or {}, "site.environment")
    }
    words = {
        key: Rule(kind=str).read(f"site.{key}", values[key])
        for key in known - lists.keys() - maps.keys()
        if values.get(key) is not None
    }
    return Site(name=name, **words, **lists, **maps)


def _assumptions(
    config: Mapping[str, Any],
    chosen: Mapping[str, str],
    said: Mapping[str, str],
    overrides: Sequence[Override],
    workload: Mapping[str, tuple[Any, str]],
) -> tuple[str, ...]:
    """What was taken from a default, one phrase each, in the order of the contract."""
    keys = {override.key for override in overrides}
    phrases = [f"cluster {chosen['cluster']}"] if "cluster" not in said else []
    for key in ("framework", "precision"):
        if key not in said and key not in keys:
            phrases.append(f"{key} {config[key]}")
    phrases += ["flash attention", "fp32 gradient reduction"]
    if "space" not in said:
        phrases.append(f"space {chosen['space']}")
    for key, (value, origin) in workload.items():
        if origin:
            shown = f"{value:g}" if isinstance(value, float) else value
            phrases.append(f"{key} {origin}" if value is None else f"{key} {shown} {origin}")
    return tuple(phrases)
