"""Nearby runs: by how much measured layouts took longer than the formulas say.

What a formula leaves out (which kernel a library picks for a shape, which protocol for a message)
is alike for layouts that are alike. So the log of measured over predicted is a Gaussian process
over layouts (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, ch. 2): a run
speaks for its neighbourhood and, by itself, for nothing a few lengths away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]

LENGTHS: Mapping[str, float] = {
    "hidden_size": 1.0,
    "micro_batch_tokens": 1.0,
    "tp": 1.0,
    "pp": 1.0,
    "vpp": 2.0,
    "cp": 1.0,
    "ep": 1.0,
    "dp": 3.0,
    "micro_batches": 3.0,
}
"""How many octaves apart two sizes are strangers."""
STEPS: Mapping[str, float] = {
    "zero": 1.0,
    "sequence_parallel": 1.0,
    "recompute": 1.0,
    "narrow": 1.0,
}
"""The same for choices that are numbered: ZeRO stage, on or off, none to selective to full."""
PLACE = (*LENGTHS, *STEPS)
"""What places a run, in the order of the columns of `Nearby.places`."""
AMPLITUDE = 0.08
"""Standard deviation of the log that neighbours share."""
NOISE = 0.05
"""The same of what is one run's alone."""
MOST = 0.3
"""A run's log that counts at most: beyond it something else was wrong."""
MOST_PLACES = 1_000
"""Places beyond which solving for them costs more than they tell."""
MOST_NUMBER = 1e9
"""Above it no size of a run is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearby:
    """M distinct measured layouts of a family.

    Attributes:
        places: Where each is, [M, len(PLACE)]: sizes and numbered choices in the order of `PLACE`.
        slower: Measured over predicted step time [M].
        runs: Runs behind each [M].
    """

    places: Column
    slower: Column
    runs: Column

    @cached_property
    def _spots(self) -> Column:
        return spots_of(self.places)

    @cached_property
    def _inverse(self) -> Column:
        """Of the covariance of what the runs show, over `AMPLITUDE` squared [M, M]."""
        noise = (NOISE / AMPLITUDE) ** 2 / self.runs
        return np.asarray(np.linalg.inv(_likeness(self._spots, self._spots) + np.diag(noise)))

    @cached_property
    def _weights(self) -> Column:
        return np.asarray(self._inverse @ _heeded(self.slower))

    def factors(self, sizes: Column, choices: Column) -> Column:
        """What to multiply step times by: layouts of every sizes and choices together [I, J].

        A likeness is that of the sizes times that of the choices, so I + J exponentials a run are
        enough for all I x J.

        Args:
            sizes: Places among `LENGTHS` [I, len(LENGTHS)].
            choices: Places among `STEPS` [J, len(STEPS)].
        """
        split = len(LENGTHS)
        of_sizes = _likeness(octaves(sizes), self._spots[:, :split]) * self._weights
        of_choices = _likeness(steps(choices), self._spots[:, split:])
        return np.asarray(np.exp(of_sizes @ of_choices.T))

    def doubt(self, places: Column) -> Column:
        """Share of the variance that the runs leave at `places` [N, len(PLACE)], 0 to 1 [N]."""
        likeness = _likeness(spots_of(places), self._spots)
        told = (likeness @ self._inverse * likeness).sum(axis=1)
        return np.asarray(np.clip(1 - told, 0.0, 1.0))


def octaves(sizes: Column) -> Column:
    """Sizes [N, len(LENGTHS)] in units of lengths."""
    return np.asarray(np.log2(np.maximum(sizes, 1e-3)) / np.array([*LENGTHS.values()]))


def steps(choices: Column) -> Column:
    """Numbered choices [N, len(STEPS)] in units of lengths."""
    return np.asarray(choices / np.array([*STEPS.values()]))


def spots_of(places: Column) -> Column:
    """Places in units of lengths [N, len(PLACE)]."""
    split = len(LENGTHS)
    return np.concatenate([octaves(places[:, :split]), steps(places[:, split:])], axis=1)


def _likeness(a: Column, b: Column) -> Column:
    """Squared exponential between spots a [N, D] and b [M, D], 1 at the same spot: [N, M]."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.exp(-0.5 * np.maximum(squared, 0.0)))


def _heeded(slower: Column) -> Column:
    """Logs of what runs took over what was predicted, as far as they count."""
    return np.clip(np.log(slower), -MOST, MOST)


def nearby_of(places: Column, slower: Column) -> Nearby:
    """Runs at `places` [N, len(PLACE)], those at one place taken together (geometric mean).

    Of more than `MOST_PLACES` places every second, third, ... is kept.
    """
    distinct, own = np.unique(places, axis=0, return_inverse=True)
    runs = np.bincount(own.ravel()).astype(np.float64)
    mean = np.bincount(own.ravel(), weights=_heeded(slower)) / runs
    kept = np.arange(0, len(distinct), -(-len(distinct) // MOST_PLACES))
    return Nearby(places=distinct[kept], slower=np.exp(mean[kept]), runs=runs[kept])


def nearby_text(nearby: Nearby) -> str:
    """The runs as a CSV table: a row each, `PLACE` and then `runs` and `slower`."""
    lines = [",".join((*PLACE, "runs", "slower"))]
    for place, runs, slower in zip(nearby.places, nearby.runs, nearby.slower, strict=True):
        lines.append(",".join([*(f"{x:.6g}" for x in place), f"{runs:g}", f"{slower:.4f}"]))
    return "\n".join(lines)


def read_nearby(text: str) -> Nearby:
    """What `nearby_text` wrote.

    Raises:
        ValueError: not such a table, or a number that no run can have.
    """
    head, *lines = text.split()
    names = (*PLACE, "runs", "slower")
    if head.split(",") != list(names):
        raise ValueError(f"its columns are not {', '.join(names)}")
    rows = [line.split(",") for line in lines]
    if not rows or any(len(row) != len(names) for row in rows):
        raise ValueError(f"a row does not have {len(names)} numbers")
    table = np.array(rows, dtype=np.float64)
    *_, runs, slower = table.T
    if len(rows) > MOST_PLACES:
        raise ValueError(f"{len(rows):,} layouts; at most {MOST_PLACES:,} are used")
    if not ((table >= 0).all() and (table <= MOST_NUMBER).all() and (slower > 0).all()):
        raise ValueError(f"a number is negative, above {MOST_NUMBER:g}, or a time of 0")
    if not (runs >= 1).all():
        raise ValueError("a row of fewer runs than 1")
    return Nearby(places=table[:, : len(PLACE)], slower=slower, runs=runs)
