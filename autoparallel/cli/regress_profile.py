"""The short profile of a pinned layout: fresh runs of a real job, one value a run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoparallel.cli.launchers import launcher
from autoparallel.counts import counted
from autoparallel.errors import ConfigError, LaunchError, bad_value

if TYPE_CHECKING:
    from autoparallel.profiling.job import Job, Result
    from autoparallel.profiling.launcher import Launcher
    from autoparallel.regression import Samples
    from autoparallel.request import TrainingRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How the pinned layout is run: where, how often, how many timed steps a run."""

    where: str = "subprocess"
    runs: int = 5
    steps: int = 10


def profiled(request: TrainingRequest, layout: str, how: Profile) -> Samples:
    """Run the job of a lock in its layout, every run in fresh processes.

    Raises:
        ConfigError: more ranks than one machine has, or a launcher that cannot be used.
        LaunchError: a run that failed.
    """
    job = _job(request, layout, how.steps)
    if how.where == "subprocess":
        _check_room(request, job)
    place = launcher(
        how.where,
        site=request.site,
        gpus_per_node=request.cluster.gpus_per_node,
        cuda=job.device == "cuda",
        ranks=job.num_gpus,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="autoparallel-regress-") as folder:
            results = [_run(place, job, Path(folder) / f"run-{i}") for i in range(how.runs)]
    finally:
        place.close()
    return _samples(results, how)


def _job(request: TrainingRequest, layout: str, steps: int) -> Job:
    from autoparallel.layout import Layout
    from autoparallel.profiling.job import Job

    on_cpu = request.cluster.gpu.generation == "cpu"
    return Job(
        model=request.model,
        layout=Layout.parse(layout),
        num_gpus=request.num_gpus,
        global_batch_size=request.global_batch_size,
        seq_length=request.seq_length,
        device="cpu" if on_cpu else "cuda",
        steps=steps,
        warmup_steps=2 if on_cpu else 3,
        environment=dict(request.site.environment),
    )


def _check_room(request: TrainingRequest, job: Job) -> None:
    """Plain processes run on one machine."""
    room = (os.cpu_count() or 1) if job.device == "cpu" else request.cluster.gpus_per_node
    if job.num_gpus > room:
        rule = f"runs on this machine, which has room for {room} of {job.num_gpus} ranks"
        hint = "use --launcher ray, slurm or kubernetes, or pin a smaller case"
        raise bad_value("--launcher", "subprocess", rule, hint)


def _run(place: Launcher, job: Job, folder: Path) -> Result:
    from autoparallel.profiling.launcher import run_trial

    result = run_trial(place, job, folder)
    if not result.ok:
        raise LaunchError(f"profile: {job.layout}: {result.outcome}: {result.message}")
    return result


def _samples(results: Sequence[Result], how: Profile) -> Samples:
    from autoparallel.regression import Samples

    values = {"iteration_s": tuple(r.iteration_s for r in results if r.iteration_s)}
    peaks = tuple(r.peak_memory_bytes for r in results if r.peak_memory_bytes)
    if len(peaks) == len(results) and results[0].memory_kind != "rss":
        values["memory_bytes"] = peaks
    first = results[0]
    source = (
        f"profile: {how.where}, {first.device}, {first.impl}, {counted(how.steps, 'step')} a run"
    )
    return Samples(source=source, values=values)


def training_only(kind: str) -> None:
    """Refuse to profile what is not a training job.

    Raises:
        ConfigError: the lock is of another kind.
    """
    if kind != "training":
        raise ConfigError(f"--profile: runs training jobs, and the lock is of kind {kind!r}")
