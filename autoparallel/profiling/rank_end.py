"""What each rank leaves behind, and one `Result` made of all of them.

A rank ends with one `RankEnd`, written to `rank-N.json` in the trial's folder and printed on a line
of its own. Rank 0 also appends a line to `steps.jsonl` after every step. No torch here: launchers
read these files on machines that have none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from autoparallel import strict_json as check
from autoparallel.counts import counted
from autoparallel.errors import ConfigError
from autoparallel.profiling.errand import Work
from autoparallel.profiling.job import (
    LOG_TAIL_CHARACTERS,
    OUTCOMES,
    RANK_CHECKS,
    Job,
    RankReport,
    Result,
    timing,
)

END_MARK = "autoparallel-rank-end "
STEP_MARK = "autoparallel-step "
STEPS_FILE = "steps.jsonl"

_TELLING = ("out_of_memory", "invalid", "crash", "timeout", "ok")
"""Outcomes by how much they say about the cause: the peers of a rank that died only time out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """How one rank ended.

    `losses` come from ranks of the last pipeline stage only; `found` is an errand's answer.
    """

    rank: int
    outcome: str
    message: str = ""
    device: str = ""
    backend: str = ""
    impl: str = ""
    step_s: tuple[float, ...] = ()
    warmup_step_s: tuple[float, ...] = ()
    losses: tuple[float | None, ...] = ()
    deviations: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    report: RankReport | None = None
    found: str = ""

    def text(self) -> str:
        """One line of JSON."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own["report"] = asdict(self.report) if self.report else None
        return json.dumps({k: check.plain(k, v) for k, v in own.items()}, allow_nan=False)

    @classmethod
    def parse(cls, text: str) -> RankEnd:
        """Read what `text` wrote.

        Raises:
            ConfigError: half a line, or anything else a dying rank may have left.
        """
        return cls(**check.record("", check.parsed(text), _END))


_END: dict[str, check.Check] = {
    "rank": check.count,
    "outcome": check.choice(*OUTCOMES),
    **dict.fromkeys(("message", "device", "backend", "impl", "found"), check.text),
    **dict.fromkeys(("step_s", "warmup_step_s"), check.list_of(check.number)),
    "losses": check.list_of(check.or_null(check.number)),
    "deviations": check.list_of(check.text),
    "versions": check.map_of(check.text),
    "report": check.or_null(check.built(RankReport, RANK_CHECKS)),
}


def end_file(rank: int) -> str:
    """Name of a rank's last file in the trial's folder."""
    return f"rank-{rank}.json"


def log_file(rank: int) -> str:
    """Name of a rank's log in the trial's folder."""
    return f"rank-{rank}.log"


def step_line(step_s: float, *, warmup: bool) -> str:
    """What rank 0 appends after a step."""
    return json.dumps({"s": step_s, "warmup": warmup})


def timed_steps(lines: Iterable[str]) -> tuple[float, ...]:
    """Timed steps of `steps.jsonl`; a half-written last line is left out."""
    found = []
    for line in lines:
        try:
            data = check.record("", check.parsed(line), _STEP)
        except ConfigError:
            continue
        if not data["warmup"]:
            found.append(data["s"])
    return tuple(found)


_STEP: dict[str, check.Check] = {"s": check.number, "warmup": check.flag}


def joined(
    job: Work,
    ends: Sequence[RankEnd],
    *,
    lost: Mapping[int, tuple[str, str]] | None = None,
    steps: Sequence[float] = (),
    log_tail: str = "",
) -> Result:
    """One result of all ranks.

    Args:
        job: What ran.
        ends: Of the ranks that said how they ended.
        lost: Rank -> outcome and reason, for ranks that ended without a word.
        steps: Timed steps that rank 0 streamed, for a run that did not reach its end.
        log_tail: The last lines of the rank that tells most.
    """
    ends = sorted(ends, key=lambda end: end.rank)
    # A rank that died without a word is the cause of what its peers complain about.
    failures = [(outcome, f"rank {r}: {why}") for r, (outcome, why) in (lost or {}).items()]
    failures += [(e.outcome, f"rank {e.rank}: {e.message}") for e in ends if e.outcome != "ok"]
    outcome, message = min(failures, key=lambda f: _TELLING.index(f[0]), default=("ok", ""))
    if not failures and len(ends) < job.processes:
        asked = counted(job.processes, "rank")
        outcome, message = "crash", f"only {len(ends)} of {asked} came to their end"
    first = ends[0] if ends else RankEnd(rank=0, outcome=outcome)
    timed = first.step_s if first.rank == 0 and first.step_s else tuple(steps)
    memory, kind = _peak_memory(ends)
    return Result(
        trial=job.trial,
        outcome=outcome,
        message=message[:2000],
        mode=job.mode,
        device=first.device,
        backend=first.backend,
        impl=first.impl,
        warmup_step_s=first.warmup_step_s,
        peak_memory_bytes=memory,
        memory_kind=kind,
        losses=_mean_losses(ends),
        ranks=tuple(end.report for end in ends if end.report),
        deviations=first.deviations,
        versions=first.versions,
        log_tail=log_tail[-LOG_TAIL_CHARACTERS:],
        **(timing(job, timed) if isinstance(job, Job) else {}),
    )


def _peak_memory(ends: Sequence[RankEnd]) -> tuple[float | None, str]:
    """Of the fullest rank: what the allocator gave out, else growth of the process."""
    reports = [end.report for end in ends if end.report]
    for name, kind in (("peak_allocated_bytes", "allocated"), ("peak_rss_bytes", "rss")):
        found = [getattr(r, name) for r in reports if getattr(r, name) is not None]
        if found:
            return float(max(found)), kind
    return None, ""


def _mean_losses(ends: Sequence[RankEnd]) -> tuple[float | None, ...]:
    """Mean over the ranks that have losses: those of the last stage, all replicas alike."""
    columns = list(zip(*(end.losses for end in ends if end.losses), strict=False))
    return tuple(_mean(column) for column in columns)


def _mean(values: Sequence[Any]) -> float | None:
    return None if None in values else sum(values) / len(values)
