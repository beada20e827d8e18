"""The numbers behind a prediction, under the names a user finds in the files.

`cluster.inter_link.bandwidth_gb_per_s` is the key in the cluster's file and the override on the
command line; `constants.inter_bandwidth` is the one in the profile. `changed` puts other values in
their place, which is how a check finds out what an old number would give today.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from autoparallel.catalog_schema import CLUSTER_RULES, GPU_RULES, LINK_RULES
from autoparallel.hardware import Cluster
from autoparallel.model import Model
from autoparallel.ranking import Setting
from autoparallel.regression.kinds import Numbers
from autoparallel.units import TERA

_UNSAID = (
    *("name", "source", "training", "published_parameters", "max_gpus", "tdp_w", "idle_w", "pue"),
    *("usd_per_gpu_hour", "grid_kg_co2_per_kwh", "failures_per_node_day"),
    "checkpoint_bandwidth_bytes_per_s_per_node",
)
"""Fields that neither time nor memory reads: names, prices, power, failures."""
_LINKS = ("intra_link", "inter_link")
_PEAKS = "peak_tflops."
_UNITS: Mapping[str, tuple[str, float]] = {
    rule.into: (key, rule.factor)
    for rules in (GPU_RULES, LINK_RULES, CLUSTER_RULES)
    for key, rule in rules.items()
    if rule.into
}
_FIELDS = {key: (name, factor) for name, (key, factor) in _UNITS.items()}


def used_numbers(where: Setting) -> dict[str, Any]:
    """Every number that the training predictions in a setting rest on."""
    found = {
        "profile": {
            "family": where.calibration.family,
            "borrowed_from": where.calibration.borrowed_from,
        },
        "constants": numbers_of(where.calibration.constants),
        "memory": numbers_of(where.calibration.memory),
        "spread": numbers_of(where.calibration.spread),
        "framework": numbers_of(where.framework.traits),
        "space": space_numbers(where.request.space),
    }
    catalog = catalog_numbers(where.request.model, where.request.cluster)
    return catalog | {f"{group}.{k}": v for group, block in found.items() for k, v in block.items()}


def catalog_numbers(model: Model, cluster: Cluster) -> dict[str, Any]:
    """The numbers of a model and a cluster with its GPU."""
    gpu = numbers_of(cluster.gpu, leave=("peak_flops_per_s",))
    peaks = {_PEAKS + k: _rounded(v / TERA) for k, v in cluster.gpu.peak_flops_per_s.items()}
    found = {
        "model": {k: v for k, v in numbers_of(model).items() if v},
        "cluster": {
            **numbers_of(cluster, leave=("gpu", *_LINKS)),
            **{f"{x}.{k}": v for x in _LINKS for k, v in numbers_of(getattr(cluster, x)).items()},
        },
        "gpu": {"name": cluster.gpu.name, **gpu, **peaks},
    }
    return {f"{group}.{k}": v for group, block in found.items() for k, v in block.items()}


def space_numbers(space: Mapping[str, Any]) -> dict[str, Any]:
    """What a space lists, as a file has it."""
    return {k: _as_list(v) for k, v in space.items() if k != "sources"}


def grouped(values: Numbers) -> dict[str, dict[str, Any]]:
    """`gpu.tdp_w` under `gpu`, `tdp_w`; the rest of a name stays dotted."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = value
    return groups


def changed_records(
    model: Model, cluster: Cluster, groups: Mapping[str, Mapping[str, Any]]
) -> tuple[Model, Cluster]:
    """A model and a cluster with some of their numbers replaced."""
    model = _replaced(model, groups.get("model", {}))
    return model, _changed_gpu(_changed_cluster(cluster, groups.get("cluster", {})), groups)


def changed(where: Setting, values: Numbers) -> Setting:
    """The setting with some of its numbers replaced; names that it does not have are left out."""
    groups = grouped(values)
    request, calibration = where.request, where.calibration
    model, cluster = changed_records(request.model, request.cluster, groups)
    space = {**request.space, **groups.get("space", {})}
    kinds = ("constants", "memory", "spread")
    records = {k: _replaced(getattr(calibration, k), groups.get(k, {})) for k in kinds}
    traits = _replaced(where.framework.traits, groups.get("framework", {}))
    return replace(
        where,
        request=replace(request, model=model, cluster=cluster, space=space),
        calibration=replace(calibration, **records),
        framework=replace(where.framework, traits=traits),
    )


def numbers_of(record: Any, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """A record's numbers in the units of its file."""
    return dict(_numbers(record, leave))


def _numbers(record: Any, leave: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name in leave or field.name in _UNSAID or value is None:
            continue
        key, factor = _UNITS.get(field.name, (field.name, 1.0))
        yield key, value if isinstance(value, bool | str) else _rounded(value / factor)


def _rounded(value: float) -> float:
    """Twelve digits: the number as its file has it, without the dust of a change of units."""
    exact = float(f"{value:.12g}")
    return int(exact) if exact.is_integer() and abs(exact) < 1e15 else exact


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _replaced(record: Any, block: Mapping[str, Any]) -> Any:
    """A record with the fields that it has replaced, from the units of its file."""
    known = {field.name for field in fields(record)}
    pairs = ((_FIELDS.get(key, (key, 1.0)), value) for key, value in block.items())
    return replace(
        record,
        **{
            name: value if isinstance(value, bool | str) or factor == 1.0 else value * factor
            for (name, factor), value in pairs
            if name in known
        },
    )


def _changed_cluster(cluster: Cluster, block: Mapping[str, Any]) -> Cluster:
    found: Cluster = _replaced(cluster, {k: v for k, v in block.items() if "." not in k})
    for link in _LINKS:
        own = {k.partition(".")[2]: v for k, v in block.items() if k.startswith(f"{link}.")}
        found = replace(found, **{link: _replaced(getattr(found, link), own)})
    return found


def _changed_gpu(cluster: Cluster, groups: Mapping[str, Mapping[str, Any]]) -> Cluster:
    block, gpu = groups.get("gpu", {}), cluster.gpu
    peaks = {
        key.removeprefix(_PEAKS): value * TERA
        for key, value in block.items()
        if key.startswith(_PEAKS)
    }
    gpu = replace(_replaced(gpu, block), peak_flops_per_s=gpu.peak_flops_per_s | peaks)
    return replace(cluster, gpu=gpu)
