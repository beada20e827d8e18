"""A job in megatron-core's own words: transformer, data-parallel and optimizer configuration."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as functional
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from autoparallel.errors import ConfigError, bad_value
from autoparallel.layout import Layout
from autoparallel.model import Model
from autoparallel.profiling.job import Job

VOCABULARY_MULTIPLE = 128
_NODE_GPUS = 8
"""Expert groups within a node are all-to-all in the exported files too."""


def deviations(job: Job, impl: str) -> tuple[str, ...]:
    """Where a run differs from its layout, in words."""
    found = []
    layout = job.layout
    if layout.context_parallel_size > 1 and impl != "te" and layout.cp_comm_type != "all_gather":
        found.append(f"cpcomm all_gather in place of {layout.cp_comm_type}: no TransformerEngine")
    ranks = layout.expert_model_parallel_size * layout.expert_tensor_parallel_size
    if job.model.num_moe_experts and ranks > _NODE_GPUS and layout.framework == "megatron-core":
        found.append(
            "experts sent by the alltoall dispatcher, where exported files for several nodes of 8 "
            "GPUs name flex with deepep: expert traffic may take longer than in the real run"
        )
    if job.comparable:
        found.append("fp32 with weights that do not depend on the layout, to compare losses")
    return tuple(found)


def half_dtype(job: Job) -> Any:
    """Dtype of weights and activations."""
    if job.comparable:
        return torch.float32
    return torch.float16 if job.layout.precision == "fp16" else torch.bfloat16


def padded_vocabulary(model: Model, layout: Layout) -> int:
    """The vocabulary, rounded up so that every tensor-parallel rank has as much."""
    unit = VOCABULARY_MULTIPLE * layout.tensor_model_parallel_size
    return math.ceil(model.vocab_size / unit) * unit


def transformer_config(job: Job, *, cuda: bool, impl: str) -> Any:
    """The `TransformerConfig` of a job; megatron-core checks it as it is made."""
    return TransformerConfig(
        **_network(job.model, cuda=cuda, impl=impl),
        **_experts(job.model, job.layout, impl),
        **_parallel(job.model, job.layout),
        **_pipeline(job.layout, cuda=cuda),
        **_recompute(job.layout),
        **_precision(job),
        use_cpu_initialization=not cuda,
    )


def _network(model: Model, *, cuda: bool, impl: str) -> dict[str, Any]:
    gated, bias = model.gated_linear_unit, model.add_bias_linear
    silu = model.activation == "silu"
    fusible = (silu and gated) or (model.activation == "gelu" and bias and not gated)
    window = (model.window_size - 1, 0) if model.window_size else None
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.kv_channels,
        "gated_linear_unit": gated,
        "activation_func": _activation(model.activation),
        "normalization": model.normalization,
        "layernorm_epsilon": model.norm_epsilon,
        "add_bias_linear": bias,
        "add_qkv_bias": model.add_qkv_bias,
        "qk_layernorm": model.qk_layernorm,
        "window_size": window,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_activation_fusion": cuda and fusible,
        "bias_dropout_fusion": cuda,
        "masked_softmax_fusion": False,
        "apply_rope_fusion": impl == "te" and model.position_embedding_type == "rope",
        "gradient_accumulation_fusion": False,
    }


def _activation(name: str) -> Any:
    from megatron.core.activations import squared_relu

    known = {"silu": functional.silu, "gelu": functional.gelu, "squared_relu": squared_relu}
    if name not in known:
        raise bad_value("activation", name, f"is not one of {', '.join(known)}")
    return known[name]


def _experts(model: Model, layout: Layout, impl: str) -> dict[str, Any]:
    """Dropless experts with the all-to-all dispatcher, which needs no further library."""
    if not model.num_moe_experts:
        return {}
    dense = model.moe_first_dense_layers
    return {
        "num_moe_experts": model.num_moe_experts,
        "moe_router_topk": model.moe_router_topk,
        "moe_ffn_hidden_size": model.moe_ffn_hidden_size or None,
        "moe_shared_expert_intermediate_size": model.moe_shared_expert_intermediate_size or None,
        "moe_layer_freq": [0] * dense + [1] * model.moe_layers if dense else 1,
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": impl == "te",
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": 1e-2,
        "moe_router_num_groups": model.moe_router_num_groups or None,
        "moe_router_group_topk": model.moe_router_group_topk or None,
        "expert_model_parallel_size": layout.expert_model_parallel_size,
        "expert_tensor_parallel_size": layout.expert_tensor_parallel_size,
    }


def _parallel(model: Model, layout: Layout) -> dict[str, Any]:
    chunks = layout.virtual_pipeline_model_parallel_size
    stages = layout.stage_layers
    whole = layout.pipeline_model_parallel_size * chunks
    if not stages and model.num_layers % whole:
        rule = f"layers are not a multiple of pp x vpp = {whole}"
        raise bad_value("num_layers", model.num_layers, rule, "give the layers as stages=...")
    return {
        "tensor_model_parallel_size": layout.tensor_model_parallel_size,
        "pipeline_model_parallel_size": layout.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": chunks if chunks > 1 else None,
        "microbatch_group_size_per_vp_stage": (
            layout.microbatch_group_size_per_vp_stage or layout.pipeline_model_parallel_size
        ),
        "context_parallel_size": layout.context_parallel_size,
        "cp_comm_type": layout.cp_comm_type,
        "sequence_parallel": layout.sequence_parallel and layout.tensor_model_parallel_size > 1,
        "pipeline_model_parallel_layout": _stages(stages) if stages else None,
    }


def _stages(stages: tuple[int, ...]) -> str:
    """`Et*7|t*8|...|t*7L`: embedding, layers and loss, stage by stage."""
    cells = [f"t*{layers}" if layers else "" for layers in stages]
    return "E" + "|".join(cells) + "L"


def _pipeline(layout: Layout, *, cuda: bool) -> dict[str, Any]:
    """Point-to-point transfers of a pipeline.

    With two stages and chunks, previous and next are the same peer: batched transfers pair up in
    the wrong order without any error, so they must be single and overlapped. gloo reads a tensor
    that it sends in the background, so its storage must outlive the call; NCCL is stream-ordered.
    """
    chunked = layout.virtual_pipeline_model_parallel_size > 1
    overlapped = chunked and ("p2p" in layout.overlap or layout.pipeline_model_parallel_size == 2)
    return {
        "overlap_p2p_comm": overlapped,
        "batch_p2p_comm": not overlapped,
        "deallocate_pipeline_outputs": layout.pipeline_model_parallel_size > 1
        and (cuda or not overlapped),
    }


def _recompute(layout: Layout) -> dict[str, Any]:
    if layout.recompute_granularity == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": layout.recompute_method,
            "recompute_num_layers": layout.recompute_num_layers,
        }
    if layout.recompute_granularity == "selective":
        return {
            "recompute_granularity": "selective",
            "recompute_modules": list(layout.recompute_modules),
        }
    return {}


_FP8_RECIPES = {
    "fp8": ("hybrid", "delayed"),
    "fp8-tensorwise": ("hybrid", "tensorwise"),
    "fp8-blockwise": ("e4m3", "blockwise"),
    "mxfp8": ("e4m3", "mxfp8"),
}


def _precision(job: Job) -> dict[str, Any]:
    dtype = half_dtype(job)
    found: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
    }
    if job.layout.precision in _FP8_RECIPES:
        found["fp8"], found["fp8_recipe"] = _FP8_RECIPES[job.layout.precision]
    elif job.layout.precision not in ("bf16", "fp16"):
        raise ConfigError(f"prec: {job.layout.precision} is not something the worker runs yet")
    return found


def data_parallel_config(job: Job) -> Any:
    """Megatron's own data parallelism, sharded when the layout says so."""
    overlap = job.layout.overlap
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=job.comparable or job.layout.grad_reduce_dtype == "fp32",
        overlap_grad_reduce="grad" in overlap,
        overlap_param_gather=_gathers(job.layout),
        use_distributed_optimizer=job.layout.zero_stage > 0,
    )


FP16_LOSS_SCALE = 2.0**12
"""Where the dynamic scale begins. Megatron's 2^32 overflows in the first fifteen steps or more,
which leave the optimizer out: a short run would time none with it."""


def optimizer_config(job: Job) -> Any:
    """Adam with gradient clipping, as the exported arguments have it."""
    dtype = half_dtype(job)
    return OptimizerConfig(
        optimizer="adam",
        lr=1e-4,
        min_lr=1e-5,
        weight_decay=0.1,
        adam_beta2=0.95,
        clip_grad=1.0,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        initial_loss_scale=FP16_LOSS_SCALE,
        params_dtype=dtype,
        use_distributed_optimizer=job.layout.zero_stage > 0,
        overlap_param_gather=_gathers(job.layout),
    )


def _gathers(layout: Layout) -> bool:
    """Whether parameters are gathered while the first layers compute."""
    return layout.zero_stage > 0 and {"grad", "param"} <= set(layout.overlap)
