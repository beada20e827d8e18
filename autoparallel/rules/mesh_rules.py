"""Rules that the mesh, the micro-batch and the pipeline plan decide."""

from __future__ import annotations

import numpy as np

from autoparallel.layout.record import stages_word
from autoparallel.rules.case import (
    A2A,
    ALL_GATHER,
    BREADTH_FIRST,
    HIERARCHICAL,
    INTERLEAVED,
    ONE_F_ONE_B,
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
    GBS,
    GROUP,
    LAYOUT,
    LINEAR,
    MBS,
    MEGATRON,
    MOE,
    PIPELINE,
    PLAN_FIELDS,
    PP,
    STATE,
    TE_CP,
    TP,
    VPP,
    framework_rules,
    rule,
)
from autoparallel.rules.sharded_rules import SHARDED_MESH

_PRIMES = (2.0, 3.0, 5.0, 7.0, 11.0, 13.0)


def _no_hierarchy(case: RuleCase) -> Bool:
    """No inner group of 1 < n < cp ranks whose all-to-all can split the key-value heads."""
    works: Bool = np.False_
    for n in _PRIMES:
        works = works | (splits(case.k.cp, n) & (case.k.cp > n) & splits(case.kv_heads, n))
    return (case.k.cp_comm == HIERARCHICAL) & ~works


def _uneven(case: RuleCase) -> str:
    """`, or stages=7,8*14,7`: layers shared out, the ends lighter; nothing for too many chunks."""
    layers, chunks = int(np.max(case.m.L)), int(np.max(case.k.pp * case.k.vpp))
    least, more = divmod(layers, chunks)
    if not least:
        return ""
    first = (chunks - more) // 2
    longer = range(first, first + more)
    return f", or write {stages_word(least + (i in longer) for i in range(chunks))}"


MESH_RULES = (
    rule(
        "world",
        (DP, "num_gpus", TP, PP, CP),
        lambda c: ~splits(c.k.num_gpus, c.k.tp * c.k.pp * c.k.cp),
        "{num_gpus} GPUs is not tp {tp} x pp {pp} x cp {cp} x dp",
        "pp",
        STATE,
    ),
    rule(
        "heads",
        (TP, "num_attention_heads"),
        lambda c: ~splits(c.m.a, c.k.tp),
        "{tp} does not divide {a} attention heads",
        "tp",
        CONFIG,
    ),
    rule(
        "query_groups",
        (TP, "num_query_groups"),
        lambda c: ~splits(c.m.g, c.k.tp) & ~splits(c.k.tp, c.m.g),
        "{tp} neither divides {g} query groups nor is a multiple of them",
        "tp",
        CONFIG,
    ),
    rule(
        "qkv_width",
        (TP, "num_query_groups", "kv_channels"),
        lambda c: (c.m.r_kv == 0) & ~splits(c.m.g * (c.m.d_qk + c.m.d_v), c.k.tp),
        "{tp} does not divide {g} x ({d_qk} + {d_v}) key and value columns",
        "tp",
        LINEAR,
    ),
    rule(
        "ffn",
        (TP, "ffn_hidden_size", "moe_shared_expert_intermediate_size"),
        lambda c: ((c.m.L_moe < c.m.L) & ~splits(c.m.f, c.k.tp)) | ~splits(c.m.f_s, c.k.tp),
        "{tp} does not divide the MLP width {f} or the shared expert's {f_s}",
        "tp",
        LINEAR,
    ),
    rule(
        "context_length",
        (CP, "seq_length"),
        lambda c: (c.k.cp > 1) & ~splits(c.m.s, 2 * c.k.cp),
        "2 x cp {cp} does not divide the sequence of {s} tokens",
        "cp",
        ARGUMENTS,
    ),
    rule(
        "cp_heads",
        ("cp_comm_type", CP, TP, "num_query_groups"),
        lambda c: (
            (c.k.cp_comm == A2A) & ~(splits(c.rank_heads, c.k.cp) & splits(c.kv_heads, c.k.cp))
        ),
        "a2a cannot split {rank_heads} heads and {kv_heads} key-value heads of a rank over cp {cp}",
        "cp",
        f"{TE_CP} AttnFuncWithCPAndQKVOA2A",
    ),
    rule(
        "cp_hierarchy",
        ("cp_comm_type", CP, TP, "num_query_groups"),
        _no_hierarchy,
        "a2a+p2p needs cp {cp} = inner x outer, both > 1, and inner to divide {kv_heads} kv heads",
        "use cpcomm=p2p",
        f"{ARGUMENTS} (hierarchical_context_parallel_sizes); {TE_CP}",
    ),
    rule(
        "cp_window",
        ("cp_comm_type", CP, "window_size"),
        lambda c: (
            (c.m.window > 0) & (c.k.cp > 1) & (c.k.cp_comm != A2A) & (c.k.cp_comm != ALL_GATHER)
        ),
        "{cp_comm} cannot split a window of {window} tokens over cp {cp}",
        "use cpcomm=all_gather or a2a",
        f"{TE_CP} attn_forward_func_with_cp",
        MEGATRON,
    ),
    rule(
        "dense_experts",
        (EP, ETP, "num_moe_experts"),
        lambda c: (c.m.E == 0) & ((c.k.ep > 1) | (c.k.etp > 1)),
        "ep {ep}, etp {etp}, and the model has no experts",
        "use ep1 etp1",
        CONFIG,
    ),
    rule(
        "experts",
        (EP, "num_moe_experts"),
        lambda c: ~splits(c.m.E, c.k.ep),
        "{ep} does not divide {E} experts",
        "ep",
        f"{MOE}.moe_layer.BaseMoELayer",
    ),
    rule(
        "expert_world",
        (EP, "num_gpus", ETP, PP),
        # With one expert rank it says no more than `world`.
        lambda c: (
            ~splits(c.k.num_gpus, c.k.etp * c.k.ep * c.k.pp) & (np.asarray(c.k.etp * c.k.ep) > 1)
        ),
        "{num_gpus} GPUs is not etp {etp} x ep {ep} x pp {pp} x expert dp",
        "ep",
        STATE,
    ),
    rule(
        "expert_ffn",
        (ETP, "moe_ffn_hidden_size"),
        lambda c: ~splits(c.m.f_e, c.k.etp),
        "{etp} does not divide the expert width {f_e}",
        "etp",
        f"{MOE}.experts (divide)",
    ),
    rule(
        "expert_bias",
        (ETP, "add_bias_linear"),
        lambda c: (c.m.E > 0) & (c.m.bias > 0) & (c.k.etp > 1),
        "{etp}, and the experts have biases",
        "use etp1",
        CONFIG,
        MEGATRON,
    ),
    *SHARDED_MESH,
    *framework_rules(TP, PP, CP, "cp_comm_type", EP, ETP),
)

PLAN_RULES = (
    rule(
        "batch",
        (MBS, GBS, DP),
        lambda c: ~splits(c.k.global_batch_size, c.k.mbs * c.k.dp),
        "{mbs} x dp {dp} does not divide the global batch of {global_batch_size}",
        "mbs",
        "megatron.core.num_microbatches_calculator.ConstantNumMicroBatchesCalculator",
    ),
    *framework_rules(MBS),
    rule(
        "vpp_pipeline",
        (VPP, PP),
        lambda c: (c.k.vpp > 1) & (c.k.pp == 1),
        "{vpp} needs pp > 1, pp is {pp}",
        "use vpp1",
        STATE,
    ),
    rule(
        "schedule_pipeline",
        ("schedule", PP),
        lambda c: (c.k.pp == 1) & (c.k.schedule != ONE_F_ONE_B),
        "{schedule} needs pp > 1, pp is {pp}",
        "use sched=1f1b",
        f"{PIPELINE}.get_forward_backward_func",
    ),
    rule(
        "schedule_chunks",
        ("schedule", VPP),
        lambda c: (
            (c.k.schedule != BREADTH_FIRST) & ((c.k.vpp > 1) != (c.k.schedule == INTERLEAVED))
        ),
        "{schedule} with vpp {vpp}: interleaved takes vpp > 1; 1f1b, zb1p and zb2p take vpp 1",
        "use sched=interleaved exactly when vpp > 1",
        f"{PIPELINE}.get_forward_backward_func; arXiv:2401.10241",
    ),
    rule(
        "layers",
        PLAN_FIELDS,
        lambda c: (c.k.stages == 0) & ~splits(c.m.L, c.k.pp * c.k.vpp),
        "pp {pp} x vpp {vpp} does not divide {L} layers, and no stages are given",
        "pp",
        f"{ARGUMENTS}; megatron.core.transformer.transformer_block.get_num_layers_to_build",
        also=_uneven,
    ),
    rule(
        "stage_count",
        ("stage_layers", PP, VPP),
        lambda c: (c.k.stages > 0) & (c.stage_count != c.k.pp * c.k.vpp),
        "{stage_count} stages are not pp {pp} x vpp {vpp}",
        "give pp x vpp numbers",
        LAYOUT,
    ),
    rule(
        "stage_sum",
        ("stage_layers", "num_layers"),
        lambda c: (c.k.stages > 0) & (c.stage_sum != c.m.L),
        "the stages hold {stage_sum} layers, the model has {L}",
        "make them add up (embedding and loss are not counted)",
        f"{LAYOUT}.validate_layer_layout",
    ),
    rule(
        "stage_empty",
        ("stage_layers",),
        lambda c: (c.k.stages > 0) & (c.least_inside < 1),
        "a stage between the first and the last holds {least_inside} layers",
        "give it one, or use a smaller pp",
        DEFINITION,
    ),
    rule(
        "group_schedule",
        (GROUP, "schedule"),
        lambda c: (c.k.group > 0) & (c.k.schedule != INTERLEAVED),
        "{group} with {schedule}, which has no groups",
        "leave group out",
        DEFINITION,
    ),
    rule(
        "group",
        (GROUP, PP, "schedule", MBS, GBS, DP),
        lambda c: (
            (c.k.schedule == INTERLEAVED)
            & (
                (c.group_size < c.k.pp)
                | (c.group_size > c.k.micro_batches)
                | ((c.group_rest > 0) & (c.group_rest < c.k.pp))
            )
        ),
        "{micro_batches} micro-batches in groups of {group_size}: a group has pp {pp} to "
        "{micro_batches}, and the {group_rest} left over are 0 or at least pp",
        "group",
        f"{PIPELINE}.forward_backward_pipelining_with_interleaving",
        MEGATRON,
    ),
    *framework_rules(VPP, GROUP, "schedule"),
)
