"""Field -> flag: the whole vocabulary of the Megatron-LM exporter, as a table.

Fields have the names of Megatron's argument namespace (`dest`), or of the `TransformerConfig` field
it feeds. Flags are not all the kebab case of their field, which is why each is written out.

Source: NVIDIA/Megatron-LM@core_v0.16.1 megatron/training/arguments.py; the flags of that version
are in `profiles/megatron_flags_core_v0.16.1.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERSION = "core_v0.16.1"

FLAGS: dict[str, str] = {
    # Model.
    "num_layers": "--num-layers",
    "hidden_size": "--hidden-size",
    "ffn_hidden_size": "--ffn-hidden-size",
    "num_attention_heads": "--num-attention-heads",
    "group_query_attention": "--group-query-attention",
    "num_query_groups": "--num-query-groups",
    "kv_channels": "--kv-channels",
    "seq_length": "--seq-length",
    "max_position_embeddings": "--max-position-embeddings",
    "position_embedding_type": "--position-embedding-type",
    "rotary_base": "--rotary-base",
    "rope_type": "--rope-type",
    "normalization": "--normalization",
    "layernorm_epsilon": "--norm-epsilon",
    "qk_layernorm": "--qk-layernorm",
    "add_qkv_bias": "--add-qkv-bias",
    "swiglu": "--swiglu",
    "squared_relu": "--squared-relu",
    "quick_geglu": "--quick-geglu",
    "glu_linear_offset": "--glu-linear-offset",
    "activation_func_clamp_value": "--activation-func-clamp-value",
    "softmax_type": "--softmax-type",
    "window_size": "--window-size",
    "window_attn_skip_freq": "--window-attn-skip-freq",
    "untie_embeddings_and_output_weights": "--untie-embeddings-and-output-weights",
    "multi_latent_attention": "--multi-latent-attention",
    "q_lora_rank": "--q-lora-rank",
    "kv_lora_rank": "--kv-lora-rank",
    "qk_head_dim": "--qk-head-dim",
    "qk_pos_emb_head_dim": "--qk-pos-emb-head-dim",
    "v_head_dim": "--v-head-dim",
    "mtp_num_layers": "--mtp-num-layers",
    "attention_dropout": "--attention-dropout",
    "hidden_dropout": "--hidden-dropout",
    # Experts.
    "num_moe_experts": "--num-experts",
    "moe_router_topk": "--moe-router-topk",
    "moe_ffn_hidden_size": "--moe-ffn-hidden-size",
    "moe_shared_expert_intermediate_size": "--moe-shared-expert-intermediate-size",
    "moe_layer_freq": "--moe-layer-freq",
    "moe_grouped_gemm": "--moe-grouped-gemm",
    "moe_permute_fusion": "--moe-permute-fusion",
    "moe_token_dispatcher_type": "--moe-token-dispatcher-type",
    "moe_flex_dispatcher_backend": "--moe-flex-dispatcher-backend",
    "moe_router_dtype": "--moe-router-dtype",
    "moe_router_load_balancing_type": "--moe-router-load-balancing-type",
    "moe_aux_loss_coeff": "--moe-aux-loss-coeff",
    "moe_router_pre_softmax": "--moe-router-pre-softmax",
    "moe_router_score_function": "--moe-router-score-function",
    "moe_router_enable_expert_bias": "--moe-router-enable-expert-bias",
    "moe_router_num_groups": "--moe-router-num-groups",
    "moe_router_group_topk": "--moe-router-group-topk",
    "moe_router_force_load_balancing": "--moe-router-force-load-balancing",
    # Parallel sizes and stages.
    "tensor_model_parallel_size": "--tensor-model-parallel-size",
    "pipeline_model_parallel_size": "--pipeline-model-parallel-size",
    "num_virtual_stages_per_pipeline_rank": "--num-virtual-stages-per-pipeline-rank",
    "microbatch_group_size_per_vp_stage": "--microbatch-group-size-per-virtual-pipeline-stage",
    "account_for_embedding_in_pipeline_split": "--account-for-embedding-in-pipeline-split",
    "account_for_loss_in_pipeline_split": "--account-for-loss-in-pipeline-split",
    "decoder_first_pipeline_num_layers": "--decoder-first-pipeline-num-layers",
    "decoder_last_pipeline_num_layers": "--decoder-last-pipeline-num-layers",
    "pipeline_model_parallel_layout": "--pipeline-model-parallel-layout",
    "context_parallel_size": "--context-parallel-size",
    "cp_comm_type": "--cp-comm-type",
    "hierarchical_context_parallel_sizes": "--hierarchical-context-parallel-sizes",
    "expert_model_parallel_size": "--expert-model-parallel-size",
    "expert_tensor_parallel_size": "--expert-tensor-parallel-size",
    "sequence_parallel": "--sequence-parallel",
    # Batch.
    "micro_batch_size": "--micro-batch-size",
    "global_batch_size": "--global-batch-size",
    # Recomputation.
    "recompute_granularity": "--recompute-granularity",
    "recompute_method": "--recompute-method",
    "recompute_num_layers": "--recompute-num-layers",
    "recompute_modules": "--recompute-modules",
    # Optimizer and sharding.
    "use_distributed_optimizer": "--use-distributed-optimizer",
    "num_distributed_optimizer_instances": "--num-distributed-optimizer-instances",
    "use_megatron_fsdp": "--use-megatron-fsdp",
    "data_parallel_sharding_strategy": "--data-parallel-sharding-strategy",
    "ckpt_format": "--ckpt-format",
    "use_precision_aware_optimizer": "--use-precision-aware-optimizer",
    "main_grads_dtype": "--main-grads-dtype",
    "optimizer_cpu_offload": "--optimizer-cpu-offload",
    "optimizer_offload_fraction": "--optimizer-offload-fraction",
    "overlap_cpu_optimizer_d2h_h2d": "--overlap-cpu-optimizer-d2h-h2d",
    # Overlap.
    "overlap_grad_reduce": "--overlap-grad-reduce",
    "overlap_param_gather": "--overlap-param-gather",
    "tp_comm_overlap": "--tp-comm-overlap",
    "overlap_moe_expert_parallel_comm": "--overlap-moe-expert-parallel-comm",
    # Precision.
    "bf16": "--bf16",
    "fp16": "--fp16",
    "fp8": "--fp8-format",
    "fp8_recipe": "--fp8-recipe",
    "fp8_param_gather": "--fp8-param-gather",
    "fp8_amax_history_len": "--fp8-amax-history-len",
    "fp8_amax_compute_algo": "--fp8-amax-compute-algo",
    "fp4": "--fp4-format",
    "fp4_recipe": "--fp4-recipe",
    "accumulate_allreduce_grads_in_fp32": "--accumulate-allreduce-grads-in-fp32",
    "grad_reduce_in_bf16": "--grad-reduce-in-bf16",
    # Kernels and graphs.
    "transformer_impl": "--transformer-impl",
    "attention_backend": "--attention-backend",
    "cross_entropy_loss_fusion": "--cross-entropy-loss-fusion",
    "cuda_graph_impl": "--cuda-graph-impl",
    "cuda_graph_scope": "--cuda-graph-scope",
    "te_rng_tracker": "--te-rng-tracker",
    # Run.
    "train_iters": "--train-iters",
    "lr": "--lr",
    "min_lr": "--min-lr",
    "lr_decay_style": "--lr-decay-style",
    "lr_warmup_iters": "--lr-warmup-iters",
    "weight_decay": "--weight-decay",
    "clip_grad": "--clip-grad",
    "adam_beta1": "--adam-beta1",
    "adam_beta2": "--adam-beta2",
    "mock_data": "--mock-data",
    "data_path": "--data-path",
    "split": "--split",
    "tokenizer_type": "--tokenizer-type",
    "tokenizer_model": "--tokenizer-model",
    "vocab_size": "--vocab-size",
    "eval_iters": "--eval-iters",
    "log_interval": "--log-interval",
    "log_throughput": "--log-throughput",
    "manual_gc": "--manual-gc",
    "distributed_timeout_minutes": "--distributed-timeout-minutes",
    "save": "--save",
    "load": "--load",
    "save_interval": "--save-interval",
}
"""Field -> flag: a true switch is the bare flag, a number or text is the flag and its value."""

OFF_FLAGS: dict[str, str] = {
    "add_bias_linear": "--disable-bias-linear",
    "apply_rope_fusion": "--no-rope-fusion",
    "bias_gelu_fusion": "--no-bias-gelu-fusion",
    "create_attention_mask_in_dataloader": "--no-create-attention-mask-in-dataloader",
    "gradient_accumulation_fusion": "--no-gradient-accumulation-fusion",
    "overlap_p2p_comm": "--no-overlap-p2p-communication",
}
"""Field that is on unless this flag is given -> the flag that switches it off."""


def tokens(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The table applied: fields that are null or off are left out."""
    found: list[str] = []
    for name, value in values.items():
        if value is None or value == []:
            continue
        if name in OFF_FLAGS:
            found += [] if value else [OFF_FLAGS[name]]
        elif isinstance(value, bool):
            found += [FLAGS[name]] if value else []
        else:
            found += [FLAGS[name], *map(str, value if isinstance(value, list) else [value])]
    return tuple(found)
