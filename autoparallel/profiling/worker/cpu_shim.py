"""What megatron-core 0.16 asks of `torch.cuda`, answered by the CPU.

Installed in CPU workers alone, before megatron-core is imported, and never undone: the process ends
with its trial. Each piece names the place in megatron-core that fails without it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import torch

_CPU = torch.device("cpu")
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "rand", "randn")


class _Event:
    """A CUDA event; on a CPU what is recorded has already happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._at = time.perf_counter()

    def record(self, *_: Any) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: _Event) -> float:
        return (later._at - self._at) * 1e3


class _Stream:
    """A CUDA stream; on a CPU everything runs in order."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()


def install() -> None:
    """Map the parts of `torch.cuda` that training touches onto the CPU."""
    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU  # distributed/param_and_grad_buffer.py, mappings.py
    cuda.synchronize = lambda *_, **__: None  # pipeline_parallel/p2p_communication.py
    whole: Any = torch
    whole.compile = _eager  # jit.py and fusions/: decorators that load torch's compiler on import
    _install_streams(cuda)
    _install_random(cuda)
    for name in _FACTORIES:  # optimizer.py, schedules.py, clip_grads.py: device="cuda"
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    tensor: Any = torch.Tensor
    module: Any = torch.nn.Module
    tensor.cuda = lambda self, *_, **__: self  # models/common/embeddings/rope_utils.py
    module.cuda = lambda self, *_, **__: self
    tensor.type = _cuda_type(tensor.type)  # optimizer/distrib_optimizer.py compares type names


def after_import() -> None:
    """Names inside megatron-core that cannot be reached through `torch.cuda`."""
    import megatron.core.tensor_parallel.random as random
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as dispatcher

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    logging.getLogger(random.__name__).setLevel(logging.ERROR)  # "CPU RNG state changed"
    # all_to_all_single wants whole numbers; on CUDA this function makes them, by is_cuda
    moe_utils.maybe_move_tensor_to_cpu = _splits
    dispatcher.maybe_move_tensor_to_cpu = _splits


def _eager(function: Any = None, **_: Any) -> Any:
    """`torch.compile` that leaves a function as it is: compiling costs a CPU 18 s a trial."""
    return (lambda later: later) if function is None else function


def _install_streams(cuda: Any) -> None:
    """Streams of transformer/moe/token_dispatcher.py."""
    only = _Stream()
    cuda.Stream, cuda.Event = _Stream, _Event
    cuda.current_stream = cuda.default_stream = lambda *_, **__: only
    cuda.stream = lambda *_, **__: contextlib.nullcontext()
    cuda.set_stream = lambda *_, **__: None


def _install_random(cuda: Any) -> None:
    """Generators of tensor_parallel/random.py. `torch.manual_seed` calls back into `cuda`."""
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))


def _on_cpu(make: Callable[..., Any]) -> Callable[..., Any]:
    """A tensor factory that reads a CUDA device as the CPU."""

    @functools.wraps(make)
    def factory(*args: Any, **options: Any) -> Any:
        if str(options.get("device") or "").startswith("cuda"):
            options["device"] = _CPU
        if options.get("pin_memory"):
            options["pin_memory"] = False
        return make(*args, **options)

    return factory


def _cuda_type(own: Callable[..., Any]) -> Callable[..., Any]:
    """`Tensor.type()` that names the CUDA class; with arguments it converts as ever."""

    def type_(self: Any, *args: Any, **options: Any) -> Any:
        if args or options:
            return own(self, *args, **options)
        return own(self).replace("torch.", "torch.cuda.", 1)

    return type_


def _splits(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.detach().numpy() if torch.is_tensor(tensor) and as_numpy else tensor
