"""Legality as a table of named rules.

A layout is legal when no rule of `RULES` is violated. A rule is data: an id, the fields it looks
at, a predicate over columns, a message with the numbers of one row, and where it comes from. The
order is the one in which a search can decide them: mesh, micro-batch, pipeline plan, sequence
parallel, sharding, recomputation, precision, overlap, offload and graphs.

What is merely slow (tensor parallel across NVLink domains, recomputing fused attention) is legal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from autoparallel.rules.case import Limits, RuleCase, limits, one_row
from autoparallel.rules.knob_rules import (
    HOST_RULES,
    OVERLAP_RULES,
    PRECISION_RULES,
    RECOMPUTE_RULES,
    SHARDING_RULES,
)
from autoparallel.rules.mesh_rules import MESH_RULES, PLAN_RULES
from autoparallel.rules.rule import Rule, Violation

__all__ = [
    "RULES",
    "Limits",
    "Rule",
    "RuleCase",
    "Violation",
    "binding",
    "explain",
    "first_broken",
    "limits",
    "violations",
]

RULES: tuple[Rule, ...] = (
    *MESH_RULES,
    *PLAN_RULES,
    *SHARDING_RULES,
    *RECOMPUTE_RULES,
    *PRECISION_RULES,
    *OVERLAP_RULES,
    *HOST_RULES,
)
"""Every rule, in the order a search decides them."""


def violations(case: RuleCase) -> tuple[NDArray[np.bool_], NDArray[np.int16]]:
    """Which rows are legal, and the index in `RULES` of the first rule each other row breaks."""
    reason = first_broken(case, range(len(RULES)))
    return reason < 0, reason


def first_broken(case: RuleCase, which: Iterable[int]) -> NDArray[np.int16]:
    """Per row the first of the rules numbered `which`, in that order, that is violated, else -1."""
    reason = np.full(case.knobs.size, -1, dtype=np.int16)
    for index in which:
        if RULES[index].applies(case.limits):
            broken = np.broadcast_to(np.asarray(RULES[index].predicate(case), bool), reason.shape)
            reason[broken & (reason < 0)] = index
    return reason


def binding(pruned: Mapping[str, int]) -> str:
    """Of the rules that left candidates out, the one that met those that came furthest.

    Rules are asked in order: what the last of them left out had kept all others before. Where
    nothing is legal it stands in the way, whatever left out most. Empty without any.
    """
    return next((rule.id for rule in reversed(RULES) if pruned.get(rule.id)), "")


def explain(case: RuleCase, row: int) -> list[Violation]:
    """Every rule that layout `row` breaks, in the order of the table."""
    one = one_row(case, row)
    broken = [r for r in RULES if r.applies(case.limits) and bool(np.any(r.predicate(one)))]
    return [
        Violation(rule=r.id, fields=r.fields, message=f"{r.fields[0]}: {r.message(one)}")
        for r in broken
    ]
