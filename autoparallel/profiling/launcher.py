"""What starts the ranks of a job or an errand, and the loop that waits for them.

A launcher knows how to start, look, fetch and stop; it never waits. `Underway` is a trial that was
started: it holds the deadline, hands partial step times to whoever watches, and ends every trial
with a `Result`. `run_trial` waits for one. Whatever happens, `cancel` is called and leaves no rank
behind.
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
NO_STEP = "ended before its first timed step"
_EARLY = "early"


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


@dataclass(slots=True, kw_only=True)
class Underway:
    """A trial on its way: looked at now and then, ended once.

    Attributes:
        launcher, job, folder: See `started`.
        ticket: The launcher's.
        watch: Called at every look; True ends the trial with the steps it has.
        queue_s: How long it may wait for resources.
        since: When it was submitted, and when its ranks ran first; monotonic.
    """

    launcher: Launcher
    job: Work
    folder: Path
    ticket: str
    watch: Watch | None
    queue_s: float
    started_at: datetime
    since: float
    running_since: float = 0.0

    def look(self) -> Result | None:
        """One look, without waiting: the whole result once it is over."""
        seen = self.launcher.poll(self.ticket)
        ending = "" if seen.state == "done" else self._ending(seen)
        return None if ending is None else self._ended(ending)

    def cut(self) -> Result:
        """End it now, with the steps it has; the whole result where it is over already."""
        over = self.launcher.poll(self.ticket).state == "done"
        return self._ended("" if over else _EARLY)

    def _ended(self, ending: str) -> Result:
        """The result, once no rank is left; `ending` is what ended it, if not itself."""
        self.end()
        result = self.launcher.collect(self.ticket)
        if ending == _EARLY:
            found = ("ok", "") if result.step_s else ("timeout", NO_STEP)
            result = replace(result, outcome=found[0], message=found[1], stopped_early=True)
        elif ending:
            result = replace(result, outcome="timeout", message=ending)
        return replace(
            result,
            trial=self.job.trial,
            launcher=self.launcher.name,
            mode=self.job.mode,
            started_at=self.started_at.isoformat(timespec="seconds"),
            wall_s=round(time.monotonic() - self.since, 3),
        )

    def _ending(self, seen: Progress) -> str | None:
        """What ends a trial that has not ended by itself: `early`, or the deadline in words."""
        now = time.monotonic()
        if seen.state == "running" and not self.running_since:
            self.running_since = now
        if self.watch is not None and self.watch(seen):
            return _EARLY
        if self.running_since and now - self.running_since > self.job.timeout_s:
            return f"not finished {self.job.timeout_s:g} s after its ranks started"
        if not self.running_since and now - self.since > self.queue_s:
            return f"no room for its ranks within {self.queue_s:g} s"
        return None

    def end(self) -> None:
        """Leave no rank behind, whatever happened."""
        self.launcher.cancel(self.ticket)


def started(
    launcher: Launcher,
    job: Work,
    folder: Path,
    *,
    watch: Watch | None = None,
    queue_s: float = QUEUE_S,
) -> Underway:
    """Submit one job.

    Args:
        launcher: Where.
        job: What; its `timeout_s` counts from the moment its ranks run.
        folder: The trial's own folder; made when missing.
        watch: Called at every look; True ends the trial with the steps it has.
        queue_s: How long it may wait for resources.

    Raises:
        ConfigError: the launcher cannot start any such job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    at, since = datetime.now(UTC), time.monotonic()
    return Underway(
        launcher=launcher,
        job=job,
        folder=folder,
        ticket=launcher.submit(job, folder),
        watch=watch,
        queue_s=queue_s,
        started_at=at,
        since=since,
    )


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
        launcher: See `started`.
        job: See `started`.
        folder: See `started`.
        watch: See `started`.
        queue_s: See `started`.
        poll_s: Seconds between two looks.

    Raises:
        ConfigError: the launcher cannot start any such job.
    """
    underway = started(launcher, job, folder, watch=watch, queue_s=queue_s)
    try:
        while (result := underway.look()) is None:
            time.sleep(poll_s)
    finally:
        underway.end()
    return result
