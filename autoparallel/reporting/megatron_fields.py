"""Megatron-LM's argument names back to a layout: the inverse of `plan.megatron_fields`.

Defaults are those of Megatron-LM core_v0.16.1 where a field is absent, not those of a layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from autoparallel.errors import bad_value
from autoparallel.layout import CP_COMM_TYPES, OVERLAPS, RECOMPUTE_MODULES, Layout
from autoparallel.ranking.reasons import consistent

Fields: TypeAlias = Mapping[str, Any]

KNOWN = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "num_virtual_stages_per_pipeline_rank",
    "num_layers_per_virtual_pipeline_stage",
    "microbatch_group_size_per_vp_stage",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "pipeline_model_parallel_layout",
    "context_parallel_size",
    "cp_comm_type",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "micro_batch_size",
    "sequence_parallel",
    "use_distributed_optimizer",
    "use_megatron_fsdp",
    "data_parallel_sharding_strategy",
    "num_distributed_optimizer_instances",
    "recompute_granularity",
    "recompute_activations",
    "recompute_method",
    "recompute_num_layers",
    "recompute_modules",
    "bf16",
    "fp16",
    "fp8",
    "fp8_recipe",
    "fp4",
    "mixed_precision",
    "grad_reduce_in_bf16",
    "grad_reduce_in_fp32",
    "optimizer_cpu_offload",
    "optimizer_offload_fraction",
    "cuda_graph_impl",
    "cuda_graph_scope",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "overlap_p2p_comm",
    "tp_comm_overlap",
    "overlap_moe_expert_parallel_comm",
)
"""Fields that say how a job is laid out."""
JOB = ("num_layers", "hidden_size", "num_moe_experts", "seq_length", "global_batch_size")
"""Fields that say what the job is; they are compared with the request."""


def layout_of(found: Fields, num_gpus: int, num_layers: int) -> Layout:
    """The layout that these fields describe.

    Args:
        found: Megatron-LM argument names (or Megatron-Bridge's) to values.
        num_gpus: World size, which the number of optimizer instances is a share of.
        num_layers: Of the model, which stages are counted from.

    Raises:
        ConfigError: a value of the wrong kind, or a split that has no word in the grammar.
    """
    pp = _size(found, "pipeline_model_parallel_size")
    vpp = _chunks(found, pp, num_layers)
    group = _size(found, "microbatch_group_size_per_vp_stage", pp)
    made = Layout(
        tensor_model_parallel_size=_size(found, "tensor_model_parallel_size"),
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp,
        microbatch_group_size_per_vp_stage=0 if group == pp else group,
        context_parallel_size=_size(found, "context_parallel_size"),
        cp_comm_type=_cp_comm(found),
        micro_batch_size=_size(found, "micro_batch_size"),
        sequence_parallel=_on(found, "sequence_parallel"),
        stage_layers=_stages(found, pp, vpp, num_layers),
        grad_reduce_dtype="bf16" if _bf16_gradients(found) else "fp32",
        precision=_precision(found),
        cuda_graph_scope=_graph(found),
        overlap=_overlap(found, vpp),
        optimizer_offload_fraction=_offload(found),
        **_recompute(found),
        **_experts(found),
    )
    return consistent(made, **_sharding(found, num_gpus, made))


def _size(found: Fields, name: str, default: int = 1) -> int:
    value = found.get(name)
    if value in (None, "", "None"):
        return default
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise bad_value(name, value, "is not an integer >= 1", "write its value in place of it")
    return number


def _on(found: Fields, name: str, default: bool = False) -> bool:
    value = found.get(name, default)
    return str(value).lower() in ("true", "1", "yes")


def _words(value: object) -> list[str]:
    """`['a', 'b']`, `a b` or a list as its words."""
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    return [w.strip("'\"") for w in str(value).strip("[]()").replace(",", " ").split()]


def _chunks(found: Fields, pp: int, num_layers: int) -> int:
    """Chunks a rank, by whichever of Megatron's three ways they are given."""
    for name in ("virtual_pipeline_model_parallel_size", "num_virtual_stages_per_pipeline_rank"):
        if (count := _size(found, name)) > 1:
            return count
    each = _size(found, "num_layers_per_virtual_pipeline_stage", 0)
    extra = sum(_on(found, f"account_for_{end}_in_pipeline_split") for end in ("embedding", "loss"))
    return max((num_layers + extra) // (pp * each), 1) if each else 1


def _stages(found: Fields, pp: int, vpp: int, num_layers: int) -> tuple[int, ...]:
    """Layers of every virtual stage where the split is uneven.

    Raises:
        ConfigError: an explicit layout string, or a split that does not come out whole.
    """
    if found.get("pipeline_model_parallel_layout") not in (None, "", "None"):
        raise bad_value(
            "pipeline_model_parallel_layout",
            found["pipeline_model_parallel_layout"],
            "is not read",
            "write the layout in the grammar, with stages=",
        )
    first = _size(found, "decoder_first_pipeline_num_layers", 0)
    last = _size(found, "decoder_last_pipeline_num_layers", 0)
    ends = [_on(found, f"account_for_{end}_in_pipeline_split") for end in ("embedding", "loss")]
    count = pp * vpp
    if any(ends):
        each, rest = divmod(num_layers + sum(ends), count)
        if rest or count < 2:
            return ()
        return (each - ends[0], *[each] * (count - 2), each - ends[1])
    if not (first or last) or pp < 2:
        return ()
    middle = pp - bool(first) - bool(last)
    each = (num_layers - first - last) // max(middle, 1) // vpp
    row = [first // vpp or each, *[each] * (pp - 2), last // vpp or each]
    if sum(row) * vpp != num_layers:
        rule = f"and {last} at the other end do not leave whole stages of {num_layers} layers"
        raise bad_value("decoder_first_pipeline_num_layers", first, rule)
    return tuple(row * vpp)


def _cp_comm(found: Fields) -> str:
    words = _words(found.get("cp_comm_type") or "p2p")
    return words[0] if words and words[0] in CP_COMM_TYPES else "p2p"


def _experts(found: Fields) -> dict[str, Any]:
    """Megatron splits experts as it splits attention unless it is told otherwise."""
    if not _size(found, "num_moe_experts", 0):
        return {}
    tp = _size(found, "tensor_model_parallel_size")
    return {
        "expert_model_parallel_size": _size(found, "expert_model_parallel_size"),
        "expert_tensor_parallel_size": _size(found, "expert_tensor_parallel_size", tp),
    }


def _recompute(found: Fields) -> dict[str, Any]:
    kind = found.get("recompute_granularity")
    if kind == "full":
        method = "block" if found.get("recompute_method") == "block" else "uniform"
        layers = _size(found, "recompute_num_layers")
        return {
            "recompute_granularity": "full",
            "recompute_method": method,
            "recompute_num_layers": layers,
        }
    if kind == "selective" or _on(found, "recompute_activations"):
        given = set(_words(found.get("recompute_modules") or "core_attn"))
        known = tuple(m for m in RECOMPUTE_MODULES if m in given)
        return {"recompute_granularity": "selective", "recompute_modules": known or ("core_attn",)}
    return {}


_RECIPES = {"delayed": "fp8", "tensorwise": "fp8-tensorwise", "blockwise": "fp8-blockwise"}
_MIXED = (
    ("nvfp4", "nvfp4"),
    ("mxfp8", "mxfp8"),
    ("fp8_current", "fp8-tensorwise"),
    ("fp8_subchannel", "fp8-blockwise"),
    ("fp8", "fp8"),
    ("fp16", "fp16"),
)
"""Words of Megatron-Bridge's `mixed_precision`, the longest first."""


def _precision(found: Fields) -> str:
    mixed = str(found.get("mixed_precision") or "").lower()
    if named := next((name for word, name in _MIXED if word in mixed), ""):
        return named
    if found.get("fp4") not in (None, "", "None"):
        return "nvfp4"
    if found.get("fp8") not in (None, "", "None"):
        recipe = str(found.get("fp8_recipe") or "delayed")
        return _RECIPES.get(recipe, recipe if recipe == "mxfp8" else "fp8")
    return "fp16" if _on(found, "fp16") else "bf16"


def _bf16_gradients(found: Fields) -> bool:
    return _on(found, "grad_reduce_in_bf16") or not _on(found, "grad_reduce_in_fp32", True)


def _offload(found: Fields) -> float:
    if not _on(found, "optimizer_cpu_offload"):
        return 0.0
    value = found.get("optimizer_offload_fraction")
    try:
        return min(max(float(str(value if value is not None else 1.0)), 0.0), 1.0)
    except ValueError:
        raise bad_value("optimizer_offload_fraction", value, "is not a number in 0 to 1") from None


def _graph(found: Fields) -> str:
    if str(found.get("cuda_graph_impl") or "none") == "none":
        return "none"
    words = _words(found.get("cuda_graph_scope") or [])
    if "moe_router" in words or "moe" in words:
        return "moe"
    return next((word for word in ("attn", "mlp") if word in words), "full")


def _overlap(found: Fields, vpp: int) -> tuple[str, ...]:
    """Switches that are on; transfers overlap wherever chunks interleave unless switched off."""
    names = {
        "grad": _on(found, "overlap_grad_reduce"),
        "param": _on(found, "overlap_param_gather"),
        "tp": _on(found, "tp_comm_overlap"),
        "p2p": vpp == 1 or _on(found, "overlap_p2p_comm", True),
        "moe": _on(found, "overlap_moe_expert_parallel_comm"),
    }
    return tuple(name for name in OVERLAPS if names[name])


def _sharding(found: Fields, num_gpus: int, made: Layout) -> dict[str, Any]:
    strategy = str(found.get("data_parallel_sharding_strategy") or "")
    if _on(found, "use_megatron_fsdp") and strategy.startswith("optim_grads"):
        return {"zero_stage": 3 if strategy == "optim_grads_params" else 2}
    if not _on(found, "use_distributed_optimizer"):
        return {"zero_stage": 0}
    instances = _size(found, "num_distributed_optimizer_instances")
    replicas = made.data_parallel_size(num_gpus) * made.context_parallel_size
    return {"zero_stage": 1, "shard_group_size": replicas // instances if instances > 1 else 0}
