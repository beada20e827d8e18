"""Lines of torchtitan, one a logged step and rank.

    [rank0]:[titan] 2026-05-18 16:04:46,338 - root - INFO - step: 14  loss:  3.24405  grad_norm:
    0.8319  memory:  9.46GiB(64.99%)  tps: 7,282  tflops: 0.52  mfu: 0.17%

`tps` is tokens a second and GPU, `memory` the peak the allocator reserved on that rank since the
last line. A line has no time of its own: it follows from `tps` and the tokens of a step, else from
the clock.

Source: pytorch/torchtitan torchtitan/components/metrics.py; pull requests 950, 2389 and 3393
(logs).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from autoparallel.profiling.logs.record import Memory, Step
from autoparallel.units import GIB

_LINE = re.compile(
    r"\bstep:\s*(\d{1,12})\s+loss:\s*([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)\s.*?"
    r"memory:\s*(\d+(?:\.\d+)?)GiB\([\d.]+%\)\s+(?:tps|wps):\s*(\d[\d,]*)(?=\s)"
)
_CLOCK = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})")
_RANK = re.compile(r"\[(?:rank|default)(\d{1,9})\]")
FINISHED = ("Training completed",)


def steps(line: str) -> Iterator[Step]:
    """The step a line reports."""
    if not (found := _LINE.search(line)):
        return
    loss = float(found.group(2))
    yield Step(
        iteration=int(found.group(1)),
        clock_s=_clock_s(line),
        tokens_per_s_per_gpu=float(found.group(4).replace(",", "")),
        loss=loss,
        nan=int(loss != loss),
    )


def memory(line: str) -> Iterator[Memory]:
    """The reserved peak in a step's line."""
    if found := _LINE.search(line):
        rank = _RANK.search(line)
        yield Memory(
            rank=int(rank.group(1)) if rank else None,
            max_reserved_bytes=float(found.group(3)) * GIB,
        )


def _clock_s(line: str) -> float | None:
    """Seconds of the line's own time stamp; only differences of it are used."""
    if not (found := _CLOCK.search(line)):
        return None
    try:
        moment = datetime.strptime(found.group(1), "%Y-%m-%d %H:%M:%S")
    except ValueError:
        return None
    return moment.timestamp() + int(found.group(2)) / 1000
