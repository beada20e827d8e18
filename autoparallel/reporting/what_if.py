"""What if: more or fewer GPUs, faster or slower links, other memory or batch.

Every case is the request with one thing changed: the winner is predicted again as it is, and the
search is run again for the layout that would be best then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from autoparallel.errors import ConfigError
from autoparallel.plan import PlanEntry
from autoparallel.planning import estimate, solved
from autoparallel.reporting.run import TrainingRun
from autoparallel.request import TrainingRequest

SCALES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The best plan of the same job on another number of GPUs.

    Attributes:
        entry: None where nothing is legal and fits.
        efficiency: Tokens a second and GPU over that of the smallest size that works.
    """

    gpus: int
    entry: PlanEntry | None
    tokens_per_s: float | None
    efficiency: float | None


def scaling(run: TrainingRun) -> tuple[Size, ...]:
    """The same batch on fewer and more GPUs, each planned again (strong scaling)."""
    request = run.request
    counts = dict.fromkeys(max(round(request.num_gpus * scale), 1) for scale in SCALES)
    found = {n: run.winner if n == request.num_gpus else _on(request, n) for n in counts}
    rates = {n: e.tokens_per_s_per_gpu if e else None for n, e in found.items()}
    base = next((rate for rate in rates.values() if rate), 1.0)
    return tuple(_size(n, entry, base) for n, entry in found.items())


def _size(gpus: int, entry: PlanEntry | None, base: float) -> Size:
    rate = entry.tokens_per_s_per_gpu if entry else None
    return Size(
        gpus=gpus,
        entry=entry,
        tokens_per_s=rate * gpus if rate else None,
        efficiency=rate / base if rate else None,
    )


def _on(request: TrainingRequest, gpus: int) -> PlanEntry | None:
    try:
        return best_entry(replace(request, num_gpus=gpus))
    except ConfigError:  # more than the named machine has
        return None


def best_entry(request: TrainingRequest) -> PlanEntry | None:
    """The best layout of a request, predicted; None when nothing fits."""
    where, found = solved(request)
    if found.best is None:
        return None
    layout = found.best.knobs.layout(0, where.framework.name)
    return estimate(request, layout, among=found).entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing changed.

    Attributes:
        kept: Throughput of the winner over today's, minus 1; None where it breaks a rule then.
        kept_fits: Whether the winner still fits.
        planned: The same of the layout that is best then; None where nothing fits.
        layout: That layout.
    """

    name: str
    kept: float | None
    kept_fits: bool
    planned: float | None
    layout: str


Change = Callable[[TrainingRequest, float], TrainingRequest]


def sensitivity(run: TrainingRun) -> tuple[Case, ...]:
    """Links, memory, compute and batch, each down and up."""
    now = run.winner.tokens_per_s_per_gpu or 1.0
    found = []
    for name, change, factors in _CHANGES:
        for factor in factors:
            try:
                changed = change(run.request, factor)
            except ConfigError:  # such as a batch below 1
                continue
            found.append(_case(f"{name} × {factor:g}", run, changed, now))
    return tuple(found)


def _case(name: str, run: TrainingRun, changed: TrainingRequest, now: float) -> Case:
    kept = estimate(changed, run.winner.layout).entry
    best = best_entry(changed)
    return Case(
        name=name,
        kept=kept.tokens_per_s_per_gpu / now - 1 if kept.tokens_per_s_per_gpu else None,
        kept_fits=kept.fits,
        planned=best.tokens_per_s_per_gpu / now - 1 if best and best.tokens_per_s_per_gpu else None,
        layout=str(best.layout) if best else "",
    )


def _link(request: TrainingRequest, factor: float, name: str) -> TrainingRequest:
    link = getattr(request.cluster, name)
    faster = replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * factor)
    changed: dict[str, Any] = {name: faster}
    return replace(request, cluster=replace(request.cluster, **changed))


def _memory(request: TrainingRequest, factor: float) -> TrainingRequest:
    gpu = replace(request.cluster.gpu, memory_bytes=request.cluster.gpu.memory_bytes * factor)
    return replace(request, cluster=replace(request.cluster, gpu=gpu))


def _compute(request: TrainingRequest, factor: float) -> TrainingRequest:
    gpu = request.cluster.gpu.with_arithmetic(factor)
    return replace(request, cluster=replace(request.cluster, gpu=gpu))


def _batch(request: TrainingRequest, factor: float) -> TrainingRequest:
    return replace(request, global_batch_size=round(request.global_batch_size * factor))


_CHANGES: tuple[tuple[str, Change, tuple[float, ...]], ...] = (
    ("fabric bandwidth", partial(_link, name="inter_link"), (0.5, 2.0)),
    ("NVLink bandwidth", partial(_link, name="intra_link"), (0.5, 2.0)),
    ("GPU memory", _memory, (0.75, 1.25)),
    ("GPU compute", _compute, (0.8, 1.2)),
    ("global batch", _batch, (0.5, 2.0)),
)
