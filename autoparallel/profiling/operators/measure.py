"""All samples of one machine, kind by kind, as long as the time lasts."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoparallel import catalog
from autoparallel.errors import ConfigError, bad_value, nearest
from autoparallel.profiling.operators.groups import Work, group_work
from autoparallel.profiling.operators.samples import Samples, key_of
from autoparallel.profiling.operators.shapes import FULL, TINY, Shapes
from autoparallel.profiling.operators.tables import Header, write_tables
from autoparallel.profiling.topology import cluster_of, look
from autoparallel.profiling.topology.cluster_file import gpu_id
from autoparallel.units import US
from autoparallel.versions import version_of

KINDS = ("stream", "gemm", "attention", "experts", "collectives")
SAMPLES_FILE = "samples.jsonl"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a call came to.

    Attributes:
        folder: The profiles folder, for `--profiles-dir`.
        left: Samples still to be taken; tables are written when there are none.
    """

    folder: Path
    gpu: str
    taken: int
    left: int
    files: tuple[str, ...]


def measure(
    out: Path,
    *,
    device: str = "auto",
    gpu: str | None = None,
    tiny: bool = False,
    kinds: tuple[str, ...] = KINDS,
    ranks: int | None = None,
    budget_s: float = float("inf"),
    progress: Progress = lambda text: None,
    config_dir: Path | None = None,
) -> Measured:
    """Measure what is not measured yet, and write the tables once everything is.

    Args:
        out: Profiles folder; `out/operators` gets tables and samples.
        device: `cuda`, `cpu`, or whichever there is.
        gpu: Entry of the catalog that the tables are for; by the device's name when None.
        tiny: The small grid, for trying it out; always on a CPU.
        kinds: What to measure now.
        ranks: Largest group of collectives; all GPUs of this machine, or two processes on a CPU.
        budget_s: After this no new sample is begun.
        progress: Told of every sample.
        config_dir: A folder in front of the shipped catalog.

    Raises:
        ConfigError: no such kind, no such device, or samples of another machine in `out`.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise bad_value("--only", kind, "is not a kind of operator", nearest(kind, KINDS))
    device, name = _device(device)
    record = catalog.gpu(gpu or _catalog_name(device, name), config_dir)
    shapes = TINY if tiny or device == "cpu" else FULL
    most = ranks or (2 if device == "cpu" else _gpu_count())
    made_with = _made_with(name, record.name, shapes is TINY)
    samples = Samples(out / "operators" / SAMPLES_FILE, made_with)
    deadline = time.monotonic() + budget_s
    before = len(samples)
    for kind in kinds:
        _take(samples, _work(kind, shapes, device, most), deadline, progress)
    missing = _missing(samples, shapes, device, most)
    header = Header(
        gpu=record,
        link_bytes_per_s=_link_bytes_per_s(device, record.name, config_dir),
        device=name,
        made_with=made_with,
        shapes=shapes,
    )
    files = () if missing else write_tables(out / "operators", samples, header)
    return Measured(
        folder=out, gpu=record.name, taken=len(samples) - before, left=missing, files=files
    )


def _take(samples: Samples, work: Work, deadline: float, progress: Progress) -> None:
    for key, seconds in work:
        if key in samples:
            continue
        if time.monotonic() > deadline:
            return
        samples.add(key, seconds())
        progress(f"{key}: {samples[key] / US:.4g} us")


def keys(kind: str, shapes: Shapes, *, fp8: bool, most: int) -> Iterator[tuple[str, ...]]:
    """Words of every sample of a kind."""
    if kind == "stream":
        yield ("copy", str(shapes.stream_bytes))
        yield ("norm", str(shapes.m[-1]), str(shapes.k[-1]))
    if kind == "gemm":
        for precision in ("bf16", "fp8") if fp8 else ("bf16",):
            yield from (
                (precision, "forward", str(m), str(n), str(k))
                for m in shapes.m
                for n in shapes.n
                for k in shapes.k
            )
            yield (precision, "forward", "16", "16", "16")
        for pass_ in ("dgrad", "wgrad"):
            for m, n, k in zip(shapes.m, shapes.n, shapes.k, strict=False):
                yield ("bf16", pass_, str(m), str(n), str(k))
    if kind == "attention":
        for pass_ in ("forward", "backward"):
            for width in shapes.head_dims:
                for seq in shapes.seq_lengths:
                    yield from ((pass_, str(seq), str(h), str(width)) for h in shapes.heads)
    if kind == "experts":
        yield from (tuple(map(str, one)) for one in shapes.experts)
    if kind == "collectives":
        first, last = shapes.collective_log2_bytes
        for count in _group_sizes(most):
            for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
                yield from ((op, str(count), str(x)) for x in range(first, last + 1))


def _group_sizes(most: int) -> list[int]:
    return [2**i for i in range(1, 20) if 2**i <= most]


def _work(kind: str, shapes: Shapes, device: str, most: int) -> Work:
    """Keys of a kind with what measures each."""
    if kind == "collectives":
        wanted = list(keys(kind, shapes, fp8=False, most=most))
        yield from group_work(wanted, device, shapes.collective_log2_bytes)
        return
    import torch

    from autoparallel.profiling.operators import kernels
    from autoparallel.profiling.operators.timing import seconds_of

    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    for words in keys(kind, shapes, fp8=kernels.has_fp8(device), most=most):
        call = partial(kernels.call_of, kind, words, device)
        yield key_of(kind, *words), partial(seconds_of, call, device)


def _missing(samples: Samples, shapes: Shapes, device: str, most: int) -> int:
    from autoparallel.profiling.operators import kernels

    fp8 = kernels.has_fp8(device)
    wanted = [key_of(k, *w) for k in KINDS for w in keys(k, shapes, fp8=fp8, most=most)]
    return sum(key not in samples for key in wanted)


def _device(asked: str) -> tuple[str, str]:
    """The device and its own name."""
    if asked not in ("auto", "cpu", "cuda"):
        raise bad_value("--device", asked, "is not a device", "auto, cpu or cuda")
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            "torch: not installed; pip install 'autoparallel-planner[profile]'"
        ) from error
    if asked != "cpu" and torch.cuda.is_available():
        return "cuda", str(torch.cuda.get_device_name())
    if asked == "cuda":
        raise bad_value("--device", asked, "has no GPU here that torch sees", "try --device cpu")
    return "cpu", platform.processor() or platform.machine()


def _catalog_name(device: str, name: str) -> str:
    if device == "cpu":
        return "cpu"
    if not (found := gpu_id(name)):
        raise bad_value("gpu", name, "is no GPU of the catalog", "say which one it is with --gpu")
    return found


def _link_bytes_per_s(device: str, gpu: str, config_dir: Path | None) -> float:
    """Nominal rate of this machine's fast links."""
    if device == "cpu":
        return catalog.cluster("local-cpu", config_dir).intra_link.bandwidth_bytes_per_s
    return cluster_of(look(), gpu, config_dir).intra_bytes_per_s


def _gpu_count() -> int:
    import torch

    return int(torch.cuda.device_count())


def _made_with(device: str, gpu: str, tiny: bool) -> dict[str, str]:
    import torch

    found = {"device": device, "gpu": gpu, "grid": "tiny" if tiny else "full"}
    found |= {"torch": str(torch.__version__), "autoparallel": version_of()}
    if torch.version.cuda:
        found["cuda"] = str(torch.version.cuda)
    return found
