"""One pass over a log: steps, memory, how it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from autoparallel.profiling.logs import megatron, nemo, torchtitan
from autoparallel.profiling.logs.failures import failure_in, more_telling
from autoparallel.profiling.logs.lines import TAIL_LINES, lines_of
from autoparallel.profiling.logs.record import Failure, Memory, Step, TrainingLog

MAX_STEPS = 100_000
_Steps: TypeAlias = Callable[[str], Iterator[Step]]
_Memory: TypeAlias = Callable[[str], Iterator[Memory]]
_STYLES: tuple[tuple[str, str, _Steps, _Memory], ...] = (
    ("megatron", "iteration ", megatron.steps, megatron.memory),
    ("nemo", "train_step_timing", nemo.steps, nemo.memory),
    ("torchtitan", "GiB(", torchtitan.steps, torchtitan.memory),
)
"""Name of a style, a text that each of its step lines holds, and its readers."""
_MEMORY_WORDS = ("memory (MB)", "peak_memory_usage", "GiB(")
_FINISHED = {
    "megatron": megatron.FINISHED,
    "nemo": nemo.FINISHED,
    "torchtitan": torchtitan.FINISHED,
}


def read_log(path: Path) -> TrainingLog:
    """What the log file `path` says; a file without any known line gives an empty record.

    Raises:
        ConfigError: the file cannot be read.
    """
    return read_lines(lines_of(path))


def read_lines(lines: Iterable[tuple[str, bool]]) -> TrainingLog:
    """`read_log` of lines, each with whether its end was seen.

    An unfinished last line may name a failure, but is no measurement. An iteration counts once,
    as first logged: ranks print the same one, and a run that restarts repeats some. A style is
    the first that a step was read in; lines of others are not mixed in.
    """
    state = _State()
    for line, ended in lines:
        state.take(line, ended)
    return state.record()


@dataclass(slots=True)
class _State:
    style: str = ""
    steps: dict[int, Step] = field(default_factory=dict)
    memory: dict[int | None, Memory] = field(default_factory=dict)
    failure: Failure | None = None
    finished: bool = False
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    count: int = 0

    def take(self, line: str, ended: bool) -> None:
        self.count += 1
        self.tail.append(line[:1000])
        found = failure_in(line)
        if found and more_telling(found, self.failure):
            self.failure = found
        if ended:
            self._measure(line)
            self.finished |= any(word in line for word in _FINISHED.get(self.style, ()))

    def _measure(self, line: str) -> None:
        for style, word, steps, memory in _STYLES:
            if self.style not in ("", style):
                continue
            if word in line and len(self.steps) < MAX_STEPS:
                for step in steps(line):
                    self.style = style
                    self.steps.setdefault(step.iteration, step)
                    self.finished |= 0 < step.of <= step.iteration
            if any(text in line for text in _MEMORY_WORDS):
                for peak in memory(line):
                    self.memory[peak.rank] = _larger(peak, self.memory.get(peak.rank))

    def record(self) -> TrainingLog:
        return TrainingLog(
            style=self.style,
            steps=tuple(self.steps[i] for i in sorted(self.steps)),
            memory=tuple(self.memory.values()),
            failure=self.failure,
            finished=self.finished,
            tail=tuple(self.tail),
            lines=self.count,
        )


def _larger(new: Memory, old: Memory | None) -> Memory:
    if old is None:
        return new
    return Memory(
        rank=new.rank,
        max_allocated_bytes=max(new.max_allocated_bytes, old.max_allocated_bytes),
        max_reserved_bytes=max(new.max_reserved_bytes, old.max_reserved_bytes),
    )
