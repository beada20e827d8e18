"""One rank of a world that is not there: torch's fake process group, whose peers send numbers.

The fake group leaves what a rank receives as memory held it, zeros or NaN as may be. A GPU
multiplies those with less power and higher clocks than real activations, so that the time of a rank
would depend on what its memory held before. What arrives is therefore drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

SPREAD = 0.02
"""Standard deviation of what arrives: norms scale activations, gradients stay finite in fp16."""
_RECEIVED = ("tensor_recv_prev", "tensor_recv_next")


def join(rank: int, world_size: int) -> None:
    """Enter the group as `rank`, with megatron-core's transfers bringing numbers."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    _peers_send()


def _peers_send() -> None:
    """Pipeline transfers, reduce-scatters of sequence parallelism, all-to-alls of experts."""
    import megatron.core.pipeline_parallel.p2p_communication as pipeline
    import megatron.core.tensor_parallel.layers as layers
    import megatron.core.tensor_parallel.mappings as mappings

    pipeline._batched_p2p_ops = _with_received(pipeline._batched_p2p_ops)
    pipeline._p2p_ops = _with_received(pipeline._p2p_ops)
    for module in (layers, mappings):
        module.dist_reduce_scatter_func = _with_output(module.dist_reduce_scatter_func)
    whole: Any = dist
    whole.all_to_all_single = _with_output(dist.all_to_all_single)


def _with_received(transfer: Callable[..., Any]) -> Callable[..., Any]:
    """A pipeline transfer that fills what it receives."""

    def transferred(**given: Any) -> Any:
        for name in _RECEIVED:
            _fill(given[name])
        return transfer(**given)

    return transferred


def _with_output(collective: Callable[..., Any]) -> Callable[..., Any]:
    """A collective that fills its output, its first argument."""

    def collected(output: Any, *given: Any, **options: Any) -> Any:
        _fill(output)
        return collective(output, *given, **options)

    return collected


def _fill(tensor: Any) -> None:
    if torch.is_tensor(tensor) and tensor.is_floating_point():
        tensor.detach().normal_(0.0, SPREAD)
