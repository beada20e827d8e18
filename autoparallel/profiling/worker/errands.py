"""What one rank does of an `Errand`: look at its node, or time operators and tell every sample."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from autoparallel.errors import INSTALL_PROFILE, ConfigError
from autoparallel.profiling.errand import Errand, sample_line
from autoparallel.profiling.rank_end import RankEnd
from autoparallel.profiling.seen import look

Tell = Callable[[str], None]
"""Takes a line that rank 0 streams."""


def run_errand(errand: Errand, rank: int, tell: Tell) -> RankEnd:
    """Do this rank's part.

    Args:
        errand: What.
        rank: Of this process.
        tell: Where samples go, on rank 0.

    Raises:
        ConfigError: no torch here, or no such device.
        Exception: whatever torch raises in the middle of it.
    """
    if errand.errand == "look":
        return _seen(rank)
    device = device_of(errand.device)
    if errand.errand == "about":
        return _seen(rank, _about(device))
    samples = _kernels if errand.errand == "kernels" else _collectives
    samples(errand, device, tell)
    return RankEnd(rank=rank, outcome="ok", device=device)


def _seen(rank: int, more: dict[str, Any] | None = None) -> RankEnd:
    found = {"host": socket.gethostname(), "node": look().to_json(), **(more or {})}
    return RankEnd(rank=rank, outcome="ok", found=json.dumps(found, allow_nan=False))


def device_of(asked: str) -> str:
    """`cpu` or `cuda`.

    Raises:
        ConfigError: torch is missing, or a GPU was asked for and there is none.
    """
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            f"torch: not installed on {socket.gethostname()}; {INSTALL_PROFILE}"
        ) from error
    if asked != "cpu" and torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise ConfigError("device: 'cuda' but torch sees no GPU here; try --device cpu")
    return "cpu"


def _about(device: str) -> dict[str, Any]:
    """What torch says of the device."""
    import torch

    from autoparallel.profiling.worker.kernels import has_fp8

    cuda = device == "cuda"
    name = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    return {
        "device": device,
        "name": str(name),
        "fp8": bool(has_fp8(device)),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda or ""),
    }


def _kernels(errand: Errand, device: str, tell: Tell) -> None:
    import torch

    from autoparallel.profiling.worker.kernels import call_of
    from autoparallel.profiling.worker.timing import seconds_of

    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    begin = time.monotonic()
    for key in errand.keys:
        if time.monotonic() - begin > errand.budget_s:
            return
        kind, *words = key.split()
        tell(sample_line(key, seconds_of(_made(call_of, kind, words, device), device)))


def _made(make: Callable[..., Any], kind: str, words: Sequence[str], device: str) -> Any:
    return lambda: make(kind, tuple(words), device)


def _collectives(errand: Errand, device: str, tell: Tell) -> None:
    from autoparallel.profiling.worker.collectives import joined_group
    from autoparallel.profiling.worker.interface import name_interface

    name_interface(os.environ)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    with joined_group(device, local, errand.collective_timeout_s) as group:
        for key in errand.keys:
            if not group.goes_on(errand.budget_s):
                return
            _, op, _, log2 = key.split()
            tell(sample_line(key, group.seconds(op, 2 ** int(log2))))
