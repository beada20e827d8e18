"""Core attention without TransformerEngine, with context parallelism.

Context parallelism gathers keys and values over the group, which TransformerEngine calls
`cp_comm_type="all_gather"`: exact, with one all-gather forward and one reduce-scatter backward.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as functional
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.dot_product_attention import DotProductAttention


def gathered(key: Any, value: Any, queries: int) -> tuple[Any, Any, Any]:
    """Keys and values of the whole sequence, and which of them each query must not see.

    A rank holds chunks r and 2n - 1 - r of 2n, so that causal work is even.
    """
    group = parallel_state.get_context_parallel_group()
    n, rank, half = group.size(), group.rank(), queries // 2

    def positions(of: int) -> Any:
        chunk = torch.arange(half, device=key.device)
        return torch.cat([of * half + chunk, (2 * n - 1 - of) * half + chunk])

    everywhere = torch.cat([positions(r) for r in range(n)])
    hidden = everywhere[None, :] > positions(rank)[:, None]
    key = gather_from_sequence_parallel_region(key, group=group)
    value = gather_from_sequence_parallel_region(value, group=group)
    return key, value, hidden


class LocalAttention(DotProductAttention):  # type: ignore[misc]
    """megatron-core's own attention, which stores its scores, with context parallelism."""

    def __init__(self, config: Any, *args: Any, **options: Any) -> None:
        self.context_parallel_size = config.context_parallel_size
        alone = copy.copy(config)
        alone.context_parallel_size = 1  # the base class asserts it
        super().__init__(alone, *args, **options)

    def forward(
        self, query: Any, key: Any, value: Any, attention_mask: Any = None, **options: Any
    ) -> Any:
        """Attention [s, b, heads x width] of the local queries."""
        if self.context_parallel_size > 1:
            key, value, hidden = gathered(key, value, query.size(0))
            attention_mask = hidden[None, None]
        return super().forward(query, key, value, attention_mask, **options)


class SdpaAttention(LocalAttention):
    """Torch's fused attention, which never stores its scores."""

    def forward(
        self, query: Any, key: Any, value: Any, attention_mask: Any = None, **options: Any
    ) -> Any:
        """Attention [s, b, heads x width] of the local queries."""
        visible = None
        if self.context_parallel_size > 1:
            key, value, hidden = gathered(key, value, query.size(0))
            visible = ~hidden
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=visible,
            is_causal=visible is None,
            scale=self.softmax_scale,
            enable_gqa=q.size(1) != k.size(1),
        )
        return out.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)
