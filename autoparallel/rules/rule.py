"""The record of a rule, and what a message is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoparallel.layout import (
    CP_COMM_TYPES,
    GRANULARITIES,
    GRAPH_SCOPES,
    METHODS,
    OVERLAPS,
    PRECISIONS,
    RECOMPUTE_MODULES,
    SCHEDULES,
)
from autoparallel.rules.case import FULL, Bool, Limits, RuleCase

_WORDS = {
    "cp_comm": CP_COMM_TYPES,
    "granularity": GRANULARITIES,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "graph": GRAPH_SCOPES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way for a layout to be illegal.

    Attributes:
        fields: What it looks at, in Megatron's names; the first one is blamed.
        predicate: True where violated.
        message: The numbers of a one-row case and what to try, without the field.
        source: Where the rule is enforced or stated.
        versions: Releases it was read in.
        frameworks: Words of framework ids it applies to; none means to all of them.
    """

    id: str
    fields: tuple[str, ...]
    predicate: Callable[[RuleCase], Bool]
    message: Callable[[RuleCase], str]
    source: str
    versions: str = ""
    frameworks: tuple[str, ...] = ()

    def applies(self, to: Limits) -> bool:
        """Whether the rule is one of the framework's, and says anything under these limits."""
        if self.id.startswith("framework."):
            return self.fields[0] in to.legal
        return not self.frameworks or any(word in to.framework for word in self.frameworks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken rule of one layout."""

    rule: str
    fields: tuple[str, ...]
    message: str


class _Numbers(dict[str, str]):
    """What a message may name: a knob, a letter of the model, a property of the case."""

    def __init__(self, case: RuleCase) -> None:
        super().__init__(framework=case.limits.framework)
        self["precisions"] = ", ".join(case.limits.precisions)
        self._case = case

    def __missing__(self, name: str) -> str:
        places = (self._case.knobs, self._case.model, self._case)
        value = next(getattr(place, name) for place in places if hasattr(place, name))
        return _WORDS[name][int(value)] if name in _WORDS else _plain(float(value))


def _plain(number: float) -> str:
    """A whole number in full, another in a few digits."""
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:g}"


def _fitting(predicate: Callable[[RuleCase], Bool], case: RuleCase, knob: str) -> str:
    """`use tp in {1, 2, 4}`: the values of one knob that keep the rule, a dozen at the most."""
    values = np.arange(1.0, 1025.0)
    varied: dict[str, Any] = {knob: values}
    knobs = replace(case.knobs, **varied)
    broken = np.broadcast_to(predicate(replace(case, knobs=knobs)), values.shape)
    fits = [f"{value:g}" for value in values[~broken]]
    if not fits:
        return f"no {knob} fits, change another size"
    return f"use {knob} in {{{', '.join(fits[:12])}{', ...' if len(fits) > 12 else ''}}}"


_CORE = "megatron-core 0.16.1"
ARGUMENTS = "NVIDIA/Megatron-LM@core_v0.16.1 megatron/training/arguments.py validate_args"
CONFIG = "megatron.core.transformer.transformer_config.TransformerConfig.__post_init__"
STATE = "megatron.core.parallel_state.initialize_model_parallel"
PIPELINE = "megatron.core.pipeline_parallel.schedules"
LAYOUT = "megatron.core.transformer.pipeline_parallel_layer_layout.PipelineParallelLayerLayout"
MOE = "megatron.core.transformer.moe"
LINEAR = "megatron.core.tensor_parallel.layers.ColumnParallelLinear (divide)"
TE = "NVIDIA/TransformerEngine transformer_engine/pytorch"
TE_CP = f"{TE}/attention/dot_product_attention/context_parallel.py"
DEFINITION = "by definition: the words name another layout, or none"
MEGATRON = ("megatron",)
TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
CP, DP = "context_parallel_size", "data_parallel_size"
VPP, GROUP = "virtual_pipeline_model_parallel_size", "microbatch_group_size_per_vp_stage"
EP, ETP = "expert_model_parallel_size", "expert_tensor_parallel_size"
MBS, GBS, SP = "micro_batch_size", "global_batch_size", "sequence_parallel"
GRANULARITY, MODULES = "recompute_granularity", "recompute_modules"
PLAN_FIELDS = (PP, VPP, "stage_layers", "num_layers")


def rule(
    id: str,
    fields: tuple[str, ...],
    predicate: Callable[[RuleCase], Bool],
    text: str,
    fix: str,
    source: str,
    frameworks: tuple[str, ...] = (),
    also: Callable[[RuleCase], str] = lambda _: "",
) -> Rule:
    """A rule from a message template and `fix`: what to try, or the knob whose values to offer.

    What `also` says of a one-row case follows it.
    """

    def message(case: RuleCase) -> str:
        numbers = _Numbers(case)
        offer = _fitting(predicate, case, fix) if hasattr(case.knobs, fix) else fix
        offer = offer.format_map(numbers) if offer == fix else offer
        return f"{text.format_map(numbers)}; {offer}{also(case)}"

    return Rule(
        id=id,
        fields=fields,
        predicate=predicate,
        message=message,
        source=source,
        versions=_CORE if "egatron" in source else "",
        frameworks=frameworks,
    )


def _codes(words: Iterable[str]) -> dict[object, float]:
    return {word: float(code) for code, word in enumerate(words)}


_COLUMNS: dict[str, tuple[str, dict[object, float]]] = {
    TP: ("tp", {}),
    PP: ("pp", {}),
    VPP: ("vpp", {}),
    GROUP: ("group", {}),
    CP: ("cp", {}),
    "cp_comm_type": ("cp_comm", _codes(CP_COMM_TYPES)),
    EP: ("ep", {}),
    ETP: ("etp", {}),
    MBS: ("mbs", {}),
    SP: ("sp", {}),
    "zero_stage": ("zero", {}),
    "shard_group_size": ("shard", {}),
    GRANULARITY: ("granularity", _codes(GRANULARITIES)),
    "recompute_method": ("method", _codes(METHODS)),
    "recompute_num_layers": ("recompute_layers", {}),
    "schedule": ("schedule", _codes(SCHEDULES)),
    "precision": ("precision", _codes(PRECISIONS)),
    "grad_reduce_dtype": ("grad_bytes", {"fp32": 4.0, "bf16": 2.0}),
    "optimizer_offload_fraction": ("offload", {}),
    "cuda_graph_scope": ("graph", _codes(GRAPH_SCOPES)),
}
_SETS = {MODULES: RECOMPUTE_MODULES, "overlap": OVERLAPS}


def _outside(case: RuleCase, name: str) -> Bool:
    """Where field `name` has a value that the framework does not list."""
    allowed = case.limits.legal[name]
    broken: Bool = np.False_
    if name in _SETS:
        on = case.knobs.overlaps if name == "overlap" else case.knobs.module
        for word in set(_SETS[name]) - set(allowed):
            broken = broken | (on(word) > 0)
        return broken
    attribute, codes = _COLUMNS[name]
    column = np.asarray(getattr(case.knobs, attribute))
    listed: Bool = np.zeros(column.shape, dtype=bool)
    for value in allowed:
        listed = listed | (column == codes.get(value, value))
    unused = name in ("recompute_method", "recompute_num_layers") and case.k.granularity != FULL
    return ~(listed | unused)


def framework_rules(*names: str) -> tuple[Rule, ...]:
    """For each layout field: its value is one that the framework lists, if it lists any."""

    def one(name: str) -> Rule:
        def message(case: RuleCase) -> str:
            allowed = ", ".join(str(value) for value in case.limits.legal[name])
            return f"{case.limits.framework} has {{{allowed}}} only; use these or another framework"

        return Rule(
            id=f"framework.{name}",
            fields=(name, GRANULARITY) if name.startswith("recompute") else (name,),
            predicate=lambda case: _outside(case, name),
            message=message,
            source="the framework's own record",
        )

    return tuple(one(name) for name in names)
