"""Shadow prices: what a little more of one resource would buy a layout, and the way to first place.

A resource is the memory of a GPU, its arithmetic, its memory bandwidth or a link. More memory buys
another layout, one knob away, that does not fit now; more of the others makes the same one faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoparallel.constants import FITS
from autoparallel.hardware import Cluster, Link
from autoparallel.layout import Layout
from autoparallel.ranking.evaluation import Setting
from autoparallel.ranking.order import Table
from autoparallel.ranking.reasons import Verdict, judged, steps, word_changes

MORE = 0.1
"""Growth of a bandwidth or a peak whose effect is told."""
LEAST_GAIN = 0.005
"""Share of the step below which a gain is not worth telling."""
BEAM, DEPTH = 6, 3
"""Layouts followed, and knobs changed, on the way to first place."""
JOB_ROWS = 2_000
"""Unfitting layouts looked at, those that need the least memory first."""
EVEN = 0.002
"""Share of the step within which two layouts are equally fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPrice:
    """What more memory would allow.

    Attributes:
        more_bytes: Memory a GPU would need beyond its own for an even chance to fit.
        gain_fraction: Share of the step saved then.
    """

    more_bytes: float
    layout: Layout
    iteration_s: float
    gain_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePrice:
    """What a tenth more of a rate would save, as a share of the step."""

    resource: str
    gain_fraction: float


def memory_prices(where: Setting, now: Verdict, near: Iterable[Verdict]) -> list[MemoryPrice]:
    """Faster neighbours that do not fit, the cheapest first; each faster than all cheaper ones."""
    capacity = where.request.cluster.gpu.memory_bytes
    if now.iteration_s is None:
        return []
    wanted = []
    for verdict in near:
        if verdict.fits or verdict.iteration_s is None or verdict.memory_bytes is None:
            continue
        gain = 1 - verdict.iteration_s / now.iteration_s
        more = verdict.memory_bytes - capacity
        if gain >= LEAST_GAIN and more > 0:
            wanted.append(
                MemoryPrice(
                    more_bytes=more,
                    layout=verdict.layout,
                    iteration_s=verdict.iteration_s,
                    gain_fraction=gain,
                )
            )
    return _worthwhile(wanted)


def job_memory_prices(where: Setting, sample: Table | None, winner_s: float) -> list[MemoryPrice]:
    """Layouts of the whole search that do not fit and are faster than the winner, as above.

    Args:
        where: The setting of the search.
        sample: What the search kept of all that it evaluated; the whole of a search of at most
            20,000 layouts.
        winner_s: Step of the winner.
    """
    if sample is None:
        return []
    capacity = where.request.cluster.gpu.memory_bytes
    scores = sample.scores
    gain = 1 - scores.iteration_s / winner_s
    more = scores.memory_bytes - capacity
    rows = np.flatnonzero((gain >= LEAST_GAIN) & (more > 0) & (scores.fits_probability < FITS))
    found = [
        MemoryPrice(
            more_bytes=float(more[row]),
            layout=sample.knobs.layout(int(row), where.framework.name),
            iteration_s=float(scores.iteration_s[row]),
            gain_fraction=float(gain[row]),
        )
        for row in rows[np.argsort(more[rows])][:JOB_ROWS]
    ]
    return _worthwhile(found)


def _worthwhile(prices: Sequence[MemoryPrice]) -> list[MemoryPrice]:
    """The cheapest first, each saving more than all cheaper ones."""
    kept: list[MemoryPrice] = []
    for price in sorted(prices, key=lambda p: p.more_bytes):
        if not kept or price.gain_fraction > kept[-1].gain_fraction + LEAST_GAIN:
            kept.append(price)
    return kept


def rate_prices(where: Setting, now: Verdict) -> list[RatePrice]:
    """What a tenth more of each rate of the machine saves, the largest saving first."""
    if now.iteration_s is None:
        return []
    found = []
    for resource, changed in _CHANGES.items():
        cluster = changed(where.request.cluster)
        richer = replace(where, request=replace(where.request, cluster=cluster))
        seconds = judged(richer, [now.layout])[0].iteration_s or now.iteration_s
        found.append(RatePrice(resource=resource, gain_fraction=1 - seconds / now.iteration_s))
    return sorted(found, key=lambda p: -p.gain_fraction)


def _faster_arithmetic(cluster: Cluster) -> Cluster:
    return replace(cluster, gpu=cluster.gpu.with_arithmetic(1 + MORE))


def _faster_memory(cluster: Cluster) -> Cluster:
    rate = cluster.gpu.memory_bandwidth_bytes_per_s * (1 + MORE)
    return replace(cluster, gpu=replace(cluster.gpu, memory_bandwidth_bytes_per_s=rate))


def _wider(link: Link) -> Link:
    return replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * (1 + MORE))


_CHANGES: dict[str, Callable[[Cluster], Cluster]] = {
    "arithmetic": _faster_arithmetic,
    "memory bandwidth": _faster_memory,
    "links inside the node": lambda c: replace(c, intra_link=_wider(c.intra_link)),
    "links between nodes": lambda c: replace(c, inter_link=_wider(c.inter_link)),
}


def way_to_win(where: Setting, layout: Layout, winner: Layout, winner_s: float) -> Verdict | None:
    """The layout with the fewest changed knobs that fits and is as fast as the winner.

    Looks up to three knobs away, along the best layouts of every step; beyond that the winner
    itself is the answer. None when `layout` wins already.
    """
    now = judged(where, [layout])[0]
    if now.fits and _wins(now, winner_s):
        return None
    front: Sequence[Verdict] = [now]
    seen = {layout}
    for _ in range(DEPTH):
        near = [v for start in front for v in steps(where, start.layout)]
        fresh = list({v.layout: v for v in near if v.layout not in seen}.values())
        seen |= {v.layout for v in fresh}
        ordered = sorted(fresh, key=lambda v: (not v.fits, v.iteration_s or 0.0))
        winning = [v for v in ordered if v.fits and _wins(v, winner_s)]
        if winning:
            return min(winning, key=lambda v: _changed(layout, v.layout))
        front = ordered[:BEAM]
        if not front:
            break
    return judged(where, [winner])[0]


def _wins(verdict: Verdict, winner_s: float) -> bool:
    return verdict.iteration_s is not None and verdict.iteration_s <= winner_s * (1 + EVEN)


def _changed(layout: Layout, other: Layout) -> int:
    gone, come = word_changes(layout, other)
    return max(len(gone.split()), len(come.split()))
