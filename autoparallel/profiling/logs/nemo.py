"""Lines of NeMo: version 2's trainer line and version 1's progress bar.

    Training epoch 0, iteration 120/149 | lr: 3e-05 | consumed_samples: 121 | global_batch_size: 1
    | global_step: 120 | reduced_train_loss: 1.233 | train_step_timing in s: 0.03146
    Epoch 0:   1%|  | 795/77225 [9:07:58<878:01:48, 41.36s/it, loss=3.1, reduced_train_loss=3.090,
    global_step=794.0, train_step_timing in s=41.20]

Source: NVIDIA-BioNeMo/bionemo-recipes pull request 740 (a log); NVIDIA/NeMo-Framework-Launcher
issue 55 (a log); NVIDIA/NeMo nemo/lightning/pytorch/callbacks/progress_printer.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from autoparallel.profiling.logs.record import Memory, Step
from autoparallel.units import GIB

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
_TRAINER = re.compile(r"Training epoch \d+, iteration (\d{1,12})/(\d{1,12})\s*\|")
_BAR = re.compile(r"Epoch \d+:.*?\b(\d{1,12})/(\d{1,12}) \[")
_TIME = re.compile(rf"train_step_timing in s[:=]\s*({_NUMBER})(?=[\s,|\]]|$)")
_LOSS = re.compile(rf"reduced_train_loss[:=]\s*({_NUMBER})(?=[\s,|\]]|$)")
_BATCH = re.compile(r"global_batch_size[:=]\s*(\d{1,12})(?:\.0)?(?=[\s,|\]]|$)")
_STEP = re.compile(r"global_step[:=]\s*(\d{1,12})(?:\.0)?(?=[\s,|\]]|$)")
_PEAK = re.compile(r"peak_memory_usage[:=]\s*([\d.]{1,30})(?=[\s,|\]]|$)")
FINISHED = ("`Trainer.fit` stopped: `max_steps=",)


def steps(line: str) -> Iterator[Step]:
    """The iteration a line reports; NeMo counts from 0, here it is from 1."""
    at, time = _TRAINER.search(line) or _BAR.search(line), _TIME.search(line)
    if not at or not time:
        return
    step, loss, batch = _STEP.search(line), _LOSS.search(line), _BATCH.search(line)
    value = float(loss.group(1)) if loss else None
    counted = int(at.group(1)) + (0 if _BAR.search(line) else 1)
    yield Step(
        iteration=int(step.group(1)) + 1 if step else counted,
        of=int(at.group(2)) + (0 if _BAR.search(line) else 1),
        seconds=float(time.group(1)),
        loss=value,
        global_batch_size=int(batch.group(1)) if batch else 0,
        nan=int(value is not None and value != value),
    )


def memory(line: str) -> Iterator[Memory]:
    """NeMo's own lines name no rank's peak; a memory callback prints one in GiB."""
    if (peak := _PEAK.search(line)) and peak.group(1).count(".") <= 1:
        yield Memory(rank=None, max_allocated_bytes=float(peak.group(1)) * GIB)
