"""The cases of a sweep: the product of its axes, each a request with a name of its own."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autoparallel.errors import CatalogError, ConfigError, bad_value
from autoparallel.planning import checked
from autoparallel.provenance import provenance
from autoparallel.request import TrainingRequest, training_request

MAX_CASES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """Values of every axis; one value is one that does not vary.

    Attributes:
        weak: Whether the batch grows with the GPUs, from its value at the smallest number of them.
        usd_per_gpu_hour: Cluster -> price, in place of the catalog's.
        fixed: Other arguments of `training_request`, the same for all.
    """

    model: tuple[str, ...]
    num_gpus: tuple[int, ...]
    cluster: tuple[str | None, ...] = (None,)
    framework: tuple[str | None, ...] = (None,)
    precision: tuple[str | None, ...] = (None,)
    global_batch_size: tuple[int | None, ...] = (None,)
    seq_length: tuple[int | None, ...] = (None,)
    weak: bool = False
    usd_per_gpu_hour: Mapping[str, float] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepCase:
    """One request of a sweep, or why it cannot be one.

    Attributes:
        id: Digest of the request and of the data it is answered with: another catalog or profile
            is another case.
        values: The axes' values, for the table.
    """

    id: str
    values: Mapping[str, Any]
    request: TrainingRequest | None
    error: str = ""


def cases(axes: Axes) -> list[SweepCase]:
    """Every case of the axes, in order.

    Raises:
        ConfigError: more than 10,000 cases, an unknown name, or not one request that is possible.
    """
    sizes = [len(values) for values in _varied(axes).values()]
    total = 1
    for size in sizes:
        total *= size
    if not 0 < total <= MAX_CASES:
        raise bad_value("sweep", total, f"cases are not 1 to {MAX_CASES:,}", "give fewer values")
    found = list(_made(axes))
    if all(case.request is None for case in found):
        raise ConfigError(f"sweep: no case is possible; the first: {found[0].error}")
    return list({case.id: case for case in found}.values())


def _varied(axes: Axes) -> dict[str, tuple[Any, ...]]:
    names = ("model", "cluster", "framework", "precision", "seq_length", "global_batch_size")
    return {name: getattr(axes, name) for name in (*names, "num_gpus")}


def _made(axes: Axes) -> Iterator[SweepCase]:
    varied = _varied(axes)
    for values in itertools.product(*varied.values()):
        given = dict(zip(varied, values, strict=True))
        try:
            request = _priced(axes, _request(axes, given))
        except CatalogError:
            raise  # a name that is wrong here is wrong in every case
        except ConfigError as error:
            digest = _digest({"values": given, "error": str(error)})
            yield SweepCase(id=digest, values=given, request=None, error=str(error))
        else:
            shown = given | {
                "cluster": request.cluster.name,
                "framework": request.framework,
                "precision": request.precision,
                "seq_length": request.seq_length,
                "global_batch_size": request.global_batch_size,
            }
            digest = _digest(request.to_mapping() | {"overrides": [], "assumptions": []})
            yield SweepCase(id=digest, values=shown, request=request)


def _request(axes: Axes, given: Mapping[str, Any]) -> TrainingRequest:
    said = {key: value for key, value in given.items() if value is not None}
    request = checked(training_request(**said, **axes.fixed))
    if not axes.weak:
        return request
    base = min(axes.num_gpus)
    scaled, rest = divmod(request.global_batch_size * request.num_gpus, base)
    if rest:
        rule = f"does not grow from {base} to {request.num_gpus} GPUs as a whole number"
        raise bad_value("global_batch_size", request.global_batch_size, rule, "give another batch")
    return replace(request, global_batch_size=scaled)


def _priced(axes: Axes, request: TrainingRequest) -> TrainingRequest:
    price = axes.usd_per_gpu_hour.get(request.cluster.name)
    if price is None:
        return request
    return replace(request, cluster=replace(request.cluster, usd_per_gpu_hour=price))


def _digest(values: Mapping[str, Any]) -> str:
    made_with = provenance()
    state = {
        "case": dict(values),
        "catalog": made_with.catalog_digest,
        "profiles": made_with.profile_digest,
        "version": made_with.versions["autoparallel"],
    }
    text = json.dumps(state, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
