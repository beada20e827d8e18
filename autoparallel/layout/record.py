"""The layout as a record, and its one-line grammar: one reader and one writer a word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from autoparallel.errors import ConfigError, bad_value, nearest
from autoparallel.errors import shown as quoted
from autoparallel.layout.words import (
    CP_COMM_TYPES,
    GRAD_DTYPES,
    GRAPH_SCOPES,
    MEGATRON_OVERLAPS,
    OVERLAPS,
    PRECISIONS,
    RECOMPUTE_MODULES,
    SCHEDULES,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One candidate layout. Hashable; `Layout.parse(str(layout)) == layout`."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int = 1
    microbatch_group_size_per_vp_stage: int = 0
    context_parallel_size: int = 1
    cp_comm_type: str = "p2p"
    expert_model_parallel_size: int = 1
    expert_tensor_parallel_size: int = 1
    micro_batch_size: int = 1
    sequence_parallel: bool = False
    zero_stage: int = 1
    shard_group_size: int = 0
    recompute_granularity: str = "none"
    recompute_method: str = "uniform"
    recompute_num_layers: int = 0
    recompute_modules: tuple[str, ...] = ()
    schedule: str = "1f1b"
    stage_layers: tuple[int, ...] = ()
    precision: str = "bf16"
    grad_reduce_dtype: str = "fp32"
    optimizer_offload_fraction: float = 0.0
    cuda_graph_scope: str = "none"
    overlap: tuple[str, ...] = MEGATRON_OVERLAPS
    framework: str = "megatron-core"

    @property
    def model_parallel_size(self) -> int:
        """GPUs that hold one replica of the dense model: tp x pp x cp."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
        )

    def data_parallel_size(self, num_gpus: int) -> int:
        """Replicas on `num_gpus` GPUs, rounded down."""
        return num_gpus // self.model_parallel_size

    def __str__(self) -> str:
        """The layout in the grammar, leaving out words at their default."""
        return " ".join(word for write, _ in GRAMMAR.values() for word in write(self))

    @classmethod
    def parse(cls, text: str, **unwritten: Any) -> Layout:
        """Read a layout.

        Args:
            text: Its words.
            unwritten: What a field is whose word is not there, in place of its default.

        Raises:
            ConfigError: an unknown, repeated or malformed word.
        """
        values: dict[str, Any] = {}
        for word in text.split():
            name = _word_name(word)
            if name not in GRAMMAR:
                follows = "the data-parallel size follows from the number of GPUs, leave it out"
                hint = follows if name == "dp" else nearest(name.lower(), GRAMMAR)
                raise ConfigError(f"layout: unknown word {quoted(word)} in {quoted(text)}; {hint}")
            read = GRAMMAR[name][1](word)
            if repeated := values.keys() & read.keys():
                raise ConfigError(
                    f"layout: {quoted(word)} sets {sorted(repeated)[0]} a second time"
                )
            values |= read
        if values.get("virtual_pipeline_model_parallel_size", 1) > 1:
            values.setdefault("schedule", "interleaved")
        return cls(**{**unwritten, **values})


def _word_name(word: str) -> str:
    """The part of a word that names its field: `tp8` -> `tp`, `sched=1f1b` -> `sched`."""
    return word.split("=")[0] if "=" in word else re.sub(r"\d+$", "", word)


_Write = Callable[[Layout], list[str]]
_Read = Callable[[str], dict[str, Any]]


def _number(name: str, field: str, least: int = 1, always: bool = False) -> tuple[_Write, _Read]:
    default = Layout.__dataclass_fields__[field].default
    pattern = re.compile(rf"{name}=?(\d{{1,7}})")
    shown = f"{name}=" if name == "shard" else name

    def write(layout: Layout) -> list[str]:
        value = getattr(layout, field)
        return [f"{shown}{value}"] if always or value != default else []

    def read(word: str) -> dict[str, Any]:
        match = pattern.fullmatch(word)
        if not match or int(match[1]) < least:
            rule = f"followed by an integer from {least} to 9,999,999"
            raise ConfigError(f"layout: {quoted(word)} is not {shown} {rule}")
        return {field: int(match[1])}

    return write, read


def _choice(name: str, field: str, known: Sequence[str] = ()) -> tuple[_Write, _Read]:
    default = Layout.__dataclass_fields__[field].default

    def write(layout: Layout) -> list[str]:
        value = getattr(layout, field)
        return [f"{name}={value}"] if value != default else []

    def read(word: str) -> dict[str, Any]:
        value = word.partition("=")[2]
        if not value or (known and value not in known):
            rule = "is not one of the choices"
            raise bad_value(f"layout {name}", value, rule, nearest(value, known))
        return {field: value}

    return write, read


def _write_sp(layout: Layout) -> list[str]:
    return ["sp"] if layout.sequence_parallel else []


def _read_sp(word: str) -> dict[str, Any]:
    if word != "sp":
        raise bad_value("layout", word, "is not 'sp'")
    return {"sequence_parallel": True}


def recompute_word(layout: Layout) -> str:
    """What is recomputed, as the grammar writes it: `none`, `full/block/4`, `core_attn+mlp`."""
    if layout.recompute_granularity == "full":
        return f"full/{layout.recompute_method}/{layout.recompute_num_layers}"
    return "+".join(layout.recompute_modules) or "none"


def _write_recompute(layout: Layout) -> list[str]:
    return [f"recompute={recompute_word(layout)}"] if layout.recompute_granularity != "none" else []


def _read_recompute(word: str) -> dict[str, Any]:
    value = word.partition("=")[2]
    if value == "none":
        return {"recompute_granularity": "none"}
    if value == "full":
        value = "full/uniform/1"
    if match := re.fullmatch(r"full/(uniform|block)/(\d{1,5})", value):
        return {
            "recompute_granularity": "full",
            "recompute_method": match[1],
            "recompute_num_layers": int(match[2]),
        }
    modules = {"core_attn"} if value == "selective" else set(value.split("+"))
    if unknown := modules - set(RECOMPUTE_MODULES):
        bad = sorted(unknown)[0]
        hint = nearest(bad, (*RECOMPUTE_MODULES, "none", "full/uniform/1", "full/block/4"))
        raise bad_value("layout recompute", value, "is not none, full/METHOD/N or modules", hint)
    ordered = tuple(m for m in RECOMPUTE_MODULES if m in modules)
    return {"recompute_granularity": "selective", "recompute_modules": ordered}


def _write_schedule(layout: Layout) -> list[str]:
    usual = "interleaved" if layout.virtual_pipeline_model_parallel_size > 1 else "1f1b"
    return [f"sched={layout.schedule}"] if layout.schedule != usual else []


def _write_stages(layout: Layout) -> list[str]:
    if not layout.stage_layers:
        return []
    return [stages_word(layout.stage_layers)]


def stages_word(layers: Iterable[int]) -> str:
    """The layers of every virtual stage as a word, `stages=7,8*6,7`."""
    runs = [(value, len(list(same))) for value, same in groupby(layers)]
    return "stages=" + ",".join(f"{v}*{n}" if n > 1 else f"{v}" for v, n in runs)


def _read_stages(word: str) -> dict[str, Any]:
    layers: list[int] = []
    for part in word.partition("=")[2].split(","):
        match = re.fullmatch(r"(\d{1,4})(?:\*(\d{1,4}))?", part)
        if not match or len(layers) + int(match[2] or 1) > 100_000:
            raise bad_value("layout", word, "is not stages=N[*TIMES],...: stages=7,8*6,7")
        layers += [int(match[1])] * int(match[2] or 1)
    return {"stage_layers": tuple(layers)}


def _write_offload(layout: Layout) -> list[str]:
    fraction = layout.optimizer_offload_fraction
    return [f"offload=opt{np.format_float_positional(fraction, trim='-')}"] if fraction else []


def _read_offload(word: str) -> dict[str, Any]:
    match = re.fullmatch(r"offload=opt(\d?(?:\.\d+)?)", word)
    fraction = float(match[1]) if match and match[1] else -1.0
    if not 0 < fraction <= 1:
        raise ConfigError(
            f"layout: {quoted(word)} is not offload=opt followed by a fraction in (0, 1]"
        )
    return {"optimizer_offload_fraction": fraction}


def _write_overlap(layout: Layout) -> list[str]:
    if layout.overlap == MEGATRON_OVERLAPS:
        return []
    return ["overlap=" + ("+".join(layout.overlap) or "none")]


def _read_overlap(word: str) -> dict[str, Any]:
    value = word.partition("=")[2]
    names = set() if value == "none" else set(value.split("+"))
    if unknown := names - set(OVERLAPS):
        bad = sorted(unknown)[0]
        raise bad_value("layout overlap", bad, "is not a switch", nearest(bad, (*OVERLAPS, "none")))
    return {"overlap": tuple(name for name in OVERLAPS if name in names)}


GRAMMAR: dict[str, tuple[_Write, _Read]] = {
    "tp": _number("tp", "tensor_model_parallel_size", always=True),
    "pp": _number("pp", "pipeline_model_parallel_size", always=True),
    "vpp": _number("vpp", "virtual_pipeline_model_parallel_size"),
    "group": _number("group", "microbatch_group_size_per_vp_stage"),
    "cp": _number("cp", "context_parallel_size"),
    "cpcomm": _choice("cpcomm", "cp_comm_type", CP_COMM_TYPES),
    "ep": _number("ep", "expert_model_parallel_size"),
    "etp": _number("etp", "expert_tensor_parallel_size"),
    "mbs": _number("mbs", "micro_batch_size", always=True),
    "sp": (_write_sp, _read_sp),
    "zero": _number("zero", "zero_stage", least=0, always=True),
    "shard": _number("shard", "shard_group_size"),
    "recompute": (_write_recompute, _read_recompute),
    "sched": (_write_schedule, _choice("sched", "schedule", SCHEDULES)[1]),
    "stages": (_write_stages, _read_stages),
    "prec": _choice("prec", "precision", PRECISIONS),
    "grad": _choice("grad", "grad_reduce_dtype", GRAD_DTYPES),
    "offload": (_write_offload, _read_offload),
    "graph": _choice("graph", "cuda_graph_scope", GRAPH_SCOPES),
    "overlap": (_write_overlap, _read_overlap),
    "fw": _choice("fw", "framework"),
}
"""How each word of the grammar is written and read."""
