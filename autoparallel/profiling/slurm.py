"""Trials on a Slurm cluster: `sbatch`, `squeue`, `sacct`, `scancel`.

The trial's folder must be on a file system that all nodes share; the ranks leave their results
there. The controller is asked at most once every `poll_s` seconds for a job, and a controller that
does not answer changes nothing: the job goes on, and the next look may succeed.
"""

from __future__ import annotations

import getpass
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoparallel.errors import ConfigError
from autoparallel.files import write_text
from autoparallel.profiling import programs
from autoparallel.profiling.command import LOG_FILE, write_arguments
from autoparallel.profiling.errand import Work
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.launcher import Progress
from autoparallel.profiling.logs import read_log, result_of
from autoparallel.profiling.logs.lines import tail_of
from autoparallel.profiling.parcel import unpack
from autoparallel.profiling.rank_end import STEPS_FILE, log_file
from autoparallel.profiling.ranks import folder_result, rank_end, start_folder, streamed_steps
from autoparallel.profiling.slurm_script import (
    EXIT_FILE,
    OUTPUT_FILE,
    PARCEL,
    RANK_FILE,
    SCRIPT_FILE,
    Place,
    batch_script,
    job_name,
    rank_script,
)

WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD"}
WAITING |= {"SUSPENDED", "SPECIAL_EXIT", "STOPPED"}
RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING"}
_ENDINGS = {
    "OUT_OF_MEMORY": ("out_of_memory", "the host's memory was full"),
    "TIMEOUT": ("timeout", "Slurm's time limit"),
    "DEADLINE": ("timeout", "Slurm's deadline"),
    "CANCELLED": ("crash", "cancelled"),
    "NODE_FAIL": ("crash", "a node failed"),
    "BOOT_FAIL": ("crash", "a node did not boot"),
    "PREEMPTED": ("crash", "preempted by another job"),
}
_BUSY = ("timed out", "Unable to contact slurm controller", "Connection refused")


@dataclass(slots=True, kw_only=True)
class SlurmLauncher:
    """See `Launcher`.

    Attributes:
        place: Site, nodes and Python of the cluster.
        poll_s: Least time between two questions about one job.
        patience_s: How long a cancelled job may take to leave the queue, a busy controller to
            accept a job, and the ranks' files to arrive over the network after a job's end.
    """

    place: Place
    poll_s: float = 5.0
    patience_s: float = 60.0
    name: str = "slurm"
    _trials: dict[str, _Trial] = field(default_factory=dict)

    def submit(self, job: Work, folder: Path) -> str:
        """See `Launcher`."""
        folder = folder.resolve()
        (folder / EXIT_FILE).unlink(missing_ok=True)
        (folder / LOG_FILE).unlink(missing_ok=True)
        start_folder(job, folder)
        write_arguments(job, folder)
        if not job.command:
            unpack(folder / PARCEL)
        write_text(folder, RANK_FILE, rank_script(job, self.place, folder))
        script = write_text(folder, SCRIPT_FILE, batch_script(job, self.place, folder))
        ticket = self._submitted(script, job)
        self._trials[ticket] = _Trial(job=job, folder=folder)
        return ticket

    def _submitted(self, script: Path, job: Work) -> str:
        """The job's number. A controller too busy to answer may have taken the job all the same."""
        deadline = time.monotonic() + self.patience_s
        while True:
            answer = programs.ask(["sbatch", "--parsable", str(script)])
            number = answer.text.strip().partition(";")[0]
            if answer.ok and number.isdecimal():
                return number
            busy = answer.code == programs.UNANSWERED or any(w in answer.said for w in _BUSY)
            if busy and (taken := _queued_as(job_name(job))):
                return taken
            if not busy or time.monotonic() > deadline:
                raise ConfigError(f"sbatch: {answer.said or 'no job number'}; see {script}")
            time.sleep(min(self.poll_s, self.patience_s / 4))

    def poll(self, ticket: str) -> Progress:
        """See `Launcher`."""
        trial = self._trials[ticket]
        now = time.monotonic()
        if trial.state != "done" and now - trial.asked_at >= self.poll_s:
            trial.asked_at = now
            trial.look(ticket)
        return Progress(state=trial.state, step_s=trial.steps())

    def collect(self, ticket: str) -> Result:
        """See `Launcher`."""
        trial = self._trials[ticket]
        if trial.slurm_state == "COMPLETED" and not trial.job.command:
            _await_files(trial, self.patience_s)
        return trial.result()

    def cancel(self, ticket: str) -> None:
        """See `Launcher`. Returns when the job has left the queue."""
        trial = self._trials[ticket]
        if trial.state == "done":
            return
        programs.ask(["scancel", ticket])
        deadline = time.monotonic() + self.patience_s
        while time.monotonic() < deadline:
            state = _state_of(ticket)
            if state is not None and state not in WAITING | RUNNING:
                break
            time.sleep(min(self.poll_s, 1.0))
        trial.state = "done"

    def close(self) -> None:
        """See `Launcher`."""
        for ticket in self._trials:
            self.cancel(ticket)


@dataclass(slots=True, kw_only=True)
class _Trial:
    job: Work
    folder: Path
    state: str = "waiting"
    slurm_state: str = ""
    asked_at: float = float("-inf")

    def look(self, ticket: str) -> None:
        """Ask for the state; running counts from the first line a rank has written."""
        found = _state_of(ticket) or self._state_by_file()
        if not found:
            return
        self.slurm_state = found
        if found in WAITING:
            self.state = "waiting"
        elif found in RUNNING:
            self.state = "running" if self._has_output() else "waiting"
        else:
            self.state = "done"

    def _state_by_file(self) -> str:
        """The script's own last word, for a cluster that keeps no accounts."""
        if not (path := self.folder / EXIT_FILE).is_file():
            return ""
        return "COMPLETED" if path.read_text().strip() == "0" else "FAILED"

    def _has_output(self) -> bool:
        names = [LOG_FILE] if self.job.command else map(log_file, range(self.job.processes))
        files = [self.folder / name for name in (*names, STEPS_FILE)]
        return any(file.is_file() and file.stat().st_size for file in files)

    def steps(self) -> tuple[float, ...]:
        """Timed steps so far."""
        job, path = self.job, self.folder / LOG_FILE
        if not isinstance(job, Job) or not job.command:
            return streamed_steps(self.folder)
        return result_of(read_log(path), job).step_s if path.is_file() else ()

    def silent(self) -> list[int]:
        """Ranks that have not said how they ended."""
        return [rank for rank in range(self.job.processes) if not rank_end(self.folder, rank)]

    def result(self) -> Result:
        """Everything there is to know now."""
        job = self.job
        return self._of_command(job) if isinstance(job, Job) and job.command else self._of_ranks()

    def _of_command(self, job: Job) -> Result:
        path = self.folder / LOG_FILE
        if not path.is_file():
            outcome, why = self._ending()
            tail = "\n".join(tail_of(self.folder / OUTPUT_FILE))
            return Result(trial=job.trial, outcome=outcome, message=why, log_tail=tail)
        code = None if self.slurm_state in ("", *RUNNING) else int(self.slurm_state != "COMPLETED")
        found = result_of(read_log(path), job, code)
        if self.slurm_state in _ENDINGS and found.outcome in ("ok", "crash"):
            outcome, why = self._ending()
            found = replace(found, outcome=outcome, message=why)
        return found

    def _of_ranks(self) -> Result:
        """A rank without a word is blamed only when no other gave a reason, or Slurm did."""
        silent = self.silent()
        found = folder_result(self.job, self.folder, {})
        blamed = silent and (found.message.startswith("only ") or self.slurm_state in _ENDINGS)
        if blamed:
            found = folder_result(self.job, self.folder, dict.fromkeys(silent, self._ending()))
        if not found.log_tail:
            found = replace(found, log_tail="\n".join(tail_of(self.folder / OUTPUT_FILE)))
        return found

    def _ending(self) -> tuple[str, str]:
        """Outcome and reason that Slurm's own state gives."""
        outcome, why = _ENDINGS.get(self.slurm_state, ("crash", "ended without a word"))
        return outcome, f"{why} (Slurm: {self.slurm_state or 'unknown'})"


def _await_files(trial: _Trial, patience_s: float) -> None:
    """A network file system may show the last files of other nodes late."""
    deadline = time.monotonic() + patience_s
    while trial.silent() and time.monotonic() < deadline:
        time.sleep(0.2)


def _queued_as(name: str) -> str:
    """Number of a job of this name in the queue; empty for none."""
    words = ["squeue", "--noheader", "--user", getpass.getuser(), "--name", name, "--format", "%i"]
    answer = programs.ask(words)
    found = answer.text.split()
    return found[0] if answer.ok and found and found[0].isdecimal() else ""


def _state_of(number: str) -> str | None:
    """Slurm's word for a job's state; None when neither the queue nor the accounts know it now."""
    answer = programs.ask(["squeue", "--noheader", "--jobs", number, "--format", "%T"])
    if answer.ok and (words := answer.text.split()):
        return words[0]
    if not answer.ok and "Invalid job id" not in answer.said:
        return None
    words = ["sacct", "--noheader", "--parsable2", "--jobs", number, "--format", "JobID,State"]
    try:
        answer = programs.ask(words)
    except ConfigError:  # a cluster without accounting has no sacct
        return None
    for line in answer.text.splitlines():
        job, _, state = line.partition("|")
        if job == number and state:
            return state.split()[0]
    return None
