"""One rank from its place in the world to its end.

`run_in_folder` reads `job.json`, trains or does the errand, and always leaves a `RankEnd`: in
`rank-N.json`, and on a line of standard output for places without a shared folder.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from autoparallel.errors import INSTALL_PROFILE, ConfigError
from autoparallel.profiling.errand import Errand, work_of
from autoparallel.profiling.job import Job, RankReport
from autoparallel.profiling.rank_end import (
    END_MARK,
    STEP_MARK,
    STEPS_FILE,
    RankEnd,
    end_file,
    step_line,
)
from autoparallel.profiling.worker.interface import name_interface

MEGATRON = "0.16"
_OF_THE_EXTRA = ("torch", "megatron")
Seen = Callable[[float, bool], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a rank stands: the environment variables of torchrun."""

    rank: int
    world_size: int
    local_rank: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """The place that the variables describe; alone when there are none."""
        rank = int(environment.get("RANK", "0"))
        return cls(
            rank=rank,
            world_size=int(environment.get("WORLD_SIZE", "1")),
            local_rank=int(environment.get("LOCAL_RANK", str(rank))),
        )


def run_in_folder(folder: Path, environment: Mapping[str, str]) -> RankEnd:
    """Run this process's rank of the job or errand in `folder`."""
    place = Place.of(environment)
    tell = _teller(folder, place)
    try:
        work = work_of((folder / "job.json").read_text(encoding="utf-8"))
        if isinstance(work, Errand):
            from autoparallel.profiling.worker.errands import run_errand

            end = run_errand(work, place.rank, tell)
        else:
            end = run_rank(work, place, _streamed(tell))
    except BaseException as error:
        traceback.print_exc()
        end = failed_end(place.rank, error)
    line = end.text()
    print(END_MARK + line, flush=True)
    target = folder / end_file(place.rank)
    half = target.with_suffix(".tmp")
    half.write_text(line, encoding="utf-8")
    half.replace(target)
    return end


def _teller(folder: Path, place: Place) -> Callable[[str], None]:
    """Appends what rank 0 has to say to the trial's file, line by line."""

    def tell(line: str) -> None:
        if place.rank:
            return
        print(STEP_MARK + line, flush=True)
        with (folder / STEPS_FILE).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    return tell


def _streamed(tell: Callable[[str], None]) -> Seen:
    """Every step as it ends."""
    return lambda step_s, warmup: tell(step_line(step_s, warmup=warmup))


def failed_end(rank: int, error: BaseException) -> RankEnd:
    """What an exception says about the outcome."""
    text = f"{type(error).__name__}: {error}".strip()
    lowered = text.lower()
    if isinstance(error, MemoryError) or "out of memory" in lowered or "allocate memory" in lowered:
        outcome = "out_of_memory"
    elif isinstance(error, ConfigError):
        outcome, text = "invalid", str(error)
    elif isinstance(error, ModuleNotFoundError) and str(error.name).startswith(_OF_THE_EXTRA):
        outcome, text = (
            "crash",
            f"{error.name}: not installed on {platform.node()}; {INSTALL_PROFILE}",
        )
    elif "timed out" in lowered or "timeout" in lowered:
        outcome = "timeout"
    else:
        outcome = "crash"
    return RankEnd(rank=rank, outcome=outcome, message=text[:1500])


def run_rank(job: Job, place: Place, seen: Seen) -> RankEnd:
    """Train this rank's part of `job`.

    Raises:
        ConfigError: this worker cannot run the job.
        Exception: whatever torch or megatron-core raise in the middle of it.
    """
    warnings.filterwarnings("ignore")
    start = time.perf_counter()
    device, impl = _prepared(job, place)
    imported = time.perf_counter()
    from autoparallel.profiling.worker import config, limits, memory

    limits.refuse(job, cuda=device.type == "cuda", impl=impl)
    backend = _joined_world(job, place, device)
    since = memory.baseline(device)
    net = _built(job, device, impl)
    built = time.perf_counter()
    from autoparallel.profiling.worker.training import train

    steps = train(job, net, device, seen)
    filled: dict[str, Any] = {**memory.peaks(since), **steps.medians()}
    report = RankReport(
        rank=place.rank if job.rank is None else job.rank,
        parameters=net.parameters,
        import_s=imported - start,
        build_s=built - imported,
        **filled,
    )
    _leave(job)
    return RankEnd(
        rank=place.rank,
        outcome="ok",
        device=device.type,
        backend=backend,
        impl=impl,
        step_s=steps.step_s,
        warmup_step_s=steps.warmup_step_s,
        losses=tuple(steps.losses) if job.mode != "rank" else (),
        deviations=config.deviations(job, impl),
        versions=versions(device, impl),
        report=report,
    )


def _prepared(job: Job, place: Place) -> tuple[Any, str]:
    """Device and implementation, with torch and megatron-core ready for both."""
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    import torch

    cuda = torch.cuda.is_available()
    if job.device == "cuda" and not cuda:
        raise ConfigError("device: 'cuda' but torch sees no GPU here; use --device cpu to rehearse")
    if cuda:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        from autoparallel.profiling.worker import cpu_shim

        cpu_shim.install()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        device = torch.device("cpu")
    return device, _implementation(job, cuda=cuda)


def _implementation(job: Job, *, cuda: bool) -> str:
    """Import megatron-core with what the implementation needs of it."""
    _check_megatron()
    impl = _named(job.impl, cuda=cuda)
    if impl != "te":
        from autoparallel.profiling.worker import plain_kernels

        plain_kernels.install(fused_optimizer=impl == "sdpa")
    if not cuda:
        from autoparallel.profiling.worker import cpu_shim

        cpu_shim.after_import()
    return impl


def _named(asked: str, *, cuda: bool) -> str:
    """The implementation asked for, or the best there is."""
    if asked != "auto":
        return asked
    if not cuda:
        return "local"
    try:
        import transformer_engine.pytorch  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        return "sdpa"
    return "te"


def _check_megatron() -> None:
    from megatron.core import __version__

    if not __version__.startswith(MEGATRON):
        raise ConfigError(
            f"megatron-core: {__version__} is not {MEGATRON}.x, for which this worker is written; "
            f"pip install 'megatron-core>={MEGATRON},<0.17'"
        )


def _joined_world(job: Job, place: Place, device: Any) -> str:
    """Enter the process group; returns its backend. `rank` mode enters a made-up one.

    Without `device_id`, as Megatron-LM does: with it NCCL would connect every group of the layout
    at once, used or not, each with its own buffers on the GPU.
    """
    if job.mode == "rank":
        from autoparallel.profiling.worker import made_up_world

        made_up_world.join(job.rank or 0, job.num_gpus)
        return "fake"
    import torch.distributed as dist

    backend = "nccl" if device.type == "cuda" else "gloo"
    name_interface(os.environ)
    dist.init_process_group(
        backend,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=job.collective_timeout_s),
    )
    return backend


def _built(job: Job, device: Any, impl: str) -> Any:
    """Groups and network; what megatron-core asserts about them makes the job invalid."""
    from autoparallel.profiling.worker.network import network, start_groups

    try:
        start_groups(job)
        return network(job, device, impl)
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"megatron-core refuses the layout: {error}") from error


def _leave(job: Job) -> None:
    """Part in order, so that no rank sees its peers vanish."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    if job.mode != "rank":
        dist.barrier()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def versions(device: Any, impl: str) -> dict[str, str]:
    """What ran: libraries and hardware."""
    import torch
    from megatron.core import __version__

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "megatron-core": __version__,
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
    if impl == "te":
        found["transformer-engine"] = str(sys.modules["transformer_engine"].__version__)
    return found
