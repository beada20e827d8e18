"""The choices of every knob that is a word; `columns` numbers them in this order."""

from __future__ import annotations

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
