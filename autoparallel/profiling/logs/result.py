"""A training log held against the job it should be of: the same `Result` a launcher returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from autoparallel.profiling.job import LOG_TAIL_CHARACTERS, Job, RankReport, Result, timing
from autoparallel.profiling.logs.record import Memory, Step, TrainingLog

_IMPLS = {"transformer_engine": "te", "local": "local"}


def result_of(log: TrainingLog, job: Job, exit_code: int | None = None) -> Result:
    """What a log measured of `job`, and how the run ended.

    Iterations of the warm-up are left out, and those whose update was skipped; a line that
    averages over several iterations counts as warm-up when any of them is. An end that is bad
    keeps the times before it.

    Args:
        log: As read.
        job: Its tokens a step turn rates into times; its warm-up is left out.
        exit_code: Of the run, where it is known; None for a log from elsewhere.
    """
    seconds = [_seconds(log.steps, i, job) for i in range(len(log.steps))]
    warm, timed, notes = _split(log.steps, job)
    measured = timing(job, tuple(s for i in timed if (s := seconds[i]) is not None))
    outcome, message = _ending(log, job, exit_code, bool(measured))
    peak, kind = _peak(log.memory)
    return Result(
        trial=job.trial,
        outcome=outcome,
        message=message,
        mode=job.mode,
        device="cuda" if log.memory else "",
        impl=_impl(job.arguments),
        **measured,
        warmup_step_s=tuple(s for i in warm if (s := seconds[i]) is not None),
        peak_memory_bytes=peak,
        memory_kind=kind,
        losses=tuple(_finite(step.loss) for step in log.steps),
        ranks=tuple(_report(m) for m in log.memory if m.rank is not None),
        deviations=(*notes, *_cut_short(log, outcome)),
        versions={"log": log.style} if log.style else {},
        log_tail="\n".join(log.tail)[-LOG_TAIL_CHARACTERS:],
    )


def _seconds(steps: Sequence[Step], at: int, job: Job) -> float | None:
    """Time of an iteration: as logged, else from its rate, else from the clocks of two lines."""
    step = steps[at]
    found = step.seconds
    if found is None and step.tokens_per_s_per_gpu:
        tokens = job.global_batch_size * job.seq_length
        found = tokens / (step.tokens_per_s_per_gpu * job.num_gpus)
    if found is None and at and step.clock_s is not None:
        before = steps[at - 1]
        if before.clock_s is not None:
            found = (step.clock_s - before.clock_s) / (step.iteration - before.iteration)
    return found if found is not None and math.isfinite(found) and found > 0 else None


def _split(steps: Sequence[Step], job: Job) -> tuple[list[int], list[int], list[str]]:
    """Places of the warm-up lines and of the timed ones, and what is odd about them."""
    if not steps:
        return [], [], []
    stride = _stride(steps)
    start = steps[0].iteration - stride
    first = start + job.warmup_steps
    timed = [i for i, step in enumerate(steps) if step.iteration - stride >= first]
    notes = [f"times are means over {stride} iterations"] if stride > 1 else []
    if not timed:
        timed = [len(steps) - 1]
        notes.append("the one time logged includes the warm-up")
    if all(steps[i].skipped for i in timed):
        notes += ["the update of every timed iteration was skipped"]
    else:
        timed = [i for i in timed if not steps[i].skipped]
    return [i for i in range(len(steps)) if i < timed[0]], timed, notes


def _stride(steps: Sequence[Step]) -> int:
    """Iterations from one logged line to the next; of a single line all up to it."""
    if len(steps) == 1:
        return max(steps[0].iteration, 1) if steps[0].clock_s is None else 1
    return min(b.iteration - a.iteration for a, b in pairwise(steps))


def _ending(log: TrainingLog, job: Job, exit_code: int | None, measured: bool) -> tuple[str, str]:
    """Outcome and why it is not `ok`, the most telling cause first."""
    over = exit_code == 0 or (exit_code is None and log.finished)
    if log.failure and not over:
        return log.failure.outcome, log.failure.message
    if exit_code:
        return "crash", _exit_words(exit_code)
    if odd := [s for s in log.steps if s.nan or (s.loss is not None and not math.isfinite(s.loss))]:
        return "invalid", f"the loss is not a number at iteration {odd[0].iteration}"
    if sizes := {s.global_batch_size for s in log.steps} - {0, job.global_batch_size}:
        told = f"global batch size {sizes.pop()} in the log, {job.global_batch_size} in the job"
        return "invalid", f"{told}: this is another run"
    if measured or (over and job.mode == "rank" and log.memory):
        return "ok", ""  # of a made-up world the last rank alone prints times
    words = "no iteration time in the log: --log-interval 1 and more iterations than the warm-up"
    return ("invalid" if over else "crash"), words


def _exit_words(code: int) -> str:
    signal = -code if code < 0 else code - 128 if code > 128 else 0
    if signal == 9:
        return "killed by signal 9: by hand, or by the host when its memory was full"
    return f"killed by signal {signal}" if signal else f"exit code {code} and no known reason"


def _cut_short(log: TrainingLog, outcome: str) -> tuple[str, ...]:
    """A log that ends in the middle of a run still times what it has."""
    if outcome != "ok" or log.finished or not log.steps or not log.steps[-1].of:
        return ()
    last = log.steps[-1]
    return (f"the log ends at iteration {last.iteration} of {last.of}",)


def _peak(memory: Sequence[Memory]) -> tuple[float | None, str]:
    """Peak of the fullest rank: allocated where logged, else reserved."""
    for kind in ("allocated", "reserved"):
        if peak := max((getattr(m, f"max_{kind}_bytes") for m in memory), default=0.0):
            return peak, kind
    return None, ""


def _report(memory: Memory) -> RankReport:
    return RankReport(
        rank=memory.rank or 0,
        peak_allocated_bytes=int(memory.max_allocated_bytes) or None,
        peak_reserved_bytes=int(memory.max_reserved_bytes) or None,
    )


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def _impl(arguments: Sequence[str]) -> str:
    """What `--transformer-impl` names; empty when the arguments do not say."""
    pairs: dict[str, Any] = dict(pairwise(arguments))
    return _IMPLS.get(pairs.get("--transformer-impl", ""), "")
