"""What starts the ranks of a job or an errand, and the loop that waits for them.

A launcher knows how to start, look, fetch and stop; it never waits. `run_trial` is the one place
that waits: it holds the deadline, hands partial step times to whoever watches, and ends every trial
with a `Result`. Whatever happens, `cancel` is called and leaves no rank behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from autoparallel.errors import LaunchError
from autoparallel.profiling.errand import Work
from autoparallel.profiling.job import Result

POLL_S = 0.1
QUEUE_S = 24 * 3600.0


class ClusterGoneError(LaunchError):
    """What trials run on has gone, and its client cannot be taken down in order any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a running trial shows of itself.

    Attributes:
        state: `waiting` for resources, `running` its ranks, or `done`: `collect` has the result.
        step_s: Timed steps so far, warm-up left out.
    """

    state: str
    step_s: tuple[float, ...] = ()


class Launcher(Protocol):
    """Starts jobs somewhere. One object serves many jobs; a ticket names one of them."""

    name: str

    def submit(self, job: Work, folder: Path) -> str:
        """Start the ranks of `job` and return a ticket at once.

        Args:
            job: What to run.
            folder: The trial's own existing folder, for its files and logs.

        Raises:
            ConfigError: the job cannot be started here at all; it becomes an `invalid` result.
        """

    def poll(self, ticket: str) -> Progress:
        """Look, without waiting. The first failed rank ends all others and makes it `done`."""

    def collect(self, ticket: str) -> Result:
        """What there is to know now: the whole result when `done`, else what came so far."""

    def cancel(self, ticket: str) -> None:
        """End every rank and free what they held; no error when they are gone already."""

    def close(self) -> None:
        """Cancel whatever still runs and give back what the launcher itself holds."""


Watch = Callable[[Progress], bool]
"""Sees every look at a trial; True stops it early."""


def run_trial(
    launcher: Launcher,
    job: Work,
    folder: Path,
    *,
    watch: Watch | None = None,
    queue_s: float = QUEUE_S,
    poll_s: float = POLL_S,
) -> Result:
    """Run one job to its end and say how it ended.

    Args:
        launcher: Where.
        job: What; its `timeout_s` counts from the moment its ranks run.
        folder: The trial's own folder; made when missing.
        watch: Called at every look; True ends the trial with the steps it has.
        queue_s: How long it may wait for resources.
        poll_s: Seconds between two looks.

    Raises:
        ConfigError: the launcher cannot start any such job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started, begin = datetime.now(UTC), time.monotonic()
    ticket = launcher.submit(job, folder)
    try:
        ending = _wait(launcher, ticket, job, watch, queue_s, poll_s)
    finally:
        launcher.cancel(ticket)
    result = launcher.collect(ticket)
    if ending == "early":
        found = ("ok", "") if result.step_s else ("timeout", "ended before its first timed step")
        result = replace(result, outcome=found[0], message=found[1], stopped_early=True)
    elif ending:
        result = replace(result, outcome="timeout", message=ending)
    return replace(
        result,
        trial=job.trial,
        launcher=launcher.name,
        mode=job.mode,
        started_at=started.isoformat(timespec="seconds"),
        wall_s=round(time.monotonic() - begin, 3),
    )


def _wait(
    launcher: Launcher,
    ticket: str,
    job: Work,
    watch: Watch | None,
    queue_s: float,
    poll_s: float,
) -> str:
    """Wait for the end: empty when it came by itself, `early`, or the deadline in words."""
    submitted, running_since = time.monotonic(), 0.0
    while (seen := launcher.poll(ticket)).state != "done":
        now = time.monotonic()
        if seen.state == "running" and not running_since:
            running_since = now
        if watch is not None and watch(seen):
            return "early"
        if running_since and now - running_since > job.timeout_s:
            return f"not finished {job.timeout_s:g} s after its ranks started"
        if not running_since and now - submitted > queue_s:
            return f"no room for its ranks within {queue_s:g} s"
        time.sleep(poll_s)
    return ""
