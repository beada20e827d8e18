"""The trials of a run directory: a journal that only grows, one line a finished trial.

A line holds the job, its result and a digest of both. It is appended under a lock and flushed to
the disk before a trial counts as finished, so a killed driver loses the running trial at most, and
two drivers can share a folder. A line that is not whole is skipped and counted, never trusted.

A few kilobytes are kept aside on the disk: when it is full, they make room for the trial that has
just ended.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoparallel import strict_json as check
from autoparallel.errors import ConfigError
from autoparallel.profiling.job import Job, Result

FOLDER, JOURNAL, RESERVE, LOCK = "trials", "journal.jsonl", ".reserve", ".lock"
RESERVE_BYTES = 256 * 1024
REUSED = ("ok", "out_of_memory", "invalid")
"""Outcomes that the same job would have again; a crash or a timeout is worth another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A finished trial."""

    job: Job
    result: Result


class Store:
    """The journal of one run directory.

    Args:
        run: The run directory; reading changes nothing in it.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER
        self.damaged = 0

    def prepare(self) -> None:
        """Make the folder and keep space aside, before anything is worth saving.

        Raises:
            ConfigError: there is no room, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._keep_reserve()
        except OSError as error:
            raise ConfigError(
                f"{self.folder}: cannot be used for trials ({error.strerror}); free some space or "
                "choose another folder"
            ) from error

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other drivers of this folder out for a while; where that cannot be, hope."""
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):
                descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
                held.callback(os.close, descriptor)
                _lock(descriptor)
            yield

    @property
    def journal(self) -> Path:
        """The file itself."""
        return self.folder / JOURNAL

    def trials(self) -> list[Trial]:
        """Every whole line, oldest first; `damaged` counts the others."""
        self.damaged = 0
        return list(self._read())

    def find(self, job: Job) -> Result | None:
        """The newest result that answers `job`: the same subject, with at least as many steps."""
        answers = [
            t.result
            for t in self.trials()
            if t.job.subject == job.subject and _answers(t.result, job)
        ]
        return answers[-1] if answers else None

    def trial_folder(self, job: Job) -> Path:
        """Where a trial's own files and logs go; there is room to save it when it ends."""
        self.prepare()
        return self.folder / job.trial

    def append(self, job: Job, result: Result) -> None:
        """Add a finished trial.

        Raises:
            ConfigError: the disk is full even without the reserve; what stands there is unchanged.
        """
        line = _line(job, result)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._append(line)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise _full(self.journal, error) from error
            self._use_reserve(line)
            raise _full(self.journal, error, kept=True) from error

    def _read(self) -> Iterator[Trial]:
        try:
            data = self.journal.read_bytes()
        except FileNotFoundError:
            return
        for line in data.split(b"\n"):
            if not line.strip():
                continue
            try:
                yield _trial(line)
            except (ConfigError, ValueError, TypeError):
                self.damaged += 1

    def _append(self, line: bytes) -> None:
        """One whole line at the end, or none: half a one is cut off again."""
        descriptor = os.open(self.journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(descriptor)
            size = os.lseek(descriptor, 0, os.SEEK_END)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            try:
                view = memoryview(line)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def _use_reserve(self, line: bytes) -> None:
        (self.folder / RESERVE).unlink(missing_ok=True)
        try:
            self._append(line)
        except OSError as error:
            raise _full(self.journal, error) from error

    def _keep_reserve(self) -> None:
        path = self.folder / RESERVE
        if path.exists() and path.stat().st_size >= RESERVE_BYTES:
            return
        try:
            path.write_bytes(b"\0" * RESERVE_BYTES)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise


def handed_on(trial: Trial) -> str:
    """A trial as text for other drivers: without its log and what its single ranks saw."""
    return _line(trial.job, replace(trial.result, log_tail="", ranks=())).decode()


def taken_up(text: str) -> Trial:
    """Read what `handed_on` wrote.

    Raises:
        ConfigError: it is damaged.
    """
    return _trial(text.strip().encode())


def _answers(result: Result, job: Job) -> bool:
    if result.outcome not in REUSED:
        return False
    return not result.ok or len(result.step_s) >= job.steps


def _line(job: Job, result: Result) -> bytes:
    body = {"job": job.to_json(), "result": result.to_json()}
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return f"{_digest(text)} {text}\n".encode()


def _trial(line: bytes) -> Trial:
    digest, _, text = line.decode("utf-8").partition(" ")
    if digest != _digest(text):
        raise ConfigError("the line is damaged")
    body: dict[str, Any] = check.mapping("journal", check.parsed(text))
    job = Job.parse(json.dumps(body["job"]))
    return Trial(job=job, result=Result.parse(json.dumps(body["result"])))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _full(path: Path, error: OSError, kept: bool = False) -> ConfigError:
    saved = "the trial was still saved" if kept else "the last trial could not be saved"
    return ConfigError(
        f"{path}: cannot be written ({error.strerror}); {saved}; free some space and run again, "
        "finished trials are kept"
    )


def _lock(descriptor: int) -> None:
    """Keep another driver out while a line is written; where there are no locks, hope."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
