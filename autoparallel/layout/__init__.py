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
| recompute_granularity, recompute_method, recompute_num_layers | | `recompute=full/block/4` |
| recompute_modules | | `recompute=core_attn+mlp` |
| schedule | | `sched=1f1b` |
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

from autoparallel.layout.columns import (
    FEATURES,
    KNOB_FIELDS,
    Knobs,
    knobs,
    modules_mask,
    overlap_mask,
)
from autoparallel.layout.product import Choices, Part, Product
from autoparallel.layout.record import (
    GRAMMAR,
    Layout,
    recompute_word,
)
from autoparallel.layout.words import (
    CP_COMM_TYPES,
    GRAD_DTYPES,
    GRANULARITIES,
    GRAPH_SCOPES,
    MEGATRON_OVERLAPS,
    METHODS,
    OVERLAPS,
    PRECISIONS,
    RECOMPUTE_MODULES,
    SCHEDULES,
)

__all__ = [
    "CP_COMM_TYPES",
    "FEATURES",
    "GRAD_DTYPES",
    "GRAMMAR",
    "GRANULARITIES",
    "GRAPH_SCOPES",
    "KNOB_FIELDS",
    "MEGATRON_OVERLAPS",
    "METHODS",
    "OVERLAPS",
    "PRECISIONS",
    "RECOMPUTE_MODULES",
    "SCHEDULES",
    "Choices",
    "Knobs",
    "Layout",
    "Part",
    "Product",
    "knobs",
    "modules_mask",
    "overlap_mask",
    "recompute_word",
]
