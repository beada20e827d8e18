"""When nothing fits: what is missing, and the nearest request that has an answer.

`shortfall` reads the candidate that came closest. `remedies` lists changed requests, the cheapest
change first, `lawful` those for a request that has no legal layout; `first_working` tries them with
a function that searches one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoparallel import catalog
from autoparallel.cost.memory import Memory
from autoparallel.errors import ConfigError
from autoparallel.hardware import Gpu
from autoparallel.layout import Layout
from autoparallel.ranking.evaluation import Setting
from autoparallel.ranking.order import Ranked, Table
from autoparallel.request import TrainingRequest

DOUBLINGS = 10
"""How often the number of GPUs is doubled in search of one that suffices."""
TRIED = 8
"""Global batches that are tried."""
CLOSE = 0.05
"""Change of a global batch, as a share, that a team takes for the sake of its GPUs."""
THRIFTY = {"zero_stage": [0, 1, 2, 3], "optimizer_offload_fraction": [0, 1]}
"""Knobs that save memory and that the default space leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """The candidate that came closest to fitting, and what it lacks.

    Attributes:
        capacity_bytes: Memory of one GPU.
        short_bytes: Needed beyond the capacity for an even chance to fit.
        largest: The largest part of the memory, with its bytes.
    """

    layout: Layout
    memory_bytes: float
    capacity_bytes: float
    short_bytes: float
    fits_probability: float
    largest: tuple[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A changed request that has fitting layouts.

    Attributes:
        flags: What to add to the command line.
        best: The best layout then.
        feasible: How many fit.
    """

    flags: str
    best: Layout
    iteration_s: float
    fits_probability: float
    feasible: int


def shortfall(where: Setting, miss: Table) -> Shortfall:
    """What the nearest miss lacks."""
    used = miss.scores.memory
    parts = {name: _first(getattr(used, name)) for name in Memory.__dataclass_fields__}
    total, capacity = sum(parts.values()), where.request.cluster.gpu.memory_bytes
    return Shortfall(
        layout=miss.knobs.layout(0, where.framework.name),
        memory_bytes=total,
        capacity_bytes=capacity,
        short_bytes=max(total - capacity, 0.0),
        fits_probability=_first(miss.scores.fits_probability),
        largest=max(parts.items(), key=lambda item: item[1]),
    )


def _first(value: Any) -> float:
    return float(np.asarray(value).reshape(-1)[0])


def remedies(request: TrainingRequest) -> Iterator[Iterable[tuple[str, TrainingRequest]]]:
    """Kinds of change (a thriftier space, more GPUs, larger ones), each with requests to try."""
    yield _thrifty(request)
    yield _more_gpus(request)
    yield _larger_gpus(request)


def lawful(request: TrainingRequest) -> Iterator[Iterable[tuple[str, TrainingRequest]]]:
    """Kinds of change to try where no layout is legal: another global batch."""
    yield _near_batches(request)


def first_working(
    kinds: Iterable[Iterable[tuple[str, TrainingRequest]]],
    search: Callable[[TrainingRequest], tuple[Setting, Ranked]],
) -> list[Remedy]:
    """The first change of each kind, as `remedies` lists them, under which something fits."""
    found = []
    for tries in kinds:
        for flags, changed in tries:
            where, result = search(changed)
            if result.best is not None:
                found.append(_remedy(flags, where, result, result.best))
                break
    return found


def _remedy(flags: str, where: Setting, result: Ranked, best: Table) -> Remedy:
    return Remedy(
        flags=flags,
        best=best.knobs.layout(0, where.framework.name),
        iteration_s=float(best.scores.iteration_s[0]),
        fits_probability=float(best.scores.fits_probability[0]),
        feasible=result.feasible,
    )


def _thrifty(request: TrainingRequest) -> list[tuple[str, TrainingRequest]]:
    """The same space with every sharding stage and the optimizer on the host."""
    space = {**request.space, **THRIFTY}
    flags = " ".join(f"space.{key}={_list(value)}" for key, value in THRIFTY.items())
    return [] if space == dict(request.space) else [(flags, replace(request, space=space))]


def _near_batches(request: TrainingRequest) -> Iterator[tuple[str, TrainingRequest]]:
    """Global batches that some number of replicas divides.

    Those within 5 % of the wanted one come first, of them those of most replicas, which leave the
    search most meshes; then the nearest.
    """
    gpus, wanted = request.num_gpus, request.global_batch_size
    most: dict[int, int] = {}
    for n in (n for n in range(2, gpus + 1) if gpus % n == 0):
        most |= dict.fromkeys({wanted // n * n, -(-wanted // n) * n} - {0, wanted}, n)

    def order(batch: int) -> tuple[bool, int, int, int]:
        off = abs(batch - wanted)
        near = off <= CLOSE * wanted
        return not near, -most[batch] * near, off, batch

    for batch in sorted(most, key=order)[:TRIED]:
        yield f"--global-batch-size {batch}", replace(request, global_batch_size=batch)


def _list(values: list[int]) -> str:
    return "[" + ",".join(map(str, values)) + "]"


def _alike(gpu: Gpu, own: Gpu) -> bool:
    """Whether software for `own` runs on `gpu`: CUDA, ROCm or neither for both."""
    ours, theirs = (g.generation.rstrip("0123456789") for g in (own, gpu))
    return ours == theirs or not {"cdna", "cpu"} & {ours, theirs}


def _more_gpus(request: TrainingRequest) -> Iterator[tuple[str, TrainingRequest]]:
    for times in range(1, DOUBLINGS + 1):
        count = request.num_gpus << times
        try:
            yield f"--gpus {count}", replace(request, num_gpus=count)
        except ConfigError:  # more than the named machine has
            return


def _larger_gpus(request: TrainingRequest) -> Iterator[tuple[str, TrainingRequest]]:
    """GPUs of the catalog with more memory, the smallest of them first, in the same network."""
    own = request.cluster.gpu
    known = [catalog.gpu(name) for name in catalog.names("gpu")]
    larger = [g for g in known if g.memory_bytes > own.memory_bytes and _alike(g, own)]
    for gpu in sorted(larger, key=lambda g: g.memory_bytes):
        try:
            changed = replace(request, cluster=replace(request.cluster, gpu=gpu))
        except ConfigError:  # it lacks the precision asked for
            continue
        yield f"--cluster {request.cluster.name} --gpu {gpu.name}", changed
