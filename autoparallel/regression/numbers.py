"""The numbers behind a training prediction, under the names a user finds in the files.

`cluster.inter_link.bandwidth_gb_per_s` is the key in the cluster's file and the override on the
command line; `constants.inter_bandwidth` is the one in the profile. `changed` puts other values in
their place, which is how a check finds out what an old number would give today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from autoparallel.catalog_schema import CLUSTER_RULES, GPU_RULES, LINK_RULES
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
    """Every number that the predictions in a setting rest on."""
    cluster = where.request.cluster
    model = {k: v for k, v in _record(where.request.model) if v}
    gpu = dict(_record(cluster.gpu, leave=("peak_flops_per_s",)))
    peaks = {_PEAKS + k: _rounded(v / TERA) for k, v in cluster.gpu.peak_flops_per_s.items()}
    found = {
        "model": model,
        "cluster": {
            **dict(_record(cluster, leave=("gpu", *_LINKS))),
            **{f"{x}.{k}": v for x in _LINKS for k, v in _record(getattr(cluster, x))},
        },
        "gpu": {"name": cluster.gpu.name, **gpu, **peaks},
        "profile": {
            "family": where.calibration.family,
            "borrowed_from": where.calibration.borrowed_from,
        },
        "constants": dict(_record(where.calibration.constants)),
        "memory": dict(_record(where.calibration.memory)),
        "spread": dict(_record(where.calibration.spread)),
        "framework": dict(_record(where.framework.traits)),
        "space": {k: _as_list(v) for k, v in where.request.space.items() if k != "sources"},
    }
    return {f"{group}.{k}": v for group, block in found.items() for k, v in block.items()}


def changed(where: Setting, values: Numbers) -> Setting:
    """The setting with some of its numbers replaced; names that it does not have are left out."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = value
    for group, block in groups.items():
        if group in _CHANGERS:
            where = _CHANGERS[group](where, block)
    return where


def _record(record: Any, leave: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """A record's numbers in the units of its file."""
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


def _with_model(where: Setting, block: Mapping[str, Any]) -> Setting:
    model = _replaced(where.request.model, block)
    return replace(where, request=replace(where.request, model=model))


def _with_cluster(where: Setting, block: Mapping[str, Any]) -> Setting:
    cluster = _replaced(where.request.cluster, {k: v for k, v in block.items() if "." not in k})
    for link in _LINKS:
        own = {k.partition(".")[2]: v for k, v in block.items() if k.startswith(f"{link}.")}
        cluster = replace(cluster, **{link: _replaced(getattr(cluster, link), own)})
    return replace(where, request=replace(where.request, cluster=cluster))


def _with_gpu(where: Setting, block: Mapping[str, Any]) -> Setting:
    gpu = where.request.cluster.gpu
    peaks = {
        key.removeprefix(_PEAKS): value * TERA
        for key, value in block.items()
        if key.startswith(_PEAKS)
    }
    gpu = replace(_replaced(gpu, block), peak_flops_per_s=gpu.peak_flops_per_s | peaks)
    cluster = replace(where.request.cluster, gpu=gpu)
    return replace(where, request=replace(where.request, cluster=cluster))


def _with_calibrated(name: str) -> Callable[[Setting, Mapping[str, Any]], Setting]:
    def change(where: Setting, block: Mapping[str, Any]) -> Setting:
        record = _replaced(getattr(where.calibration, name), block)
        return replace(where, calibration=replace(where.calibration, **{name: record}))

    return change


def _with_traits(where: Setting, block: Mapping[str, Any]) -> Setting:
    traits = _replaced(where.framework.traits, block)
    return replace(where, framework=replace(where.framework, traits=traits))


def _with_space(where: Setting, block: Mapping[str, Any]) -> Setting:
    space = {**where.request.space, **block}
    return replace(where, request=replace(where.request, space=space))


_CHANGERS: Mapping[str, Callable[[Setting, Mapping[str, Any]], Setting]] = {
    "model": _with_model,
    "cluster": _with_cluster,
    "gpu": _with_gpu,
    "constants": _with_calibrated("constants"),
    "memory": _with_calibrated("memory"),
    "spread": _with_calibrated("spread"),
    "framework": _with_traits,
    "space": _with_space,
}
