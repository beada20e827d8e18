"""Fewer GPUs than there are: when the number divides badly, which smaller one serves better.

A job of n GPUs is tp x pp x cp x dp, and its batch a multiple of dp: an n with a large prime factor
leaves few layouts. Whole nodes are kept aside, which also serve as spares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from autoparallel.layout import Layout
from autoparallel.ranking.evaluation import Setting
from autoparallel.ranking.order import Ranked
from autoparallel.request import TrainingRequest

AWKWARD = 7
"""Largest cofactor of powers of 2 and 3 at which a number of GPUs counts as dividing well."""
LEAST_SHARE = 0.9
"""Smallest share of the GPUs that is worth trying."""
TRIED = 6
MUCH = 0.02
"""Gain in time above which fewer GPUs are worth saying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fewer:
    """A smaller number of GPUs that trains faster than all of them, or at all.

    Attributes:
        gain: Share of the step saved; None when all of them have no layout that fits.
    """

    num_gpus: int
    spare_nodes: int
    layout: Layout
    iteration_s: float
    gain: float | None


def cofactor(count: int) -> int:
    """What is left of a number without its factors 2 and 3: 1,000 -> 125, 960 -> 5."""
    for prime in (2, 3):
        while count % prime == 0:
            count //= prime
    return count


def smaller_counts(num_gpus: int, gpus_per_node: int) -> list[int]:
    """Whole nodes of at least 90 % of the GPUs, those that divide best first."""
    first = (num_gpus - 1) // gpus_per_node * gpus_per_node
    least = max(int(num_gpus * LEAST_SHARE), gpus_per_node)
    counts = range(first, least - 1, -gpus_per_node)
    return sorted(counts, key=lambda n: (cofactor(n), -n))[:TRIED]


def better_with_fewer(
    request: TrainingRequest,
    seconds: float | None,
    search: Callable[[TrainingRequest], tuple[Setting, Ranked]],
) -> Fewer | None:
    """The fastest of the smaller counts, if it beats `seconds` by more than 2 %.

    Args:
        request: The job on all GPUs.
        seconds: Step of its best layout; None when none fits.
        search: Searches one request.
    """
    if cofactor(request.num_gpus) <= AWKWARD:
        return None
    found = list(_tried(request, search))
    best = min(found, key=lambda f: f.iteration_s, default=None)
    if best is None or seconds is None:
        return best
    gain = 1 - best.iteration_s / seconds
    return replace(best, gain=gain) if gain > MUCH else None


def _tried(
    request: TrainingRequest, search: Callable[[TrainingRequest], tuple[Setting, Ranked]]
) -> Iterator[Fewer]:
    per_node = request.cluster.gpus_per_node
    for count in smaller_counts(request.num_gpus, per_node):
        where, result = search(replace(request, num_gpus=count))
        if result.best is not None:
            yield Fewer(
                num_gpus=count,
                spare_nodes=-(-(request.num_gpus - count) // per_node),
                layout=result.best.knobs.layout(0, where.framework.name),
                iteration_s=float(result.best.scores.iteration_s[0]),
                gain=None,
            )
