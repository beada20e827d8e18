"""Deployments as columns: what serves, under which load, and what a user of it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoparallel.constants import FITS
from autoparallel.inference.instance import Instance
from autoparallel.inference.setting import Setting

Column = NDArray[np.float64]
Rows = NDArray[np.intp] | NDArray[np.bool_]
PERCENTILES = ("mean", "p50", "p90", "p99")
"""Rows of a latency block [4, N]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What arrives at the whole deployment.

    Attributes:
        input_tokens, output_tokens: Of a request, mean; the answer's first token is counted.
        longest_tokens: Prompt and answer of the longest request.
        prefix_tokens: Prompt tokens found in the prefix cache.
        accepted_tokens: Tokens a decode step yields.
        request_rate: Requests a second at random; None for a closed loop.
        concurrency: Requests of the closed loop; 0 lets every deployment take what it can.
    """

    input_tokens: int
    output_tokens: int
    longest_tokens: int
    prefix_tokens: int = 0
    accepted_tokens: float = 1.0
    request_rate: float | None = None
    concurrency: int = 0

    @property
    def new_tokens(self) -> int:
        """Prompt tokens to compute."""
        return max(self.input_tokens - self.prefix_tokens, 1)

    @property
    def decode_steps(self) -> float:
        """Steps that generate the tokens after the first."""
        return (self.output_tokens - 1) / self.accepted_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the figure called `percentile` must keep; None for no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    percentile: str = "mean"

    @property
    def row(self) -> int:
        """Row of a latency block that the limits bind."""
        return PERCENTILES.index(self.percentile)

    def named(self) -> dict[str, float]:
        """The limits that are set, by the name of the latency."""
        return {
            name: value
            for name in ("ttft_s", "tpot_s", "e2e_s")
            if (value := getattr(self, name)) is not None
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Options:
    """Deployments as columns [N]; latencies are blocks [4, N] in the order of `PERCENTILES`.

    Attributes:
        settings: What `setting` and `prefill_setting` are indices into.
        worker, count: The replicas that decode (and prefill, when aggregated), and how many.
        prefill, prefill_count: The replicas that only prefill; none (count 0) when aggregated.
        concurrency, requests_per_s: Of the whole deployment.
        utilization: Share of what the deployment can complete that the load asks for.
        usd_per_s: Price of the GPUs in use; NaN without one.
        memory_bytes, fits_probability: Of the fullest GPU, running requests at their longest.
        reached: Whether the KV cache holds as many requests as the batch limit says.
    """

    settings: tuple[Setting, ...]
    setting: NDArray[np.intp]
    prefill_setting: NDArray[np.intp]
    worker: Instance
    count: Column
    prefill: Instance
    prefill_count: Column
    concurrency: Column
    requests_per_s: Column
    utilization: Column
    ttft_s: Column
    tpot_s: Column
    e2e_s: Column
    tokens_per_s: Column
    usd_per_s: Column
    memory_bytes: Column
    fits_probability: Column
    reached: NDArray[np.bool_]

    @property
    def size(self) -> int:
        """Rows."""
        return self.count.size

    @property
    def gpus(self) -> Column:
        """GPUs of the workers."""
        return np.asarray(
            self.count * self.worker.gpus + self.prefill_count * self.prefill.gpus, dtype=float
        )

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Whether the memory holds the weights and the load."""
        found: NDArray[np.bool_] = self.reached & (self.fits_probability >= FITS)
        return found

    def broken(self, limits: Limits) -> dict[str, NDArray[np.bool_]]:
        """Limit -> rows that break it."""
        at = limits.row
        return {name: ~(getattr(self, name)[at] <= value) for name, value in limits.named().items()}

    def meets(self, limits: Limits) -> NDArray[np.bool_]:
        """Rows that fit, keep up with the load, and keep every limit."""
        keeps_up = (self.utilization < 1 + 1e-9) & np.isfinite(self.ttft_s[0])
        good: NDArray[np.bool_] = self.fits & keeps_up
        for broken in self.broken(limits).values():
            good = good & ~broken
        return good

    def take(self, rows: Rows) -> Options:
        """The same at some rows."""
        changed = {
            f.name: _taken(getattr(self, f.name), rows)
            for f in fields(self)
            if f.name != "settings"
        }
        return replace(self, **changed)


def instance_rows(instance: Instance, rows: Rows) -> Instance:
    """An instance's columns at some rows; scalars stay."""
    return Instance(**{f.name: _taken(getattr(instance, f.name), rows) for f in fields(instance)})


def _taken(value: Any, rows: Rows) -> Any:
    if isinstance(value, Instance):
        return instance_rows(value, rows)
    array = np.asarray(value)
    return array[..., rows] if array.ndim else value


def joined(blocks: Sequence[Options]) -> Options:
    """Blocks over the same settings, one after the other."""
    first = blocks[0]
    columns = {
        f.name: _joined([(getattr(block, f.name), block.size) for block in blocks])
        for f in fields(first)
        if f.name != "settings"
    }
    return Options(settings=first.settings, **columns)


def _joined(values: Sequence[tuple[Any, int]]) -> Any:
    head = values[0][0]
    if isinstance(head, Instance):
        parts = {
            f.name: _joined([(getattr(value, f.name), n) for value, n in values])
            for f in fields(head)
        }
        return Instance(**parts)
    columns = [np.asarray(v) if np.ndim(v) else np.full(n, float(v)) for v, n in values]
    return np.concatenate(columns, axis=-1)
