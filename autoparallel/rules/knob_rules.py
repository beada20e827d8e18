"""Rules on sharding, recomputation, precision, overlap, offload and graphs."""

from __future__ import annotations

import numpy as np

from autoparallel.layout import PRECISIONS
from autoparallel.rules.case import (
    BLOCK,
    FP8,
    FP16,
    FULL,
    GRAPH_LAYER,
    GRAPH_MLP,
    GRAPH_MOE,
    MXFP8,
    NO_GRAPH,
    SELECTIVE,
    UNIFORM,
    Bool,
    RuleCase,
    splits,
)
from autoparallel.rules.rule import (
    ARGUMENTS,
    CONFIG,
    CP,
    DEFINITION,
    DP,
    EP,
    ETP,
    GRANULARITY,
    MBS,
    MEGATRON,
    MODULES,
    MOE,
    PLAN_FIELDS,
    PP,
    SP,
    STATE,
    TE,
    TP,
    VPP,
    framework_rules,
    rule,
)
from autoparallel.rules.sharded_rules import (
    SHARDED_HOST,
    SHARDED_OVERLAP,
    SHARDED_RECOMPUTE,
    SHARDED_SEQUENCE,
    SHARDED_SHARDING,
)

_PEAK = {name: name if name in ("bf16", "fp16", "mxfp8", "nvfp4") else "fp8" for name in PRECISIONS}


def _lacks_precision(case: RuleCase) -> Bool:
    missing = np.array([_PEAK[name] not in case.limits.precisions for name in PRECISIONS])
    return missing[np.asarray(case.k.precision, dtype=np.intp)]


def _fp8_misfit(case: RuleCase) -> Bool:
    m, k = case.m, case.k
    width = np.where(k.precision >= MXFP8, 32.0, 16.0)
    dense = np.where(m.L_moe < m.L, m.f / k.tp, width)
    fits = splits(case.rank_tokens * k.mbs, width / 2)
    for columns in (m.h, case.rank_heads * m.d_v, dense):
        fits = fits & splits(columns, width)
    return (k.precision >= FP8) & ~fits


def _on(case: RuleCase, switch: str) -> Bool:
    return case.k.overlaps(switch) > 0


def _full(case: RuleCase, method: int) -> Bool:
    return (case.k.granularity == FULL) & (case.k.method == method)


def _recomputes(case: RuleCase, *modules: str) -> Bool:
    on: Bool = np.False_
    for name in modules:
        on = on | (case.k.module(name) > 0)
    return on


SHARDING_RULES = (
    rule(
        "sp_tensor",
        (SP, TP),
        lambda c: (c.k.sp > 0) & (c.k.tp == 1),
        "needs tp > 1, tp is {tp}",
        "leave sp out",
        "megatron.core.model_parallel_config.ModelParallelConfig.__post_init__",
    ),
    rule(
        "sp_length",
        (SP, TP, CP, "seq_length"),
        lambda c: (c.k.sp > 0) & ~splits(c.rank_tokens, c.k.tp),
        "tp {tp} does not divide the {rank_tokens} tokens of a context rank",
        "tp",
        "megatron.core.tensor_parallel.mappings._reduce_scatter_along_first_dim",
    ),
    rule(
        "moe_sp",
        (SP, TP, "num_moe_experts"),
        lambda c: (c.m.E > 0) & (c.k.tp > 1) & (c.k.sp == 0),
        "{E} experts with tp {tp} need sequence parallelism",
        "add sp",
        f"{MOE}.moe_layer.MoELayer.forward",
        MEGATRON,
    ),
    *SHARDED_SEQUENCE,
    *framework_rules(SP),
    rule(
        "zero_pipeline",
        ("zero_stage", PP),
        lambda c: (c.k.zero >= 2) & (c.k.pp > 1),
        "{zero} shards gradients, which {framework} does not combine with pp {pp}",
        "use zero1 or pp1",
        f"{ARGUMENTS} (use_torch_fsdp2); microsoft/DeepSpeed deepspeed/runtime/pipe/engine.py",
        ("megatron", "deepspeed"),
    ),
    rule(
        "shard_zero",
        ("shard_group_size", "zero_stage"),
        lambda c: (c.k.shard > 0) & (c.k.zero == 0),
        "{shard} replicas have nothing to share out under zero {zero}",
        "use zero1 or leave shard out",
        "megatron.core.distributed.distributed_data_parallel (Partial DistOpt)",
    ),
    rule(
        "shard_replicas",
        ("shard_group_size", DP, CP),
        lambda c: ~splits(c.instances, 1.0),
        "{shard} does not divide dp x cp = {replicas}",
        "shard",
        f"{STATE} (num_distributed_optimizer_instances)",
    ),
    rule(
        "shard_experts",
        ("shard_group_size", DP, TP, CP, EP, ETP),
        lambda c: (c.m.E > 0) & ~splits(c.expert_replicas, c.instances),
        "{instances} optimizer instances do not divide the experts' {expert_replicas} replicas",
        "shard",
        f"{STATE} (num_distributed_optimizer_instances)",
        MEGATRON,
    ),
    *SHARDED_SHARDING,
    *framework_rules("zero_stage", "shard_group_size"),
)

RECOMPUTE_RULES = (
    rule(
        "recompute_layers",
        ("recompute_num_layers", GRANULARITY),
        lambda c: (c.k.granularity == FULL) & (c.k.recompute_layers < 1),
        "{recompute_layers} with full recomputation",
        "use full/uniform/1",
        CONFIG,
    ),
    rule(
        "recompute_uniform",
        ("recompute_num_layers", GRANULARITY, "recompute_method", *PLAN_FIELDS),
        lambda c: _full(c, UNIFORM) & ~splits(c.common_layers, np.maximum(c.k.recompute_layers, 1)),
        "blocks of {recompute_layers} do not divide the layers of every stage ({fullest} at most)",
        "recompute_layers",
        "megatron.core.transformer.transformer_block.TransformerBlock._checkpointed_forward",
    ),
    rule(
        "recompute_block",
        ("recompute_num_layers", GRANULARITY, "recompute_method", *PLAN_FIELDS),
        lambda c: _full(c, BLOCK) & (c.k.recompute_layers > c.fullest),
        "{recompute_layers} layers, and the fullest stage has {fullest}",
        "recompute_layers",
        f"{CONFIG}: 'between 1 and num_layers_per_pipeline_rank' (stated, not enforced)",
    ),
    rule(
        "recompute_empty",
        (MODULES, GRANULARITY),
        lambda c: (c.k.granularity == SELECTIVE) & (c.k.modules == 0),
        "selective recomputation of no module",
        "use recompute=none or name modules",
        DEFINITION,
    ),
    rule(
        "recompute_experts",
        (MODULES, GRANULARITY, "num_moe_experts", "moe_shared_expert_intermediate_size"),
        lambda c: (
            ((c.m.E == 0) & _recomputes(c, "moe_act", "moe"))
            | ((c.m.f_s == 0) & _recomputes(c, "shared_experts"))
        ),
        "an expert module, and the model has {E} experts (shared width {f_s})",
        "leave moe, moe_act and shared_experts out",
        f"{CONFIG} (moe_grouped_gemm); the module does not exist otherwise",
    ),
    rule(
        "recompute_latent",
        (MODULES, GRANULARITY, "kv_lora_rank"),
        lambda c: (c.m.r_kv == 0) & _recomputes(c, "mla_up_proj"),
        "mla_up_proj needs multi-latent attention, and kv_lora_rank is {r_kv}",
        "leave it out",
        CONFIG,
    ),
    *SHARDED_RECOMPUTE,
    *framework_rules(GRANULARITY, "recompute_method", "recompute_num_layers", MODULES),
)

PRECISION_RULES = (
    rule(
        "gpu_precision",
        ("precision",),
        _lacks_precision,
        "{precision} is not one of this GPU's peaks ({precisions})",
        "use one of these or another GPU",
        "the GPU's record",
    ),
    rule(
        "fp8_shape",
        ("precision", TP, CP, MBS, "seq_length", "hidden_size", "ffn_hidden_size"),
        _fp8_misfit,
        "{precision} matrices need widths in 16s and rows in 8s (32 and 16 with block scales): "
        "hidden {h}, ffn {f}, heads {a} x {d_v} over tp {tp}, {rank_tokens} x mbs {mbs} tokens",
        "use a smaller tp or prec=bf16",
        f"{TE}/utils.py assert_dim_for_fp8_exec; OCP MX blocks are 32 wide",
    ),
    rule(
        "fp8_recompute",
        ("precision", MODULES, GRANULARITY),
        lambda c: (c.k.precision == FP8) & _recomputes(c, "moe_act", "layernorm"),
        "{precision} (delayed scaling) cannot recompute moe_act or layernorm",
        "use prec=fp8-tensorwise or other modules",
        CONFIG,
        MEGATRON,
    ),
    rule(
        "grad_dtype",
        ("grad_reduce_dtype", "precision"),
        lambda c: (c.k.grad_bytes == 2) & (c.k.precision == FP16),
        "bf16 gradients under {precision}",
        "use grad=fp32 or prec=bf16",
        f"{ARGUMENTS} (grad_reduce_in_bf16 is read for bf16 only)",
    ),
    *framework_rules("precision", "grad_reduce_dtype"),
)

OVERLAP_RULES = (
    rule(
        "overlap_param",
        ("overlap", "zero_stage"),
        lambda c: _on(c, "param") & ~(_on(c, "grad") & (c.k.zero > 0)),
        "param needs grad and a distributed optimizer, zero_stage is {zero}",
        "use zero1 with overlap=grad+param, or leave param out",
        f"{ARGUMENTS} (overlap_param_gather)",
        MEGATRON,
    ),
    rule(
        "overlap_tp",
        ("overlap", SP),
        lambda c: _on(c, "tp") & (c.k.sp == 0),
        "tp needs sequence parallelism",
        "add sp or leave tp out",
        f"{ARGUMENTS} (tp_comm_overlap)",
        MEGATRON,
    ),
    rule(
        "overlap_p2p",
        ("overlap", PP, VPP),
        lambda c: (c.k.pp == 2) & (c.k.vpp > 1) & ~_on(c, "p2p"),
        "without p2p, pp {pp} with vpp {vpp} pairs sends and receives wrongly and trains on wrong "
        "activations, with no error",
        "add p2p, or use vpp1 or pp > 2",
        f"{ARGUMENTS} (pipeline size > 2); megatron-core itself does not check",
        MEGATRON,
    ),
    rule(
        "overlap_moe",
        ("overlap", EP),
        lambda c: _on(c, "moe") & (c.k.ep == 1),
        "moe needs ep > 1, ep is {ep}",
        "leave moe out",
        CONFIG,
        MEGATRON,
    ),
    rule(
        "overlap_moe_pipeline",
        ("overlap", PP, VPP, "mtp_num_layers"),
        lambda c: (
            _on(c, "moe")
            & (((c.k.pp > 1) & (c.k.vpp == 1)) | (c.m.mtp > 1) | ((c.m.mtp == 1) & (c.k.pp == 1)))
        ),
        "moe with pp {pp}, vpp {vpp} and {mtp} prediction layers",
        "it takes vpp > 1 when pp > 1, at most one prediction layer, and pp > 1 with one",
        CONFIG,
        MEGATRON,
    ),
    rule(
        "overlap_moe_recompute",
        ("overlap", GRANULARITY),
        lambda c: _on(c, "moe") & (c.k.granularity == FULL),
        "moe excludes {granularity} recomputation",
        "use selective modules or leave moe out",
        CONFIG,
        MEGATRON,
    ),
    *SHARDED_OVERLAP,
    *framework_rules("overlap"),
)

HOST_RULES = (
    rule(
        "offload_optimizer",
        ("optimizer_offload_fraction", "zero_stage"),
        lambda c: (c.k.offload > 0) & (c.k.zero == 0),
        "{offload} needs the precision-aware optimizer, which is distributed; zero_stage is {zero}",
        "use zero1",
        f"{ARGUMENTS}; megatron.core.optimizer.optimizer_config.OptimizerConfig.__post_init__",
        MEGATRON,
    ),
    rule(
        "graph_recompute",
        ("cuda_graph_scope", GRANULARITY),
        lambda c: (c.k.graph != NO_GRAPH) & (c.k.granularity == FULL),
        "{graph} graphs exclude {granularity} recomputation",
        "use selective modules or graph=none",
        CONFIG,
        MEGATRON,
    ),
    rule(
        "graph_layers",
        ("cuda_graph_scope", "num_moe_experts"),
        lambda c: (
            ((c.k.graph == GRAPH_MOE) & (c.m.E <= 1))
            | ((c.k.graph == GRAPH_MLP) & (c.m.L_moe >= c.m.L))
            | ((c.k.graph == GRAPH_LAYER) & (c.m.E > 0))
        ),
        "{graph} with {E} experts in {L_moe} of {L} layers: moe needs experts, mlp a dense layer, "
        "full no dropless experts",
        "use graph=attn",
        f"{CONFIG}; dropless experts change shape from step to step",
        MEGATRON,
    ),
    rule(
        "graph_moe_recompute",
        ("cuda_graph_scope", MODULES, GRANULARITY),
        lambda c: (c.k.graph == GRAPH_MOE) & _recomputes(c, "moe"),
        "recomputing moe covers the graphed router",
        "use graph=attn or other modules",
        CONFIG,
        MEGATRON,
    ),
    rule(
        "graph_overlap",
        ("cuda_graph_scope", "overlap"),
        lambda c: (c.k.graph == GRAPH_MLP) & _on(c, "moe"),
        "an {graph} graph excludes the moe overlap",
        "use graph=attn or leave moe out",
        CONFIG,
        MEGATRON,
    ),
    *SHARDED_HOST,
    *framework_rules("optimizer_offload_fraction", "cuda_graph_scope"),
)
