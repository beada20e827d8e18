"""What a sweep says: scaling, which case to take, prices at which clusters break even."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from autoparallel.sweep.results import SweepResult

Group = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the run may cost; None is no limit."""

    max_days: float | None = None
    max_usd: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return self.max_days is not None or self.max_usd is not None

    def allow(self, result: SweepResult) -> bool:
        """Whether a case stays within the limits; what is unknown does not."""
        for most, value in ((self.max_days, result.days), (self.max_usd, result.cost_usd)):
            if most is not None and (value is None or value > most):
                return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Speed of a case against the smallest of its line.

    Attributes:
        kind: `strong` at one batch, `weak` at one batch a GPU.
        speedup: In tokens a second.
        efficiency: The speedup over the growth in GPUs.
    """

    id: str
    kind: str
    from_gpus: int
    speedup: float
    efficiency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """The price at which one cluster trains for the same money as another.

    Attributes:
        ratio: What a GPU-hour of `cluster` may cost, in GPU-hours of `other`.
        usd_per_gpu_hour: The same in money, when the other's price is known.
    """

    cluster: str
    other: str
    num_gpus: int
    model: str
    framework: str
    seq_length: int | None
    ratio: float
    usd_per_gpu_hour: float | None


def scaled(results: Iterable[SweepResult]) -> list[Scaling]:
    """Strong and weak scaling: every line of cases that differ in GPUs only, or at one batch a GPU.

    A case stands in both when both lines have another case.
    """
    usable = [r for r in results if r.state == "ok" and r.tokens_per_s and r.global_batch_size]
    found: list[Scaling] = []
    for kind in ("strong", "weak"):
        lines: dict[Group, list[SweepResult]] = defaultdict(list)
        for result in usable:
            lines[_line(result, kind)].append(result)
        for line in lines.values():
            if len({r.num_gpus for r in line}) > 1:
                found += _along(sorted(line, key=lambda r: r.num_gpus), kind)
    return found


def _line(result: SweepResult, kind: str) -> Group:
    batch = float(result.global_batch_size or 0)
    share = batch if kind == "strong" else batch / result.num_gpus
    return (*_kind_of_job(result), result.cluster, share)


def _kind_of_job(result: SweepResult) -> Group:
    return (result.model, result.framework, result.precision, result.seq_length)


def _along(line: Sequence[SweepResult], kind: str) -> list[Scaling]:
    first = line[0]
    found = []
    for result in line:
        speedup = (result.tokens_per_s or 0.0) / (first.tokens_per_s or 1.0)
        growth = result.num_gpus / first.num_gpus
        found.append(
            Scaling(
                id=result.id,
                kind=kind,
                from_gpus=first.num_gpus,
                speedup=speedup,
                efficiency=speedup / growth,
            )
        )
    return found


def decided(results: Iterable[SweepResult], limits: Limits, objective: str) -> SweepResult | None:
    """The best case within the limits; of equal ones the one with fewer GPUs.

    Over different batches and clusters the time is that of the run, of a token when no run's length
    is known. Without any price the cost is in GPU-hours; with some, cases without one are left out.
    """
    usable = [r for r in results if r.state == "ok" and limits.allow(r)]
    for value_of in _VALUES[objective]:
        known = [(value, r.num_gpus, i, r) for i, r in enumerate(usable) if (value := value_of(r))]
        if known:
            return min(known, key=lambda item: item[:3])[3]
    return None


def decisions(results: Iterable[SweepResult], limits: Limits, objective: str) -> list[SweepResult]:
    """The best case of every job: a model at a sequence length is what is to be done."""
    jobs: dict[Group, list[SweepResult]] = defaultdict(list)
    for result in results:
        jobs[result.model, result.seq_length].append(result)
    found = (decided(same, limits, objective) for same in jobs.values())
    return [best for best in found if best is not None]


_VALUES: dict[str, tuple[Callable[[SweepResult], float | None], ...]] = {
    "iteration_s": (
        lambda r: r.days,
        lambda r: 1 / r.tokens_per_s if r.tokens_per_s else None,
    ),
    "cost_usd": (lambda r: r.cost_usd, lambda r: r.gpu_hours),
    "energy_kwh": (lambda r: r.energy_kwh,),
    "memory_bytes": (lambda r: -(r.free_memory_fraction or 0.0),),
}
"""What a decision makes small; the next when the first is known of no case."""


def break_evens(results: Iterable[SweepResult]) -> list[BreakEven]:
    """For every two clusters that did the same job on as many GPUs, what one may cost."""
    jobs: dict[Group, dict[str, SweepResult]] = defaultdict(dict)
    for result in results:
        if result.gpu_hours:
            key = (*_kind_of_job(result), result.num_gpus, result.global_batch_size)
            jobs[key][result.cluster] = result
    found = []
    for same in jobs.values():
        for one, other in combinations(same.values(), 2):
            fast, slow = sorted((one, other), key=lambda r: r.gpu_hours or 0.0)
            ratio = (slow.gpu_hours or 0.0) / (fast.gpu_hours or 1.0)
            price = slow.usd_per_gpu_hour
            found.append(
                BreakEven(
                    cluster=fast.cluster,
                    other=slow.cluster,
                    num_gpus=fast.num_gpus,
                    model=fast.model,
                    framework=fast.framework,
                    seq_length=fast.seq_length,
                    ratio=ratio,
                    usd_per_gpu_hour=None if price is None else ratio * price,
                )
            )
    return found
