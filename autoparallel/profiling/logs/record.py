"""What a training log says, whichever framework wrote it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One logged iteration, or the mean over the iterations since the last logged one.

    Attributes:
        iteration: Counted from 1.
        of: Iterations of the whole run, 0 when the line does not say.
        seconds: Time of one iteration; None when the log gives a rate or a clock instead.
        clock_s: Wall clock of the line in seconds, for logs that give no time.
        tokens_per_s_per_gpu: As logged; None when not.
        skipped: Iterations of these whose update was skipped (loss scale, NaN).
        nan: Iterations of these with a loss that is not a number.
    """

    iteration: int
    of: int = 0
    seconds: float | None = None
    clock_s: float | None = None
    tokens_per_s_per_gpu: float | None = None
    loss: float | None = None
    global_batch_size: int = 0
    skipped: int = 0
    nan: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak memory of one rank so far, in bytes; 0 where the log does not say.

    Attributes:
        rank: Global rank; None when the line does not say whose it is.
    """

    rank: int | None
    max_allocated_bytes: float = 0.0
    max_reserved_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A line that says how a run ended badly: `out_of_memory`, `timeout`, `crash`, `invalid`."""

    outcome: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLog:
    """Everything read from one log, before it is held against a job.

    Attributes:
        style: Which framework's lines these are: `megatron`, `nemo`, `torchtitan`; empty for none.
        steps: Logged iterations in order, each once.
        memory: Peak of every rank that reported one.
        finished: Whether the log says that training came to its planned end.
        tail: The last lines.
    """

    style: str = ""
    steps: tuple[Step, ...] = ()
    memory: tuple[Memory, ...] = ()
    failure: Failure | None = None
    finished: bool = False
    tail: tuple[str, ...] = ()
    lines: int = 0
