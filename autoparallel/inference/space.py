"""What a serving search looks at: every replica that a backend can start on the given GPUs.

The parallel sizes are multiplied out first and sieved by named rules; what is left is multiplied
with the KV dtypes, the batch limits and the token budgets. Everything left out is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoparallel.errors import ConfigError, bad_value, nearest
from autoparallel.hardware import Cluster
from autoparallel.inference.backend import Backend
from autoparallel.inference.instance import Instance
from autoparallel.model import Model

Column = NDArray[np.float64]
KV_ELEMENT_BYTES = {"bf16": 2.0, "fp8": 1.0}
MAX_TENSOR_SIZE = 16
"""Largest tensor-parallel size of the default space, as in training."""
FP8_BLOCK = 128
"""Block of fp8-blockwise weights (2412.19437, section 3.3), which a split must not cut."""
MAX_VALUES = 100
_LARGEST = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSpace:
    """Values of every knob; `auto` is worked out from the model, the GPUs and the backend."""

    tensor_model_parallel_size: tuple[int, ...] | Literal["auto"] = "auto"
    pipeline_model_parallel_size: tuple[int, ...] | Literal["auto"] = "auto"
    attention_data_parallel_size: tuple[int, ...] | Literal["auto"] = "auto"
    expert_model_parallel_size: tuple[int, ...] | Literal["auto"] = "auto"
    max_batch_size: tuple[int, ...] = (1, 4, 16, 64, 256)
    max_num_tokens: tuple[int, ...] = (2048, 8192)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], where: str = "space") -> ServingSpace:
        """The space that a YAML mapping describes; a single value is a list of one.

        Raises:
            ConfigError: an unknown key, or a value that its knob cannot have.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(str(key) for key in values if key not in known):
            raise ConfigError(f"{where}: unknown key {unknown[0]!r}; {nearest(unknown[0], known)}")
        read: dict[str, Any] = {key: _values(f"{where}.{key}", v) for key, v in values.items()}
        for key in ("max_batch_size", "max_num_tokens"):
            if read.get(key) == "auto":
                raise bad_value(f"{where}.{key}", "auto", "is not a list of numbers", "give [2048]")
        return cls(**read)


def _values(where: str, value: object) -> tuple[int, ...] | str:
    if value == "auto":
        return "auto"
    given = value if isinstance(value, list | tuple) else [value]
    if not 0 < len(given) <= MAX_VALUES:
        raise bad_value(where, value, f"is not a list of 1 to {MAX_VALUES} values")
    for item in given:
        if isinstance(item, bool) or not isinstance(item, int) or not 1 <= item <= _LARGEST:
            raise bad_value(where, item, f"is not an integer in [1, {_LARGEST}]", "correct it")
    return tuple(sorted(set(given)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replicas:
    """Legal replicas as columns, how many fit on the GPUs, and what was left out.

    Attributes:
        count: Replicas of each row that the GPUs hold.
        pruned: Rule -> candidates it left out; `considered` is the rows plus these.
    """

    instance: Instance
    count: Column
    considered: int
    pruned: dict[str, int]

    @property
    def size(self) -> int:
        """Rows."""
        return self.count.size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sizes:
    """Parallel sizes as columns, with what rules look at."""

    tp: Column
    pp: Column
    adp: Column
    ep: Column
    model: Model
    cluster: Cluster
    backend: Backend
    precision: str
    gpus: int
    stage: Column = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stage", self.tp * self.adp)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> _Sizes:
        """The same at some rows."""
        kept = {n: getattr(self, n)[rows] for n in ("tp", "pp", "adp", "ep")}
        rest = ("model", "cluster", "backend", "precision", "gpus")
        return _Sizes(**kept, **{n: getattr(self, n) for n in rest})


Rule = Callable[[_Sizes], NDArray[np.bool_]]


def _expert_split(s: _Sizes) -> NDArray[np.bool_]:
    """Backends differ in how experts may share the GPUs of a stage."""
    whole = (s.ep == 1) | (s.ep == s.stage)
    fits = s.stage % s.ep == 0
    return np.asarray(~(fits & whole) if s.backend.name == "vllm" else ~fits)


def _attention_copies(s: _Sizes) -> NDArray[np.bool_]:
    """TensorRT-LLM copies the attention on every GPU of a stage or on none."""
    return (s.adp > 1) & (s.tp > 1) & (s.backend.name == "tensorrt-llm")


def _kv_heads(s: _Sizes) -> NDArray[np.bool_]:
    g = s.model.num_query_groups
    if s.model.kv_lora_rank:
        return np.zeros(s.tp.shape, dtype=bool)
    return np.asarray(np.where(s.tp > g, s.tp % g, g % s.tp) != 0)


def _widths(s: _Sizes) -> NDArray[np.bool_]:
    """MLP and expert widths divide, in whole blocks where the weights are blockwise."""
    m, block = s.model, FP8_BLOCK if s.precision == "fp8-blockwise" else 1
    dense = (m.ffn_hidden_size % (s.tp * block) != 0) & (m.moe_layers < m.num_layers)
    split = s.stage / np.maximum(s.ep, 1)
    experts = np.floor(split) * block
    cut = (m.moe_layers > 0) & (m.moe_ffn_hidden_size % np.maximum(experts, 1) != 0)
    return np.asarray(dense | cut)


def _nodes(s: _Sizes) -> NDArray[np.bool_]:
    """A replica is part of a node that divides it, or whole nodes."""
    size, node = s.stage * s.pp, s.cluster.gpus_per_node
    return np.asarray(np.where(size <= node, node % size, size % node) != 0)


RULES: dict[str, Rule] = {
    "gpus": lambda s: s.stage * s.pp > s.gpus,
    "heads": lambda s: s.model.num_attention_heads % s.tp != 0,
    "kv_heads": _kv_heads,
    "layers": lambda s: s.pp > s.model.num_layers,
    "experts": lambda s: max(s.model.num_moe_experts, 1) % s.ep != 0,
    "expert_split": _expert_split,
    "attention_copies": _attention_copies,
    "widths": _widths,
    "nodes": _nodes,
}
"""What a replica breaks, in the order of the sieve; each rule takes the columns of sizes."""

EXPLANATIONS = {
    "gpus": "the replica has more GPUs than there are",
    "heads": "the tensor size does not divide the attention heads",
    "kv_heads": "the tensor size and the KV heads do not divide each other",
    "layers": "more pipeline stages than layers",
    "experts": "the expert size does not divide the experts",
    "expert_split": "the backend cannot split the experts of a stage like that",
    "attention_copies": "the backend copies attention on every GPU of a stage or on none",
    "widths": "the MLP or expert width does not divide (in blocks of 128 for fp8-blockwise)",
    "nodes": "the replica is neither a divisor of a node nor whole nodes",
    "max_num_tokens": "a smaller token budget holds every prompt too, or the batch exceeds it",
    "max_batch_size": "fewer sequences than pipeline stages, or a smaller limit holds the load too",
}


def replicas(
    space: ServingSpace,
    model: Model,
    cluster: Cluster,
    backend: Backend,
    precision: str,
    *,
    gpus: int,
    kv_dtypes: Sequence[str],
    input_tokens: int,
    load: float = 0.0,
) -> Replicas:
    """Every legal replica of one backend and precision.

    Args:
        space: What to look at.
        model: What is served.
        cluster: Where.
        backend: By which engine.
        precision: Of the weights.
        gpus: How many GPUs there are.
        kv_dtypes: KV cache dtypes to look at.
        input_tokens: New tokens of the longest prompt worth a budget of its own.
        load: Requests in the system all together; 0 when every plan takes what it can.
    """
    sizes = _sizes(space, model, cluster, backend, precision, gpus)
    each = len(space.max_batch_size) * len(space.max_num_tokens) * len(kv_dtypes)
    considered, pruned = sizes.tp.size * each, dict.fromkeys(EXPLANATIONS, 0)
    for name, rule in RULES.items():
        broken = rule(sizes)
        pruned[name] += int(broken.sum()) * each
        sizes = sizes.take(~broken)
    count = held(gpus, sizes.stage * sizes.pp, cluster.gpus_per_node)
    row, kv, batch, budget = _product(space, sizes.tp.size, len(kv_dtypes))
    filled = load / (count * sizes.adp)[row]
    keep = np.ones(row.size, dtype=bool)
    for name, broken in (
        ("max_num_tokens", _budget_broken(space, budget, batch, input_tokens)),
        ("max_batch_size", _batch_broken(space, batch, sizes.pp[row], filled)),
    ):
        pruned[name] = int((keep & broken).sum())
        keep &= ~broken
    sizes = sizes.take(row[keep])
    element = np.array([KV_ELEMENT_BYTES[name] for name in kv_dtypes])
    instance = Instance(
        tensor_model_parallel_size=sizes.tp,
        pipeline_model_parallel_size=sizes.pp,
        attention_data_parallel_size=sizes.adp,
        expert_model_parallel_size=sizes.ep,
        kv_element_bytes=element[kv[keep]],
        max_batch_size=batch[keep] / sizes.pp,
        max_num_tokens=budget[keep],
        memory_fraction=backend.memory_fraction,
    )
    return Replicas(
        instance=instance,
        count=count[row[keep]],
        considered=considered,
        pruned={name: n for name, n in pruned.items() if n},
    )


def _product(
    space: ServingSpace, rows: int, kv_dtypes: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], Column, Column]:
    """Every row of sizes with every KV dtype, batch limit and token budget."""
    axes = (rows, kv_dtypes, len(space.max_batch_size), len(space.max_num_tokens))
    row, kv, batch, budget = (x.ravel() for x in np.indices(axes, dtype=np.intp))
    batches = np.array(space.max_batch_size, dtype=np.float64)
    budgets = np.array(space.max_num_tokens, dtype=np.float64)
    return row, kv, batches[batch], budgets[budget]


def held(gpus: int, size: Column, gpus_per_node: int) -> Column:
    """Replicas of `size` GPUs that `gpus` hold, none across a node that could hold it whole."""
    node = float(gpus_per_node)
    whole, rest = gpus // gpus_per_node, gpus % gpus_per_node
    small = whole * np.floor(node / size) + np.floor(rest / size)
    return np.where(size <= node, small, np.floor(gpus / size))


def _sizes(
    space: ServingSpace, model: Model, cluster: Cluster, backend: Backend, precision: str, gpus: int
) -> _Sizes:
    """All products of the parallel sizes."""
    experts, latent = model.num_moe_experts, model.kv_lora_rank > 0
    domain = min(cluster.nvlink_domain_gpus, MAX_TENSOR_SIZE)
    tp = _listed(space.tensor_model_parallel_size, _powers(min(domain, gpus)))
    pp = _listed(space.pipeline_model_parallel_size, _powers(min(gpus, 16, model.num_layers)))
    copies = _powers(min(gpus, 64)) if experts or latent else [1]
    adp = _listed(space.attention_data_parallel_size, copies)
    ep = _listed(space.expert_model_parallel_size, _powers(min(gpus, max(experts, 1))))
    grid = np.meshgrid(*(np.array(x, dtype=np.float64) for x in (tp, pp, adp, ep)), indexing="ij")
    columns = dict(zip(("tp", "pp", "adp", "ep"), (x.ravel() for x in grid), strict=True))
    return _Sizes(
        **columns, model=model, cluster=cluster, backend=backend, precision=precision, gpus=gpus
    )


def _listed(given: tuple[int, ...] | Literal["auto"], auto: Sequence[int]) -> Sequence[int]:
    return auto if given == "auto" else given


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**i for i in range(max(int(most), 1).bit_length())]


def _budget_broken(
    space: ServingSpace, budget: Column, batch: Column, input_tokens: int
) -> NDArray[np.bool_]:
    """Budgets that a smaller listed one makes pointless, or that the decodes alone exceed."""
    enough = _next(space.max_num_tokens, batch + input_tokens)
    return np.asarray((budget > enough) | (batch > budget))


def _batch_broken(
    space: ServingSpace, batch: Column, pp: Column, load: Column
) -> NDArray[np.bool_]:
    """Limits below one sequence a stage, or above what the load can fill."""
    enough = np.maximum(_next(space.max_batch_size, np.ceil(load)), pp)
    return np.asarray((batch < pp) | ((load > 0) & (batch > enough)))


def _next(listed: Sequence[int], needed: Column) -> Column:
    """The smallest listed value that is enough, or the largest of all."""
    ordered = np.array(sorted(listed), dtype=np.float64)
    found: Column = ordered[np.searchsorted(ordered, needed).clip(max=ordered.size - 1)]
    return found
