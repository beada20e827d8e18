"""What a training framework can do and what it costs, as data.

One YAML a framework in `search_spaces/framework/`: which knobs are legal, bytes a parameter, when
gradients are reduced, what stays live, what a measured row leaves unsaid. `Traits` is the numeric
part, scalars or columns, for `cost/`; there is no `if framework ==` in the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from autoparallel import catalog
from autoparallel.errors import CatalogError, nearest, shown
from autoparallel.layout import OVERLAPS, Layout
from autoparallel.strict_yaml import Rule, catalog_error, read_fields, submapping, text_list
from autoparallel.units import Num


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traits:
    """Numbers of a framework (and of one job's kernels) that the formulas take; scalars or [N].

    Attributes:
        flash_attention: 1 fused attention that never stores scores, 0 unfused.
        stores_scores: 1 where attention keeps its scores for the backward pass though it is fused.
        master_bytes, moment_bytes: fp32 master weights and Adam moments, per parameter.
        remainders: 1 where bf16 weights have 16-bit remainders in the optimizer, not fp32 masters.
        unsharded_units: Full layers alive at once under ZeRO-3.
        fused_kernels: 1 when norm, activation and rope are fused kernels, 0 plain torch, between
            where some are.
        per_op_recompute: 1 when selective recompute means torch's per-operator policy.
        fp32_logits_copies: fp32 copies of the logits alive at the loss (fused cross entropy:
            fewer).
        half_logits_copies: The same in half precision.
        earlier_logits_copies: fp32 logits that live on from one micro-batch to the next.
        step_gradient_bytes: What an optimizer copies of the gradients for its step, per parameter,
            and the allocator keeps.
        fp8_weight_bytes: Bytes of a parameter's fp8 copies beside its half-precision weight, under
            delayed or tensorwise scaling with a sharded optimizer; 0 where they replace it.
        dropout: 1 where models with biases are trained with dropout, whose masks are kept.
        bucket_bytes: Gradients reduced by one collective (Megatron: 40 million parameters).
        logits_sharded: 1 when the logits stay split over tensor-parallel ranks.
        half_gradient_bytes: What autograd makes of a gradient beside the accumulated one, per
            parameter, kept until the backward of a micro-batch ends; 0 where the weight GEMM
            accumulates.
        bucket_copy_bytes: Gradients copied into buckets that stay (torch's DistributedDataParallel
            without views), per parameter, where there are replicas to reduce with.
        shard_buffer_bytes: Buckets in which a sharded optimizer reduces gradients.
        stores_gate: 1 where a gated MLP keeps the activated gate beside its input.
        packed_qkv: 1 where attention's inputs share their storage with an unused k and v.
        keeps_gathered: 1 where sequence-parallel layers keep their gathered inputs for the backward
            pass instead of gathering them again.
        gather_buffers: Full-length inputs of sequence-parallel GEMMs kept for the whole run.
        streams_hold: 1 where tensors go to communication streams that the host does not wait for,
            so that what is freed comes back late.
        forwards_tokens: 1 where a token goes once to every node that has experts for it and is
            spread there (DeepEP, HybridEP), 0 where a copy goes to every one of its experts.
    """

    flash_attention: Num = 1.0
    stores_scores: Num = 0.0
    master_bytes: Num = 4.0
    moment_bytes: Num = 8.0
    remainders: Num = 0.0
    unsharded_units: Num = 2.0
    fused_kernels: Num = 1.0
    per_op_recompute: Num = 0.0
    fp32_logits_copies: Num = 1.0
    half_logits_copies: Num = 1.0
    earlier_logits_copies: Num = 0.0
    step_gradient_bytes: Num = 0.0
    logits_sharded: Num = 1.0
    fp8_weight_bytes: Num = 2.0
    dropout: Num = 1.0
    bucket_bytes: Num = 160e6
    half_gradient_bytes: Num = 0.0
    bucket_copy_bytes: Num = 0.0
    shard_buffer_bytes: Num = 0.0
    stores_gate: Num = 0.0
    packed_qkv: Num = 0.0
    keeps_gathered: Num = 0.0
    gather_buffers: Num = 1.0
    streams_hold: Num = 0.0
    forwards_tokens: Num = 0.0


TRAIT_NAMES = tuple(f.name for f in fields(Traits))


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """A training framework.

    Attributes:
        name: Catalog id.
        aliases: Names that measured files use for it.
        constants: Which calibrated family in `profiles/` its constants come from.
        eras: Families of older software, by the beginning of the release that a measured row
            states.
        era_traits: What else is different in such a family, or in `slow_nodes`: family -> trait ->
            value.
        legal: For each restricted knob the values it may take, by layout field.
        defaults: What a measured row or a layout that does not say uses, by layout field.
        stage_split: How layers are split over a pipeline: `even`, or `by_cost` (nanotron).
        slow_nodes: Family of its constants on nodes whose own links measure slow; empty where that
            is not known to matter.
        own_overlaps: Overlap switches that all of its runs have on: its constants hold them.
        exporters: Names of the exporters that write its launch files, the usual one first.
    """

    name: str
    aliases: tuple[str, ...] = ()
    constants: str
    traits: Traits = field(default_factory=Traits)
    eras: Mapping[str, str] = field(default_factory=dict)
    era_traits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    legal: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    stage_split: str = "even"
    slow_nodes: str = ""
    own_overlaps: tuple[str, ...] = ()
    exporters: tuple[str, ...] = ()
    version: str = ""
    source: str = ""

    def family(self, software_release: str = "") -> str:
        """The calibrated family of a release; the current one when none is stated."""
        for beginning, family in self.eras.items():
            if software_release.startswith(beginning):
                return family
        return self.constants

    def traits_of(self, *families: str) -> Traits:
        """The traits of its calibrated families: what a release changes, then what nodes change."""
        traits = self.traits
        for family in families:
            traits = replace(traits, **self.era_traits.get(family, {}))
        return traits


@cache
def framework(name: str, config_dir: Path | None = None) -> Framework:
    """The catalog's record of a framework.

    Raises:
        CatalogError: no such framework, or a record that does not parse.
    """
    data, where = catalog.entry("framework", name, config_dir), f"framework {name}"
    known = {f.name for f in fields(Framework)} - {"name"}
    if unknown := sorted(data.keys() - known):
        raise CatalogError(
            f"{where}: unknown key {shown(unknown[0])}; {nearest(unknown[0], known)}"
        )
    texts = {key: value for key, value in data.items() if key in _TEXTS}
    traits = submapping(data, "traits", where)
    return Framework(
        name=name,
        aliases=text_list(data, "aliases", where),
        exporters=text_list(data, "exporters", where),
        own_overlaps=_own_overlaps(data, where),
        traits=Traits(**read_fields(traits, _TRAITS, required=(), where=f"{where}.traits")),
        eras=_eras(data, where),
        era_traits=_era_traits(data, where),
        legal={k: tuple(v) for k, v in _by_knob(data, "legal", where, list).items()},
        defaults=_by_knob(data, "defaults", where, bool | int | float | str),
        **read_fields(texts, _TEXTS, required=["constants"], where=where),
    )


_TEXTS = dict.fromkeys(
    ("constants", "slow_nodes", "stage_split", "version", "source"), Rule(kind=str)
)
_TRAITS = {name: Rule(most=1e10) for name in TRAIT_NAMES}


def _eras(values: Mapping[str, object], where: str) -> dict[str, str]:
    """Release beginnings -> family."""
    block = submapping(values, "eras", where)
    rules = dict.fromkeys(block, Rule(kind=str))
    return read_fields(block, rules, required=(), where=f"{where}.eras")


def _era_traits(values: Mapping[str, object], where: str) -> dict[str, dict[str, float]]:
    """Family -> trait -> value."""
    block, place = submapping(values, "era_traits", where), f"{where}.era_traits"
    slow = str(values.get("slow_nodes", ""))
    families = {*submapping(values, "eras", where).values(), slow} - {""}
    found = {}
    for family in block:
        if family not in families:
            rule = "is no family of its eras and not its slow_nodes"
            raise catalog_error(place, family, rule, "add it to eras")
        traits = submapping(block, family, place)
        found[family] = read_fields(traits, _TRAITS, required=(), where=f"{place}.{family}")
    return found


def _own_overlaps(values: Mapping[str, object], where: str) -> tuple[str, ...]:
    """Overlap switches that all runs have on."""
    found = text_list(values, "own_overlaps", where)
    if unknown := [word for word in found if word not in OVERLAPS]:
        hint = nearest(unknown[0], OVERLAPS)
        raise catalog_error(f"{where}.own_overlaps", unknown[0], "is no overlap switch", hint)
    return found


def _by_knob(values: Mapping[str, object], key: str, where: str, kind: Any) -> dict[str, Any]:
    """The block `key`, whose keys are layout fields and whose values are of `kind`."""
    block = submapping(values, key, where)
    knobs = Layout.__dataclass_fields__
    for name, value in block.items():
        if name not in knobs:
            raise CatalogError(f"{where}.{key}: unknown knob {shown(name)}; {nearest(name, knobs)}")
        if not isinstance(value, kind):
            rule = "is not a list of values" if kind is list else "is not a plain value"
            raise catalog_error(f"{where}.{key}.{name}", value, rule)
    return block


@cache
def _by_alias(config_dir: Path | None) -> dict[str, str]:
    known: dict[str, str] = {}
    for name in catalog.names("framework", config_dir):
        known[name.lower()] = name
        known |= {alias.lower(): name for alias in framework(name, config_dir).aliases}
    return known


def framework_of(printed_name: str, config_dir: Path | None = None) -> tuple[Framework, bool]:
    """The framework a measured row names, and whether it is known.

    An unknown one is scored with the nearest generic record: FSDP2 when its name speaks of
    sharding, else Megatron.
    """
    known = _by_alias(config_dir)
    if found := known.get(printed_name.lower()):
        return framework(found, config_dir), True
    lowered = printed_name.lower()
    for name in sorted(known, key=len, reverse=True):
        if len(name) > 3 and name in lowered:
            return framework(known[name], config_dir), False
    generic = "fsdp2" if "fsdp" in lowered or "torch" in lowered else "megatron-core"
    return framework(generic, config_dir), False
