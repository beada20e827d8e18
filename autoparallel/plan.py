"""The saved result: what a search or an estimate answers, and what `plan.json` holds.

Plain records that the caller fills from whatever ranked the candidates; no cost model is known
here. `Plan.text()` is what `--json` prints and what `plan.json` holds, byte for byte. `load_plan`
reads it back strictly: a file that is not whole, or that a newer program wrote, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoparallel import strict_json as check
from autoparallel.constants import FITS
from autoparallel.counts import counted
from autoparallel.envelope import Envelope, envelope_values, read_envelope
from autoparallel.errors import AutoparallelError, ConfigError
from autoparallel.layout import Layout
from autoparallel.units import GIB

if TYPE_CHECKING:
    import pandas as pd

_SUM_TOLERANCE = 1e-6

_FP8 = {
    "fp8": ("hybrid", "delayed"),
    "fp8-tensorwise": ("hybrid", "tensorwise"),
    "fp8-blockwise": ("e4m3", "blockwise"),
    "mxfp8": ("e4m3", "mxfp8"),
}
_SHARDING = {2: "optim_grads", 3: "optim_grads_params"}
_GRAPHS: dict[str, tuple[str, list[str] | None]] = {
    "none": ("none", None),
    "attn": ("transformer_engine", ["attn"]),
    "mlp": ("transformer_engine", ["mlp"]),
    "moe": ("transformer_engine", ["moe_router", "moe_preprocess"]),
    "full": ("transformer_engine", []),
}


def megatron_fields(layout: Layout, data_parallel_size: int | None) -> dict[str, Any]:
    """The layout in Megatron-LM's argument names; null where a field does not apply.

    ZeRO stages 2 and 3 are Megatron-FSDP's `optim_grads` and `optim_grads_params`. `graph=moe`
    captures the router and preprocess parts, the ones a dropless mixture of experts has;
    `graph=full` captures whole layers, which is an empty scope.
    """
    return {**_parallel_fields(layout, data_parallel_size), **_execution_fields(layout)}


def _parallel_fields(layout: Layout, data_parallel_size: int | None) -> dict[str, Any]:
    pp, vpp = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    cp, zero = layout.context_parallel_size, layout.zero_stage
    replicas = (data_parallel_size or 0) * cp
    instances = max(replicas // layout.shard_group_size, 1) if layout.shard_group_size else 1
    return {
        "tensor_model_parallel_size": layout.tensor_model_parallel_size,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": vpp if vpp > 1 else None,
        "microbatch_group_size_per_vp_stage": (
            (layout.microbatch_group_size_per_vp_stage or pp) if vpp > 1 else None
        ),
        "context_parallel_size": cp,
        "cp_comm_type": layout.cp_comm_type if cp > 1 else None,
        "expert_model_parallel_size": layout.expert_model_parallel_size,
        "expert_tensor_parallel_size": layout.expert_tensor_parallel_size,
        "micro_batch_size": layout.micro_batch_size,
        "sequence_parallel": layout.sequence_parallel and layout.tensor_model_parallel_size > 1,
        "use_distributed_optimizer": zero > 0,
        "use_megatron_fsdp": zero > 1,
        "data_parallel_sharding_strategy": _SHARDING.get(zero),
        "num_distributed_optimizer_instances": instances if zero else None,
    }


def _execution_fields(layout: Layout) -> dict[str, Any]:
    full = layout.recompute_granularity == "full"
    selective = layout.recompute_granularity == "selective"
    fp8, fp8_recipe = _FP8.get(layout.precision, (None, None))
    nvfp4 = layout.precision == "nvfp4"
    graph_impl, graph_scope = _GRAPHS[layout.cuda_graph_scope]
    offload = layout.optimizer_offload_fraction
    return {
        "recompute_granularity": layout.recompute_granularity if full or selective else None,
        "recompute_method": layout.recompute_method if full else None,
        "recompute_num_layers": layout.recompute_num_layers if full else None,
        "recompute_modules": list(layout.recompute_modules) if selective else None,
        "bf16": layout.precision != "fp16",
        "fp16": layout.precision == "fp16",
        "fp8": fp8,
        "fp8_recipe": fp8_recipe,
        "fp4": "e2m1" if nvfp4 else None,
        "fp4_recipe": "nvfp4" if nvfp4 else None,
        "accumulate_allreduce_grads_in_fp32": layout.grad_reduce_dtype == "fp32",
        "grad_reduce_in_bf16": layout.grad_reduce_dtype == "bf16",
        "optimizer_cpu_offload": offload > 0,
        "optimizer_offload_fraction": offload or None,
        "cuda_graph_impl": graph_impl,
        "cuda_graph_scope": graph_scope,
        "overlap_grad_reduce": "grad" in layout.overlap,
        "overlap_param_gather": "param" in layout.overlap and layout.zero_stage > 0,
        "overlap_p2p_comm": (
            "p2p" in layout.overlap and layout.virtual_pipeline_model_parallel_size > 1
        ),
        "tp_comm_overlap": "tp" in layout.overlap and layout.tensor_model_parallel_size > 1,
        "overlap_moe_expert_parallel_comm": "moe" in layout.overlap,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Shares of the prediction that rest on measured, published and assumed constants."""

    measured: float
    published: float
    assumed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a trial of this layout gave; times are null when the outcome is not `ok`."""

    iteration_s: float | None
    iteration_s_mad: float | None
    peak_memory_bytes: float | None
    mode: str
    device: str
    impl: str
    steps: int
    outcome: str
    trial: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """The prediction once trials have been seen: re-calibrated, then moved by what was measured."""

    iteration_s: float
    iteration_s_interval: tuple[float, float]
    memory_bytes: float | None
    fits_probability: float
    best_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEntry:
    """One layout of the short list; predictions are null when the layout is not legal.

    Attributes:
        iteration_s_interval, memory_bytes_interval: 5th and 95th percentile.
        parts: Seconds of one step by cause, names ending in `_s`; they add up to `iteration_s`.
        memory_parts: Bytes on the fullest GPU by cause, names ending in `_bytes`; they add up to
            `memory_bytes`.
        num_micro_batches: Micro-batches one pipeline runs in one step.
    """

    rank: int | None
    layout: Layout
    data_parallel_size: int | None
    num_micro_batches: int | None
    iteration_s: float | None
    iteration_s_interval: tuple[float, float] | None
    tokens_per_s_per_gpu: float | None
    model_flops_utilization: float | None
    memory_bytes: float | None
    memory_bytes_interval: tuple[float, float] | None
    fits_probability: float | None
    best_probability: float | None = None
    days: float | None = None
    cost_usd: float | None = None
    energy_kwh: float | None = None
    co2_kg: float | None = None
    parts: dict[str, float] | None
    memory_parts: dict[str, float] | None
    origin: Origin | None = None
    measured: Measured | None = None
    corrected: Corrected | None = None

    def __post_init__(self) -> None:
        """Hold the rule that parts add up to their total."""
        for total, parts in (("iteration_s", "parts"), ("memory_bytes", "memory_parts")):
            _adds_up(total, getattr(self, total), parts, getattr(self, parts))

    @property
    def fits(self) -> bool:
        """Whether it is legal and called fitting."""
        return self.fits_probability is not None and self.fits_probability >= FITS

    def to_json(self) -> dict[str, Any]:
        """The entry as plain data in the contract's key order."""
        own = asdict(self)
        head = {"rank": own.pop("rank"), "layout": str(self.layout)}
        del own["layout"]
        counts = {name: own.pop(name) for name in ("data_parallel_size", "num_micro_batches")}
        fields = megatron_fields(self.layout, self.data_parallel_size)
        entry = {**head, **fields, **counts, "framework": self.layout.framework, **own}
        return {name: check.plain(name, value) for name, value in entry.items()}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Plan(Envelope):
    """A ranked short list of layouts with what was asked and what was left out."""

    kind: str = "training"
    entries: tuple[PlanEntry, ...]

    def __repr__(self) -> str:
        """The short list, a line a layout."""
        head = f"<Plan: {self.feasible:,} of {counted(self.considered, 'layout')} fit"
        return "\n".join((head, *(_line(entry) for entry in self.entries))) + ">"

    @property
    def figures(self) -> Any:
        """Plotly figures of this plan, for a notebook: `plan.figures.breakdown()`.

        The room that draws is above this one, so it is looked up when it is asked for.
        """
        return import_module("autoparallel.reporting.notebook").Figures(self)

    def to_frame(self) -> pd.DataFrame:
        """One row an entry; blocks become columns (`compute_s`, `weights_bytes`)."""
        import pandas as pd

        return pd.DataFrame([_flat(entry.to_json()) for entry in self.entries])


@dataclass(frozen=True, slots=True, kw_only=True)
class IllegalReason:
    """A rule that a layout breaks."""

    rule: str
    fields: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a layout stands among all candidates."""

    rank: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The answer about one given layout."""

    entry: PlanEntry
    legal: bool
    illegal_reasons: tuple[IllegalReason, ...] = ()
    place: Place | None = None

    def to_json(self) -> dict[str, Any]:
        """One element of a plan plus legality and place."""
        reasons = [asdict(reason) for reason in self.illegal_reasons]
        place = asdict(self.place) if self.place else None
        extra = {"legal": self.legal, "illegal_reasons": reasons, "place": place}
        return self.entry.to_json() | {k: check.plain(k, v) for k, v in extra.items()}


def load_plan(path: Path | str) -> Plan:
    """Read a saved plan, from the file or from its run directory.

    Raises:
        ConfigError: no such file, over 64 MB, not whole JSON, a number that is not finite, a key
            that is repeated, missing or unknown, a value of the wrong kind, a newer schema_version.
    """
    return read_envelope(path, lambda data: Plan(**envelope_values(data, "training", _entry)))


def _adds_up(total: str, value: float | None, name: str, parts: Mapping[str, float] | None) -> None:
    if parts is None or value is None:
        return
    found = math.fsum(parts.values())
    if not math.isclose(found, value, rel_tol=_SUM_TOLERANCE, abs_tol=1e-12):
        raise AutoparallelError(f"{name}: parts add up to {found!r}, but {total} is {value!r}")


def _line(entry: PlanEntry) -> str:
    """An entry for a reader: rank, layout, and the figures it has."""
    figures = ""
    if entry.iteration_s is not None and entry.memory_bytes is not None:
        figures = f"{entry.iteration_s:.4g} s, {entry.memory_bytes / GIB:.1f} GiB"
        figures += f", P(fits) {entry.fits_probability or 0:.2f}"
    return f"  {entry.rank or '-'}  {entry.layout}: {figures or 'not legal'}"


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in entry.items():
        if name in ("parts", "memory_parts"):
            row |= value or {}
        elif isinstance(value, Mapping):
            row |= {f"{name}_{key}": item for key, item in value.items()}
        elif name.endswith("_interval"):
            low, high = value or (None, None)
            stem = name.removesuffix("_interval")
            row |= {f"{stem}_p5": low, f"{stem}_p95": high}
        else:
            row[name] = value
    return row


def _layout(path: str, value: Any) -> Layout:
    try:
        return Layout.parse(check.text(path, value))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


_ORIGIN: dict[str, check.Check] = dict.fromkeys(
    ("measured", "published", "assumed"), check.fraction
)
_MEASURED: dict[str, check.Check] = {
    **dict.fromkeys(
        ("iteration_s", "iteration_s_mad", "peak_memory_bytes"), check.or_null(check.number)
    ),
    **dict.fromkeys(("mode", "device", "impl"), check.text),
    "steps": check.count,
    **dict.fromkeys(("outcome", "trial"), check.text),
    "versions": check.map_of(check.text),
}
_CORRECTED: dict[str, check.Check] = {
    "iteration_s": check.number,
    "iteration_s_interval": check.interval,
    "memory_bytes": check.or_null(check.number),
    **dict.fromkeys(("fits_probability", "best_probability"), check.fraction),
}
_ENTRY: dict[str, check.Check] = {
    "rank": check.or_null(check.count),
    "layout": _layout,
    **dict.fromkeys(megatron_fields(Layout(), 1), lambda path, value: value),
    "data_parallel_size": check.or_null(check.count),
    "num_micro_batches": check.or_null(check.count),
    "framework": check.text,
    "iteration_s": check.or_null(check.number),
    "iteration_s_interval": check.or_null(check.interval),
    "tokens_per_s_per_gpu": check.or_null(check.number),
    "model_flops_utilization": check.or_null(check.number),
    "memory_bytes": check.or_null(check.number),
    "memory_bytes_interval": check.or_null(check.interval),
    "fits_probability": check.or_null(check.fraction),
    "best_probability": check.or_null(check.fraction),
    **dict.fromkeys(("days", "cost_usd", "energy_kwh", "co2_kg"), check.or_null(check.number)),
    "parts": check.or_null(check.map_of(check.number, "_s")),
    "memory_parts": check.or_null(check.map_of(check.number, "_bytes")),
    "origin": check.or_null(check.built(Origin, _ORIGIN)),
    "measured": check.or_null(check.built(Measured, _MEASURED)),
    "corrected": check.or_null(check.built(Corrected, _CORRECTED)),
}


def _entry(path: str, value: Any) -> PlanEntry:
    """A plan element; what follows from its layout string must agree with it."""
    found = check.record(path, {"corrected": None} | check.mapping(path, value), _ENTRY)
    layout: Layout = found["layout"]
    derived = megatron_fields(layout, found["data_parallel_size"]) | {"framework": layout.framework}
    for name, expected in derived.items():
        # `1 == True` in Python, not in JSON.
        if (type(found[name]), found.pop(name)) != (type(expected), expected):
            raise check.wrong(
                f"{path}.{name}", value[name], f"is not {expected!r}, as its layout says"
            )
    try:
        return PlanEntry(**found)
    except AutoparallelError as error:
        raise ConfigError(f"{path}.{error}") from error
