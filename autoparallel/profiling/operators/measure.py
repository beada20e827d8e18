"""All samples of one kind of machine, kind by kind, as long as the time lasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from autoparallel import catalog
from autoparallel.errors import bad_value, nearest
from autoparallel.hardware import Gpu
from autoparallel.profiling.errand import Errand
from autoparallel.profiling.job import DEVICES
from autoparallel.profiling.launcher import Launcher
from autoparallel.profiling.operators.machine import Machine, machine
from autoparallel.profiling.operators.samples import Samples, key_of
from autoparallel.profiling.operators.shapes import FULL, TINY, Shapes
from autoparallel.profiling.operators.tables import Header, write_tables
from autoparallel.profiling.sending import send
from autoparallel.profiling.topology import cluster_of
from autoparallel.units import US
from autoparallel.versions import version_of

KINDS = ("stream", "gemm", "attention", "experts", "collectives")
SAMPLES_FILE, ERRANDS_FOLDER = "samples.jsonl", "errands"
LONGEST_S = 6 * 3600.0
"""What an errand without a budget may take."""
ALLOWANCE_S = 300.0
"""For the last sample and for parting, beyond the budget."""
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a call came to.

    Attributes:
        folder: The profiles folder, for `--profiles-dir`.
        host: Where the first rank ran.
        left: Samples still to be taken; tables are written when there are none.
    """

    folder: Path
    gpu: str
    host: str
    taken: int
    left: int
    files: tuple[str, ...]


def measure(
    out: Path,
    launcher: Launcher,
    *,
    device: str = "auto",
    gpu: str | None = None,
    tiny: bool = False,
    kinds: tuple[str, ...] = KINDS,
    ranks: int | None = None,
    budget_s: float = float("inf"),
    environment: Mapping[str, str] | None = None,
    progress: Progress = lambda text: None,
    config_dir: Path | None = None,
) -> Measured:
    """Measure what is not measured yet, and write the tables once everything is.

    Args:
        out: Profiles folder; `out/operators` gets tables and samples.
        launcher: Where the ranks run that measure. Nothing is measured in this process, which
            needs no torch.
        device: `cuda`, `cpu`, or whichever there is.
        gpu: Entry of the catalog that the tables are for; by the device's name when None.
        tiny: The small grid, for trying it out; always on a CPU.
        kinds: What to measure now.
        ranks: Largest group of collectives; all GPUs of a node, or two processes on a CPU.
        budget_s: After this no new sample is begun.
        environment: Variables of every rank.
        progress: Told of every sample.
        config_dir: A folder in front of the shipped catalog.

    Raises:
        ConfigError: no such kind, no such device, or samples of another machine in `out`.
        LaunchError: the ranks failed.
    """
    _check_words(kinds, device)
    deadline = time.monotonic() + budget_s
    asked = Errand(errand="about", device=device, environment=environment or {})
    folder = out / ERRANDS_FOLDER
    there = machine(launcher, asked, folder)
    record = catalog.gpu(gpu or there.catalog_name, config_dir)
    shapes = TINY if tiny or there.device == "cpu" else FULL
    most = _most_ranks(ranks, there)
    samples = Samples(out / "operators" / SAMPLES_FILE, _made_with(there, record, shapes))
    grid = Grid(shapes=shapes, fp8=there.fp8, most=most)
    before = len(samples)
    plain = replace(asked, device=there.device)
    bench = _Bench(launcher=launcher, errand=plain, folder=folder, deadline=deadline)
    for kind in kinds:
        bench.take(kind, grid, samples, progress)
    bench.clear()
    missing = sum(key not in samples for kind in KINDS for key in grid.keys(kind))
    return Measured(
        folder=out,
        gpu=record.name,
        host=there.host,
        taken=len(samples) - before,
        left=missing,
        files=() if missing else _tables(samples, there, record, shapes, config_dir),
    )


def _check_words(kinds: tuple[str, ...], device: str) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise bad_value("--only", kind, "is not a kind of operator", nearest(kind, KINDS))
    if device not in DEVICES:
        raise bad_value("--device", device, "is not a device", "known: " + ", ".join(DEVICES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Everything that is measured: shapes, precisions, and groups up to `most` ranks."""

    shapes: Shapes
    fp8: bool
    most: int

    def keys(self, kind: str) -> list[str]:
        """Of every sample of a kind."""
        words = keys(kind, self.shapes, fp8=self.fp8, most=self.most)
        return [key_of(kind, *each) for each in words]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """Sends for samples that are missing, until the deadline."""

    launcher: Launcher
    errand: Errand
    folder: Path
    deadline: float

    def take(self, kind: str, grid: Grid, samples: Samples, progress: Progress) -> None:
        """All samples of a kind, one errand for every size of group."""

        def told(key: str, seconds: float) -> None:
            if key not in samples:
                samples.add(key, seconds)
                progress(f"{key}: {seconds / US:.4g} us")

        missing = [key for key in grid.keys(kind) if key not in samples]
        for count, wanted in _by_group(kind, missing).items():
            left = self.deadline - time.monotonic()
            if left <= 0:
                return
            budget = min(left, LONGEST_S)
            errand = replace(
                self.errand,
                errand="collectives" if kind == "collectives" else "kernels",
                keys=tuple(wanted),
                processes=count,
                budget_s=budget,
                timeout_s=budget + ALLOWANCE_S,
            )
            send(self.launcher, errand, self.folder, told)

    def clear(self) -> None:
        """Remove the folder of errands, unless one has left something to read."""
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _by_group(kind: str, missing: list[str]) -> dict[int, list[str]]:
    """Ranks -> keys; kernels are one rank's."""
    found: dict[int, list[str]] = {}
    for key in missing:
        count = int(key.split()[2]) if kind == "collectives" else 1
        found.setdefault(count, []).append(key)
    return found


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


def _most_ranks(asked: int | None, there: Machine) -> int:
    """The largest group: the tables are those of a node's fast links."""
    if there.device == "cpu":
        return asked or 2
    gpus = max(len(there.node.gpus), 1)
    if asked and asked > gpus:
        rule = f"is more than the {gpus} GPUs of {there.host}; the tables are of one node's links"
        raise bad_value("--ranks", asked, rule, f"use at most {gpus}")
    return asked or gpus


def _tables(
    samples: Samples, there: Machine, record: Gpu, shapes: Shapes, config_dir: Path | None
) -> tuple[str, ...]:
    """Write the tables of samples that are complete, beside these; the names of the files."""
    header = Header(
        gpu=record,
        link_bytes_per_s=_link_bytes_per_s(there, record.name, config_dir),
        device=there.name,
        made_with=_made_with(there, record, shapes),
        shapes=shapes,
    )
    return write_tables(samples.path.parent, samples, header)


def _link_bytes_per_s(there: Machine, gpu: str, config_dir: Path | None) -> float:
    """Nominal rate of the node's fast links."""
    if there.device == "cpu":
        return catalog.cluster("local-cpu", config_dir).intra_link.bandwidth_bytes_per_s
    return cluster_of(there.node, gpu, config_dir).intra_bytes_per_s


def _made_with(there: Machine, record: Gpu, shapes: Shapes) -> dict[str, str]:
    grid = "tiny" if shapes is TINY else "full"
    found = {"device": there.name, "gpu": record.name, "grid": grid}
    found |= {"torch": there.torch, "autoparallel": version_of()}
    return found | ({"cuda": there.cuda} if there.cuda else {})
