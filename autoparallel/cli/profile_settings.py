"""What the options of `profile` say, as the settings of a campaign."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoparallel.errors import bad_value

if TYPE_CHECKING:
    from autoparallel.campaign import Settings
    from autoparallel.profiling.job import Job
    from autoparallel.request import TrainingRequest

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(flag: str, text: str) -> float:
    """A time such as `90s`, `30m` or `2h`."""
    match = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)([smh]?)", text.strip())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if value <= 0:
        raise bad_value(flag, text, "is not a time above 0", "write 90s, 30m or 2h")
    return value


def campaign_settings(
    request: TrainingRequest,
    *,
    top: int,
    budget_s: float,
    mode: str,
    room: int,
    device: str,
    impl: str,
    steps: int,
    timeout_s: float,
    storage: str,
    warm_start: tuple[Path, ...],
) -> Settings:
    """How to run, of what the options say.

    Raises:
        ConfigError: no such mode, device or implementation.
    """
    from autoparallel.campaign import Settings
    from autoparallel.campaign.modes import Mode
    from autoparallel.layout import Layout
    from autoparallel.profiling.job import DEVICES, IMPLS, MODES, Job

    for flag, value, known in (
        ("--mode", mode, MODES),
        ("--device", device, DEVICES),
        ("--impl", impl, IMPLS),
    ):
        if value not in known:
            raise bad_value(flag, value, f"is not one of {', '.join(known)}")
    on_cpu = request.cluster.gpu.generation == "cpu"
    base = Job(
        model=request.model,
        layout=Layout(),
        num_gpus=1,
        global_batch_size=request.global_batch_size,
        seq_length=request.seq_length,
        device=device if device != "auto" else ("cpu" if on_cpu else "cuda"),
        impl=impl,
        steps=steps,
        warmup_steps=1 if device == "cpu" or on_cpu else 3,
        timeout_s=timeout_s,
        environment=dict(request.site.environment),
    )
    return Settings(
        top=top,
        budget_s=budget_s,
        mode=Mode(name=mode, room=room),
        base=base,
        storage=storage,
        warm_start=warm_start,
    )


def with_users_command(settings: Settings, request: TrainingRequest, command: str) -> Settings:
    """Make every job the user's own command, fed with the exported arguments."""
    if not command:
        return settings
    from autoparallel.exporting import Run, arguments, environment
    from autoparallel.profiling.command import (
        command_words,
        made_up_place,
        refuse_torchrun,
        with_command,
    )

    words = command_words(command)
    if settings.mode.name == "rank":
        refuse_torchrun(words)
    generation = request.cluster.gpu.generation

    def exported(job: Job) -> tuple[str, ...]:
        length = Run(train_iters=job.warmup_steps + job.steps)
        sizes = (job.num_gpus, job.global_batch_size, job.seq_length)
        made_up = ("--fake-process-group",) if job.mode == "rank" else ()
        return (*arguments(job.model, job.layout, *sizes, length), *made_up)

    def prepare(job: Job) -> Job:
        own = environment(job.layout, generation) | made_up_place(job)
        return with_command(job, words, exported, own)

    return replace(settings, base=replace(settings.base, command=words), prepare=prepare)
