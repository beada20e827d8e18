"""What megatron-core 0.16 needs where TransformerEngine is absent, on any device."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch


def install(*, fused_adam: bool) -> None:
    """Make sequence parallelism, experts and selective recomputation run on plain torch."""
    _norms_take_sequence_parallelism()
    _names_of_transformer_engine()
    if fused_adam:
        import megatron.core.optimizer as optimizer

        optimizer.Adam = functools.partial(torch.optim.AdamW, fused=True)


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
