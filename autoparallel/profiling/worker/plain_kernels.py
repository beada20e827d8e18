"""What megatron-core 0.16 needs where TransformerEngine is absent, on any device."""

from __future__ import annotations

import copy
from typing import Any

import torch


def install(*, fused_optimizer: bool) -> None:
    """Make sequence parallelism, experts and selective recomputation run on plain torch.

    Args:
        fused_optimizer: Whether Adam and clipping are one kernel over all tensors, as those of
            TransformerEngine are.
    """
    _norms_take_sequence_parallelism()
    _names_of_transformer_engine()
    if fused_optimizer:
        _fused_optimizer()


class FusedAdamW(torch.optim.AdamW):
    """Torch's AdamW as one kernel."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, fused=True)


def _fused_optimizer() -> None:
    """megatron-core's own fall-back goes tensor by tensor, with a copy and a wait for each.

    It looks AdamW up in torch by its name (optimizer/__init__.py) and asks for it by class
    (optimizer/distrib_optimizer.py).
    """
    import megatron.core.optimizer.clip_grads as clip_grads

    whole: Any = torch.optim
    whole.AdamW = FusedAdamW
    clip_grads.l2_norm_impl = _norm
    clip_grads.multi_tensor_scale_impl = _scale


def _norm(_chunk: int, _overflow: Any, lists: list[list[Any]], _each: bool) -> tuple[Any, None]:
    """Euclidean norm of all tensors, in place of `local_multi_tensor_l2_norm`."""
    return torch.stack(torch._foreach_norm(lists[0])).norm().reshape(1), None


def _scale(_chunk: int, _overflow: Any, lists: list[list[Any]], factor: float) -> None:
    """Second list = first x factor, in place of `local_multi_tensor_scale`."""
    source, target = lists
    if any(a is not b for a, b in zip(source, target, strict=True)):
        torch._foreach_copy_(target, source)
    torch._foreach_mul_(target, factor)


def _norms_take_sequence_parallelism() -> None:
    """Torch's norms are right under sequence parallelism once their weights are tagged.

    megatron-core asserts that it is off (transformer/torch_norm.py). The tag makes
    `finalize_model_grads` add the weights' gradients over the tensor-parallel group.
    """
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    own = WrappedTorchNorm.__new__

    def new(cls: Any, config: Any, *args: Any, **options: Any) -> Any:
        plain = copy.copy(config)
        plain.sequence_parallel = False
        norm = own(cls, plain, *args, **options)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm

    WrappedTorchNorm.__new__ = staticmethod(new)


def _names_of_transformer_engine() -> None:
    """Two names that megatron-core uses without having imported them."""
    import megatron.core.tensor_parallel.random as random
    import megatron.core.transformer.moe.moe_utils as moe_utils

    if not moe_utils.HAVE_TE:
        moe_utils.te_general_gemm = None
    if not random.HAVE_TE:
        own = random.CheckpointWithoutOutput.__init__

        def init(self: Any, fp8: Any = False) -> None:
            own(self, fp8)
            self.fp8 = False  # `fp8 is not None` takes the default False for True

        random.CheckpointWithoutOutput.__init__ = init
