"""Megatron-Bridge 0.3.1: a ConfigContainer in YAML, and the program that builds and starts it.

The fields of a Bridge model provider are those of megatron-core's `TransformerConfig`, so they are
worked out from the Megatron-LM exporter's fields by one table of renamings.

Source: NVIDIA-NeMo/Megatron-Bridge v0.3.1 src/megatron/bridge/training/config.py,
training/mixed_precision.py, models/gpt_provider.py, models/mla_provider.py.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import yaml

from autoparallel.exporting.job import TrainingJob
from autoparallel.exporting.megatron_lm import environment, fields
from autoparallel.exporting.program import Program, one_line

VERSION = "Megatron-Bridge 0.3.1"

_SAME = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "seq_length",
    "position_embedding_type",
    "normalization",
    "layernorm_epsilon",
    "qk_layernorm",
    "add_bias_linear",
    "glu_linear_offset",
    "activation_func_clamp_value",
    "softmax_type",
    "window_attn_skip_freq",
    "multi_latent_attention",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_head_dim",
    "qk_pos_emb_head_dim",
    "v_head_dim",
    "rope_type",
    "rotary_base",
    "apply_rope_fusion",
    "mtp_num_layers",
    "attention_dropout",
    "hidden_dropout",
    "num_moe_experts",
    "moe_router_topk",
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_grouped_gemm",
    "moe_permute_fusion",
    "moe_token_dispatcher_type",
    "moe_flex_dispatcher_backend",
    "moe_router_dtype",
    "moe_router_load_balancing_type",
    "moe_aux_loss_coeff",
    "moe_router_pre_softmax",
    "moe_router_score_function",
    "moe_router_enable_expert_bias",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "moe_router_force_load_balancing",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "microbatch_group_size_per_vp_stage",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "pipeline_model_parallel_layout",
    "context_parallel_size",
    "cp_comm_type",
    "hierarchical_context_parallel_sizes",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "sequence_parallel",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
    "recompute_modules",
    "tp_comm_overlap",
    "overlap_moe_expert_parallel_comm",
    "transformer_impl",
    "attention_backend",
    "cross_entropy_loss_fusion",
    "cuda_graph_impl",
    "cuda_graph_scope",
    "gradient_accumulation_fusion",
)
"""Megatron-LM's argument and the provider's field have one name."""

_RENAMED = {
    "num_virtual_stages_per_pipeline_rank": "virtual_pipeline_model_parallel_size",
    "decoder_first_pipeline_num_layers": "num_layers_in_first_pipeline_stage",
    "decoder_last_pipeline_num_layers": "num_layers_in_last_pipeline_stage",
    "te_rng_tracker": "use_te_rng_tracker",
}


def program(job: TrainingJob, prefix: str = "") -> Program:
    """The configuration and the program that starts it.

    Raises:
        ConfigError: a model or layout that Megatron-Core does not have.
    """
    name = f"{prefix}config.yaml"
    driver = files("autoparallel.exporting.drivers").joinpath("bridge_pretrain.py")
    text = yaml.safe_dump(settings(job), sort_keys=False, width=100, allow_unicode=True)
    return Program(
        version=VERSION,
        files={
            name: f"# Written for {VERSION}: one block a part of its ConfigContainer.\n{text}",
            "bridge_pretrain.py": driver.read_text("utf-8"),
        },
        command=f'"$here/bridge_pretrain.py" "$here/{name}"',
        environment=environment(job.layout, job.generation),
    )


def settings(job: TrainingJob) -> dict[str, dict[str, Any]]:
    """Part of the ConfigContainer -> its fields, as plain data."""
    found = fields(job)
    return {
        "model": _model(job, found),
        "train": {
            "micro_batch_size": job.layout.micro_batch_size,
            "global_batch_size": job.global_batch_size,
            "train_iters": job.run.train_iters,
            "eval_iters": 0,
            "manual_gc": True,
        },
        "optimizer": _optimizer(job, found),
        "ddp": _ddp(found),
        "scheduler": {
            "lr_decay_style": job.run.lr_decay_style,
            "lr_warmup_iters": job.run.warmup_iters,
            "start_weight_decay": job.run.weight_decay,
            "end_weight_decay": job.run.weight_decay,
        },
        "mixed_precision": _precision(found),
        "dataset": _dataset(job),
        "tokenizer": _tokenizer(job),
        "checkpoint": _checkpoint(job, found),
        "dist": {
            "use_megatron_fsdp": found["use_megatron_fsdp"],
            "distributed_timeout_minutes": job.run.distributed_timeout_minutes,
        },
        "rng": {"seed": 1234, "te_rng_tracker": found["te_rng_tracker"]},
        "logger": {"log_interval": 1, "log_throughput": True},
    }


def _model(job: TrainingJob, found: dict[str, Any]) -> dict[str, Any]:
    """The provider's fields; those left out keep the provider's own default."""
    values = {name: found[name] for name in _SAME if found.get(name) is not None}
    values |= {new: found[old] for old, new in _RENAMED.items() if found.get(old) is not None}
    values |= _network(job, found)
    virtual = job.layout.virtual_pipeline_model_parallel_size > 1
    if virtual:  # a spelled-out layout leaves the number of chunks to be said
        values["virtual_pipeline_model_parallel_size"] = (
            job.layout.virtual_pipeline_model_parallel_size
        )
    overlapped = virtual and found["overlap_p2p_comm"]
    return values | {"overlap_p2p_comm": overlapped, "batch_p2p_comm": not overlapped}


def _network(job: TrainingJob, found: dict[str, Any]) -> dict[str, Any]:
    """What the provider says in other words than the command line."""
    gated = bool(found.get("swiglu") or found.get("quick_geglu"))
    fused = found.get("bias_gelu_fusion", True) and not found.get("squared_relu")
    values: dict[str, Any] = {
        "activation_func": _activation(found),
        "add_qkv_bias": job.model.add_qkv_bias or job.model.add_bias_linear,
        "gated_linear_unit": gated,
        "bias_activation_fusion": bool(fused),
        "share_embeddings_and_output_weights": not found["untie_embeddings_and_output_weights"],
        "vocab_size": job.model.vocab_size,
        "should_pad_vocab": True,
    }
    if found.get("window_size"):
        values["window_size"] = [int(side) for side in found["window_size"].split(",")]
    if pattern := found.get("moe_layer_freq"):
        counts = [int(n) for n in re.findall(r"\*(\d+)", pattern)]
        values["moe_layer_freq"] = [0] * counts[0] + [1] * counts[1]
    return values


def _activation(found: dict[str, Any]) -> str:
    for name, activation in (
        ("swiglu", "silu"),
        ("quick_geglu", "quick_gelu"),
        ("squared_relu", "squared_relu"),
    ):
        if found.get(name):
            return activation
    return "gelu"


def _optimizer(job: TrainingJob, found: dict[str, Any]) -> dict[str, Any]:
    run = job.run
    values = {
        "optimizer": "adam",
        "lr": run.lr,
        "min_lr": run.min_lr,
        "weight_decay": run.weight_decay,
        "adam_beta1": run.adam_beta1,
        "adam_beta2": run.adam_beta2,
        "clip_grad": run.clip_grad,
        "bf16": found["bf16"],
        "fp16": found["fp16"],
        "use_distributed_optimizer": found["use_distributed_optimizer"],
        "overlap_param_gather": found["overlap_param_gather"],
    }
    if not found["optimizer_cpu_offload"]:
        return values
    return values | {
        "optimizer_cpu_offload": True,
        "optimizer_offload_fraction": found["optimizer_offload_fraction"],
        "overlap_cpu_optimizer_d2h_h2d": found["overlap_cpu_optimizer_d2h_h2d"],
        "use_precision_aware_optimizer": True,
        "main_grads_dtype": _DTYPES[found["main_grads_dtype"]],
    }


_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _ddp(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "use_distributed_optimizer": found["use_distributed_optimizer"],
        "num_distributed_optimizer_instances": found["num_distributed_optimizer_instances"] or 1,
        "grad_reduce_in_fp32": found["accumulate_allreduce_grads_in_fp32"],
        "overlap_grad_reduce": found["overlap_grad_reduce"],
        "overlap_param_gather": found["overlap_param_gather"],
        "average_in_collective": False,
        "use_megatron_fsdp": found["use_megatron_fsdp"],
        "data_parallel_sharding_strategy": found["data_parallel_sharding_strategy"] or "no_shard",
    }


def _precision(found: dict[str, Any]) -> dict[str, Any]:
    half = "float16" if found["fp16"] else "bfloat16"
    values: dict[str, Any] = {
        "bf16": found["bf16"],
        "fp16": found["fp16"],
        "params_dtype": half,
        "pipeline_dtype": half,
        "grad_reduce_in_fp32": found["accumulate_allreduce_grads_in_fp32"],
    }
    names = ("fp8", "fp8_recipe", "fp8_amax_history_len", "fp8_amax_compute_algo")
    more = {n: found[n] for n in (*names, "fp4", "fp4_recipe") if found.get(n) is not None}
    return values | more


def _dataset(job: TrainingJob) -> dict[str, Any]:
    """`blend` as Megatron writes it (weights and prefixes); without it the data are mock data."""
    blend = [one_line("site.data_path", path) for path in job.run.data_path]
    return {
        "seq_length": job.seq_length,
        "random_seed": 1234,
        "reset_attention_mask": False,
        "reset_position_ids": False,
        "eod_mask_loss": False,
        "split": "99,1,0",
        "num_workers": 2,
        "dataloader_type": "single",
        **({"blend": blend} if blend else {}),
    }


def _tokenizer(job: TrainingJob) -> dict[str, Any]:
    """The null tokenizer adds one token of its own to the size it is given."""
    run = job.run
    values: dict[str, Any] = {"tokenizer_type": run.tokenizer_type}
    if run.tokenizer_type == "NullTokenizer":
        values["vocab_size"] = job.model.vocab_size - 1
    if run.tokenizer_model:
        values["tokenizer_model"] = one_line("site.tokenizer_model", run.tokenizer_model)
    return values


def _checkpoint(job: TrainingJob, found: dict[str, Any]) -> dict[str, Any]:
    run = job.run
    layout: dict[str, Any] = {"ckpt_format": found.get("ckpt_format", "torch_dist")}
    if not run.save:
        return layout
    folder = one_line("site.checkpoint_dir", run.save)
    return layout | {"save": folder, "load": folder, "save_interval": run.save_interval}
