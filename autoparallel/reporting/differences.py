"""From one layout to another, one change at a time: what each change buys.

The order is greedy: of the changes that are left, the one that makes the step shortest comes next.
Changes that are only legal together come together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from autoparallel.layout import Layout
from autoparallel.ranking import Setting
from autoparallel.ranking.reasons import Verdict, judged, word_changes

TOGETHER = 3
"""Changes tried together before all that are left are."""

_GROUPS = (
    ("tensor_model_parallel_size", "sequence_parallel", "expert_tensor_parallel_size"),
    (
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "microbatch_group_size_per_vp_stage",
        "schedule",
        "stage_layers",
    ),
    ("context_parallel_size", "cp_comm_type"),
    ("expert_model_parallel_size",),
    ("micro_batch_size",),
    ("zero_stage", "shard_group_size"),
    (
        "recompute_granularity",
        "recompute_method",
        "recompute_num_layers",
        "recompute_modules",
    ),
    ("precision",),
    ("grad_reduce_dtype",),
    ("optimizer_offload_fraction",),
    ("cuda_graph_scope",),
    ("overlap",),
)
"""Fields that change together: one knob, or knobs that mean nothing without each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One change on the way.

    Attributes:
        gone, come: Words of the layout that go and come; either may be empty.
        after: What is predicted once it is made.
        delta_s, delta_bytes: What it adds to step time and memory.
    """

    gone: str
    come: str
    after: Verdict
    delta_s: float
    delta_bytes: float

    @property
    def name(self) -> str:
        """`tp8 → tp4`, `with sp` or `without sp`."""
        if self.gone and self.come:
            return f"{self.gone} → {self.come}"
        return f"with {self.come}" if self.come else f"without {self.gone}"


def hops(where: Setting, start: Layout, goal: Layout) -> tuple[Hop, ...]:
    """The way from a legal `start` to `goal`; empty when they are equal or one is not legal."""
    now, end = judged(where, [start, goal])
    if now.rule or end.rule or start == goal:
        return ()
    left: list[tuple[str, ...]] = [names for names in _GROUPS if _differ(start, goal, names)]
    found: list[Hop] = []
    while left and now.layout != goal:
        after, used = _next(where, now.layout, goal, left)
        gone, come = word_changes(now.layout, after.layout)
        found.append(
            Hop(
                gone=gone,
                come=come,
                after=after,
                delta_s=(after.iteration_s or 0.0) - (now.iteration_s or 0.0),
                delta_bytes=(after.memory_bytes or 0.0) - (now.memory_bytes or 0.0),
            )
        )
        now, left = after, [names for names in left if names not in used]
    return tuple(found)


def _differ(a: Layout, b: Layout, names: tuple[str, ...]) -> bool:
    return any(getattr(a, name) != getattr(b, name) for name in names)


def _next(
    where: Setting, now: Layout, goal: Layout, left: list[tuple[str, ...]]
) -> tuple[Verdict, tuple[tuple[str, ...], ...]]:
    """The best legal change, of as few groups as there is one; at last all of them."""
    for count in range(1, min(TOGETHER, len(left) - 1) + 1):
        tried = list(combinations(left, count))
        legal = [
            (verdict, used)
            for verdict, used in zip(
                judged(where, [_moved(now, goal, used) for used in tried]), tried, strict=True
            )
            if not verdict.rule and verdict.layout != now
        ]
        if legal:
            return min(legal, key=lambda pair: pair[0].iteration_s or 0.0)
    return judged(where, [goal])[0], tuple(left)


def _moved(now: Layout, goal: Layout, groups: tuple[tuple[str, ...], ...]) -> Layout:
    """`now` with these groups of fields as `goal` has them."""
    values: dict[str, Any] = {name: getattr(goal, name) for names in groups for name in names}
    return replace(now, **values)
