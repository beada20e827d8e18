"""What a space lists: values a knob, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from autoparallel.errors import ConfigError, bad_value, nearest, shown
from autoparallel.layout import (
    CP_COMM_TYPES,
    GRAD_DTYPES,
    GRAPH_SCOPES,
    PRECISIONS,
    SCHEDULES,
    Layout,
)

STAGE_WORDS = ("even", "embedding_and_loss", "embedding", "loss", "balanced")

MAX_VALUES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceSpec:
    """Values a knob, in Megatron's names; `auto` stands for what the model and the cluster allow.

    Attributes:
        tensor_model_parallel_size: auto = powers of two up to the NVLink domain, at most 16.
        pipeline_model_parallel_size: auto = divisors of the GPUs up to layers + 2.
        virtual_pipeline_model_parallel_size: auto = 1 and every number of chunks that divides.
        microbatch_group_size_per_vp_stage: 0 = pp; auto = 0, 2 pp, 4 pp, ... and all micro-batches.
        context_parallel_size: auto = powers of two that leave a rank 1,024 tokens.
        expert_model_parallel_size: auto = divisors of the experts.
        expert_tensor_parallel_size: auto = 1 and tp.
        micro_batch_size: auto = powers of two up to 64 and the global batch.
        zero_stage: auto = the framework's, without 0 when there is another.
        shard_group_size: 0 = all replicas; auto = 0, one and eight NVLink domains of replicas.
        recompute: Words of the layout grammar; full/block/auto = a quarter, half, three quarters.
        stage_layers: even; embedding_and_loss, embedding, loss = these count as a layer; balanced =
            as even as possible where none of the others divides; or a list such as "7,8*6,7".
        precision: auto = the job's.
        overlap: auto = what Megatron-LM turns on; or switches joined by +.
        flash_attention: false = attention of the time before it: scores are stored. One value.
    """

    tensor_model_parallel_size: tuple[int | str, ...] = ("auto",)
    pipeline_model_parallel_size: tuple[int | str, ...] = ("auto",)
    virtual_pipeline_model_parallel_size: tuple[int | str, ...] = ("auto",)
    microbatch_group_size_per_vp_stage: tuple[int | str, ...] = (0,)
    context_parallel_size: tuple[int | str, ...] = ("auto",)
    cp_comm_type: tuple[str, ...] = ("p2p",)
    expert_model_parallel_size: tuple[int | str, ...] = ("auto",)
    expert_tensor_parallel_size: tuple[int | str, ...] = ("auto",)
    micro_batch_size: tuple[int | str, ...] = ("auto",)
    sequence_parallel: tuple[bool, ...] = (True,)
    zero_stage: tuple[int | str, ...] = ("auto",)
    shard_group_size: tuple[int | str, ...] = (0,)
    recompute: tuple[str, ...] = ("none", "full/uniform/1")
    schedule: tuple[str, ...] = ("1f1b", "interleaved")
    stage_layers: tuple[str, ...] = ("even",)
    precision: tuple[str, ...] = ("auto",)
    grad_reduce_dtype: tuple[str, ...] = ("fp32",)
    optimizer_offload_fraction: tuple[float, ...] = (0.0,)
    cuda_graph_scope: tuple[str, ...] = ("none",)
    overlap: tuple[str, ...] = ("auto",)
    flash_attention: tuple[bool, ...] = (True,)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], where: str = "space") -> SpaceSpec:
        """The spec that a YAML mapping describes; a single value is a list of one.

        Raises:
            ConfigError: an unknown key, or a value that its knob cannot have.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(str(key) for key in values if key not in known):
            raise ConfigError(
                f"{where}: unknown key {shown(unknown[0])}; {nearest(unknown[0], known)}"
            )
        read: dict[str, Any] = {
            key: _values(f"{where}.{key}", key, value) for key, value in values.items()
        }
        return cls(**read)

    def execution_knobs(self) -> SpaceSpec:
        """The same space with the knobs that change the mathematics at the job's own values."""
        plain = SpaceSpec()
        return replace(self, precision=plain.precision, grad_reduce_dtype=plain.grad_reduce_dtype)


_LEAST = {"microbatch_group_size_per_vp_stage": 0, "zero_stage": 0, "shard_group_size": 0}
_AUTO = {f.name for f in fields(SpaceSpec) if "int" in str(f.type)} | {"precision", "overlap"}
_CHOICES: dict[str, tuple[str, ...]] = {
    "cp_comm_type": CP_COMM_TYPES,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "grad_reduce_dtype": GRAD_DTYPES,
    "cuda_graph_scope": GRAPH_SCOPES,
}


def _values(where: str, key: str, value: object) -> tuple[Any, ...]:
    given = list(value) if isinstance(value, list | tuple) else [value]
    if not 0 < len(given) <= MAX_VALUES:
        raise bad_value(
            where, value, f"is not a list of 1 to {MAX_VALUES} values", "name at least one"
        )
    return tuple(dict.fromkeys(_value(where, key, item) for item in given))


def _value(where: str, key: str, value: object) -> Any:
    if value == "auto" and key in _AUTO:
        return value
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise bad_value(where, value, "is not a choice", nearest(str(value), _CHOICES[key]))
        return value
    if key in ("recompute", "stage_layers", "overlap"):
        return _word(where, key, value)
    if key in ("sequence_parallel", "flash_attention"):
        if not isinstance(value, bool):
            raise bad_value(where, value, "is neither true nor false", "write true or false")
        return value
    return _number(where, key, value)


def _number(where: str, key: str, value: object) -> float:
    fraction = key == "optimizer_offload_fraction"
    least, most = _LEAST.get(key, 0 if fraction else 1), 1 if fraction else 1_000_000
    most = 3 if key == "zero_stage" else most
    kinds = int | float if fraction else int
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "a number" if fraction else "an integer"
        auto = " or 'auto'" if key in _AUTO else ""
        raise bad_value(where, value, f"is not {kind} in [{least}, {most}]{auto}", "correct it")
    return value


def _word(where: str, key: str, value: object) -> str:
    word = str(value)
    if word in STAGE_WORDS if key == "stage_layers" else word == "full/block/auto":
        return word
    text = {"recompute": "recompute=", "stage_layers": "stages=", "overlap": "overlap="}[key]
    try:
        Layout.parse(text + word)
    except ConfigError as error:
        words = {"stage_layers": STAGE_WORDS, "recompute": ("none", "full/block/auto")}.get(key, ())
        hint = nearest(word, words) if words else "join switches with +"
        raise bad_value(where, value, f"cannot be read ({error})", hint) from error
    return word
