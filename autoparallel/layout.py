"""A parallel layout: the record, its one-line grammar, and its columns.

| field | letter | word |
|---|---|---|
| tensor_model_parallel_size | t, tp | `tp8` |
| pipeline_model_parallel_size | p, pp | `pp8` |
| virtual_pipeline_model_parallel_size (chunks a rank, 1 = none) | v, vpp | `vpp3` |
| microbatch_group_size_per_vp_stage (0 = pp) | N | `group8` |
| context_parallel_size | c, cp | `cp2` |
| cp_comm_type | | `cpcomm=a2a+p2p` |
| expert_model_parallel_size | e, ep | `ep8` |
| expert_tensor_parallel_size | etp | `etp1` |
| micro_batch_size | b, mbs | `mbs1` |
| sequence_parallel | | `sp` |
| zero_stage (1 = distributed optimizer, 3 = fully sharded) | | `zero1` |
| shard_group_size (0 = all replicas) | | `shard=8` |
| recompute_granularity / _method / _num_layers, recompute_modules | | `recompute=full/block/4`,
`recompute=core_attn+mlp` | | schedule | | `sched=1f1b` |
| stage_layers (decoder layers of every virtual stage, in order) | | `stages=7,8*6,7` |
| precision | | `prec=bf16` |
| grad_reduce_dtype | | `grad=fp32` |
| optimizer_offload_fraction | | `offload=opt0.5` |
| cuda_graph_scope | | `graph=moe` |
| overlap (switches that are on) | | `overlap=grad+param+tp` |
| framework | | `fw=megatron-core` |

Data parallel size is never written: it is derived from the number of GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoparallel.errors import ConfigError, bad_value, nearest
from autoparallel.errors import shown as quoted
from autoparallel.units import Num

CP_COMM_TYPES = ("p2p", "all_gather", "a2a", "a2a+p2p")
GRANULARITIES = ("none", "selective", "full")
METHODS = ("uniform", "block")
RECOMPUTE_MODULES = (
    "core_attn",
    "layernorm",
    "moe_act",
    "mlp",
    "moe",
    "shared_experts",
    "mla_up_proj",
)
SCHEDULES = ("1f1b", "interleaved", "bfs", "zb1p", "zb2p")
PRECISIONS = ("bf16", "fp16", "fp8", "fp8-tensorwise", "fp8-blockwise", "mxfp8", "nvfp4")
GRAD_DTYPES = ("fp32", "bf16")
GRAPH_SCOPES = ("none", "attn", "mlp", "moe", "full")
OVERLAPS = ("grad", "param", "tp", "p2p", "moe")
MEGATRON_OVERLAPS = ("grad", "param", "p2p")


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
        return " ".join(word for write, _ in _WORDS.values() for word in write(self))

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read a layout.

        Raises:
            ConfigError: an unknown, repeated or malformed word.
        """
        values: dict[str, Any] = {}
        for word in text.split():
            name = _word_name(word)
            if name not in _WORDS:
                follows = "the data-parallel size follows from the number of GPUs, leave it out"
                hint = follows if name == "dp" else nearest(name.lower(), _WORDS)
                raise ConfigError(f"layout: unknown word {quoted(word)} in {quoted(text)}; {hint}")
            read = _WORDS[name][1](word)
            if repeated := values.keys() & read.keys():
                raise ConfigError(
                    f"layout: {quoted(word)} sets {sorted(repeated)[0]} a second time"
                )
            values |= read
        if values.get("virtual_pipeline_model_parallel_size", 1) > 1:
            values.setdefault("schedule", "interleaved")
        return cls(**values)


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
            raise ConfigError(
                f"layout: {quoted(word)} is not {shown} followed by an integer >= {least}"
            )
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
    runs = [(value, len(list(same))) for value, same in groupby(layout.stage_layers)]
    return ["stages=" + ",".join(f"{v}*{n}" if n > 1 else f"{v}" for v, n in runs)]


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


_WORDS: dict[str, tuple[_Write, _Read]] = {
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Knobs:
    """Layouts as columns: one float64 scalar or [N] array a knob, for `rules` and `cost`.

    Categories are codes into the tuples at the top of this module (`schedule` into `SCHEDULES`,
    ...);
    sets are bit masks in the order of `RECOMPUTE_MODULES` and `OVERLAPS`. `stages` is an index into
    `stage_table`, whose entry 0 is the even split.
    """

    num_gpus: Num
    global_batch_size: Num
    tp: Num
    pp: Num
    vpp: Num
    group: Num
    cp: Num
    cp_comm: Num
    ep: Num
    etp: Num
    mbs: Num
    sp: Num
    zero: Num
    shard: Num
    granularity: Num
    method: Num
    recompute_layers: Num
    modules: Num
    schedule: Num
    stages: Num
    precision: Num
    grad_bytes: Num
    offload: Num
    graph: Num
    overlap: Num
    stage_table: tuple[tuple[int, ...], ...] = ((),)

    @cached_property
    def dp(self) -> Num:
        """Data-parallel size (exact division is a rule, not an assumption)."""
        return self.num_gpus / (self.tp * self.pp * self.cp)

    @cached_property
    def micro_batches(self) -> Num:
        """Micro-batches a pipeline runs in one step."""
        return self.global_batch_size / (self.mbs * self.dp)

    def module(self, name: str) -> Num:
        """1 where `name` is recomputed selectively."""
        return _bit(self.modules, RECOMPUTE_MODULES.index(name)) * (self.granularity == 1)

    def overlaps(self, name: str) -> Num:
        """1 where the overlap switch `name` is on."""
        return _bit(self.overlap, OVERLAPS.index(name))

    @property
    def size(self) -> int:
        """Number of candidates."""
        return max(np.size(getattr(self, f.name)) for f in KNOB_FIELDS)

    def take(self, index: NDArray[Any] | slice) -> Knobs:
        """The rows at `index`; scalars stay scalars."""
        picked = {f.name: _take(getattr(self, f.name), index) for f in KNOB_FIELDS}
        return Knobs(**picked, stage_table=self.stage_table)

    def layout(self, row: int, framework: str = "megatron-core") -> Layout:
        """Row `row` as a scalar layout."""
        v = {f.name: _item(getattr(self, f.name), row) for f in KNOB_FIELDS}
        mask, overlap = int(v["modules"]), int(v["overlap"])
        granularity = GRANULARITIES[int(v["granularity"])]
        full = granularity == "full"
        return Layout(
            tensor_model_parallel_size=int(v["tp"]),
            pipeline_model_parallel_size=int(v["pp"]),
            virtual_pipeline_model_parallel_size=int(v["vpp"]),
            microbatch_group_size_per_vp_stage=int(v["group"]),
            context_parallel_size=int(v["cp"]),
            cp_comm_type=CP_COMM_TYPES[int(v["cp_comm"])],
            expert_model_parallel_size=int(v["ep"]),
            expert_tensor_parallel_size=int(v["etp"]),
            micro_batch_size=int(v["mbs"]),
            sequence_parallel=bool(v["sp"]),
            zero_stage=int(v["zero"]),
            shard_group_size=int(v["shard"]),
            recompute_granularity=granularity,
            recompute_method=METHODS[int(v["method"])] if full else "uniform",
            recompute_num_layers=int(v["recompute_layers"]) if full else 0,
            recompute_modules=tuple(
                name
                for i, name in enumerate(RECOMPUTE_MODULES)
                if mask >> i & 1 and granularity == "selective"
            ),
            schedule=SCHEDULES[int(v["schedule"])],
            stage_layers=self.stage_table[int(v["stages"])],
            precision=PRECISIONS[int(v["precision"])],
            grad_reduce_dtype="fp32" if v["grad_bytes"] == 4 else "bf16",
            optimizer_offload_fraction=float(v["offload"]),
            cuda_graph_scope=GRAPH_SCOPES[int(v["graph"])],
            overlap=tuple(name for i, name in enumerate(OVERLAPS) if overlap >> i & 1),
            framework=framework,
        )


KNOB_FIELDS = tuple(f for f in fields(Knobs) if f.name != "stage_table")


def _bit(mask: Num, position: int) -> Num:
    shifted = np.floor(mask / 2.0**position)
    return shifted - 2.0 * np.floor(shifted / 2.0)


def _take(value: Num, index: NDArray[Any] | slice) -> Num:
    return value[index] if isinstance(value, np.ndarray) and value.ndim else value


def _item(value: Num, row: int) -> float:
    return float(value[row]) if isinstance(value, np.ndarray) and value.ndim else float(value)


def modules_mask(modules: Sequence[str]) -> float:
    """Bit mask of a set of recompute modules."""
    return float(sum(1 << RECOMPUTE_MODULES.index(name) for name in modules))


def overlap_mask(names: Sequence[str]) -> float:
    """Bit mask of a set of overlap switches."""
    return float(sum(1 << OVERLAPS.index(name) for name in names))


def knobs(
    layouts: Sequence[Layout], num_gpus: Sequence[int], global_batch_size: Sequence[int]
) -> Knobs:
    """The columns of `layouts`, row by row with their number of GPUs and global batch size."""
    table = ((), *dict.fromkeys(x.stage_layers for x in layouts if x.stage_layers))
    stage_index = {stages: i for i, stages in enumerate(table)}

    def column(value: Callable[[Layout], float]) -> NDArray[np.float64]:
        return np.array([value(x) for x in layouts], dtype=np.float64)

    return Knobs(
        num_gpus=np.array(num_gpus, dtype=np.float64),
        global_batch_size=np.array(global_batch_size, dtype=np.float64),
        tp=column(lambda x: x.tensor_model_parallel_size),
        pp=column(lambda x: x.pipeline_model_parallel_size),
        vpp=column(lambda x: x.virtual_pipeline_model_parallel_size),
        group=column(lambda x: x.microbatch_group_size_per_vp_stage),
        cp=column(lambda x: x.context_parallel_size),
        cp_comm=column(lambda x: CP_COMM_TYPES.index(x.cp_comm_type)),
        ep=column(lambda x: x.expert_model_parallel_size),
        etp=column(lambda x: x.expert_tensor_parallel_size),
        mbs=column(lambda x: x.micro_batch_size),
        sp=column(lambda x: x.sequence_parallel),
        zero=column(lambda x: x.zero_stage),
        shard=column(lambda x: x.shard_group_size),
        granularity=column(lambda x: GRANULARITIES.index(x.recompute_granularity)),
        method=column(lambda x: METHODS.index(x.recompute_method)),
        recompute_layers=column(lambda x: x.recompute_num_layers),
        modules=column(lambda x: modules_mask(x.recompute_modules)),
        schedule=column(lambda x: SCHEDULES.index(x.schedule)),
        stages=column(lambda x: stage_index.get(x.stage_layers, 0)),
        precision=column(lambda x: PRECISIONS.index(x.precision)),
        grad_bytes=column(lambda x: 4.0 if x.grad_reduce_dtype == "fp32" else 2.0),
        offload=column(lambda x: x.optimizer_offload_fraction),
        graph=column(lambda x: GRAPH_SCOPES.index(x.cuda_graph_scope)),
        overlap=column(lambda x: overlap_mask(x.overlap)),
        stage_table=table,
    )
