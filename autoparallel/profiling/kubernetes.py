"""Trials on a Kubernetes cluster, through `kubectl` and whatever it is logged in to.

Nothing is shared with the pods: the job goes in by a ConfigMap, and what the ranks measured comes
back as lines of their logs. Those are fetched before anything is deleted. An API server that does
not answer changes nothing.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoparallel import files
from autoparallel.errors import ConfigError
from autoparallel.profiling import programs
from autoparallel.profiling.command import LOG_FILE, write_arguments
from autoparallel.profiling.errand import Work
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.kubernetes_manifest import objects
from autoparallel.profiling.launcher import Progress
from autoparallel.profiling.logs import read_log, result_of
from autoparallel.profiling.logs.lines import tail_of
from autoparallel.profiling.rank_end import (
    END_MARK,
    STEP_MARK,
    STEPS_FILE,
    RankEnd,
    end_file,
)
from autoparallel.profiling.ranks import folder_result, start_folder, streamed_steps
from autoparallel.profiling.slurm_script import Place

MANIFEST_FILE = "kubernetes.json"
_HOPELESS = (
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "CreateContainerConfigError",
)
_KILLED = {"OOMKilled": "out_of_memory", "DeadlineExceeded": "timeout"}


@dataclass(slots=True, kw_only=True)
class KubernetesLauncher:
    """See `Launcher`.

    Attributes:
        place: Site (namespace, queue, image, mounts) and GPUs of a node.
        poll_s: Least time between two questions about one job.
    """

    place: Place
    poll_s: float = 5.0
    name: str = "kubernetes"
    _trials: dict[str, _Trial] = field(default_factory=dict)

    def submit(self, job: Work, folder: Path) -> str:
        """See `Launcher`; the ticket is the name of the trial's objects."""
        ticket = f"autoparallel-{job.trial}-{secrets.token_hex(2)}"
        start_folder(job, folder)
        write_arguments(job, folder)
        manifest = json.dumps(objects(ticket, job, self.place), indent=1)
        files.write_text(folder, MANIFEST_FILE, manifest)
        answer = self._ask("create", "-f", "-", given=manifest)
        self._trials[ticket] = _Trial(job=job, folder=folder)
        if not answer.ok:
            self._delete(ticket)
            raise ConfigError(f"kubectl create: {answer.said}; see {folder / MANIFEST_FILE}")
        return ticket

    def poll(self, ticket: str) -> Progress:
        """See `Launcher`."""
        trial, now = self._trials[ticket], time.monotonic()
        if trial.state != "done" and now - trial.asked_at >= self.poll_s:
            trial.asked_at = now
            job = self._object("job", ticket)  # first, so that the pods know of what ended it
            trial.look(job, self._pods(ticket))
            if trial.state != "waiting":
                self._fetch(trial)
        return Progress(state=trial.state, step_s=trial.steps())

    def collect(self, ticket: str) -> Result:
        """See `Launcher`."""
        return self._trials[ticket].result()

    def cancel(self, ticket: str) -> None:
        """See `Launcher`. The logs are fetched first; then everything of the trial is deleted."""
        trial = self._trials[ticket]
        if trial.deleted:
            return
        if trial.state != "done":
            trial.look({}, self._pods(ticket))
        self._fetch(trial)
        self._delete(ticket)
        trial.state, trial.deleted = "done", True

    def close(self) -> None:
        """See `Launcher`."""
        for ticket in self._trials:
            self.cancel(ticket)

    def _ask(self, *words: str, given: str = "") -> programs.Answer:
        space = self.place.site.namespace
        own = ["--namespace", space] if space else []
        return programs.ask(["kubectl", *own, *words], given=given)

    def _object(self, kind: str, name: str) -> dict[str, Any]:
        """An object as data; empty when it is gone or nobody answers."""
        answer = self._ask("get", kind, name, "--output", "json", "--ignore-not-found")
        return _data(answer.text) if answer.ok else {}

    def _pods(self, name: str) -> list[dict[str, Any]]:
        answer = self._ask("get", "pods", "--selector", f"job-name={name}", "--output", "json")
        return list(_data(answer.text).get("items", [])) if answer.ok else []

    def _fetch(self, trial: _Trial) -> None:
        """Logs of all pods into the trial's folder; a pod without a log yet keeps its old one."""
        for pod, index in trial.pods.items():
            answer = self._ask("logs", pod, "--limit-bytes", "50000000")
            if answer.ok and answer.text:
                files.write_text(trial.folder, pod_log(index), answer.text)
        trial.unpack()

    def _delete(self, ticket: str) -> None:
        names = [f"{kind}/{ticket}" for kind in ("job", "service", "configmap")]
        options = ("--ignore-not-found", "--cascade=foreground", "--wait=true", "--timeout=60s")
        self._ask("delete", *names, *options)


def pod_log(index: int) -> str:
    """Name of a pod's log in the trial's folder."""
    return f"pod-{index}.log"


@dataclass(slots=True, kw_only=True)
class _Trial:
    job: Work
    folder: Path
    state: str = "waiting"
    asked_at: float = float("-inf")
    deleted: bool = False
    pods: dict[str, int] = field(default_factory=dict)
    ending: tuple[str, str] | None = None
    succeeded: bool | None = None

    def look(self, job: Mapping[str, Any], pods: list[dict[str, Any]]) -> None:
        """Take in what the API server says; nothing said changes nothing."""
        for pod in pods:
            self.pods[pod["metadata"]["name"]] = _index(pod)
        self.ending = self.ending or next(_endings(pods), None)
        conditions = _field(job, "status", "conditions") or []
        true = {c.get("type"): c for c in conditions if c.get("status") == "True"}
        hopeless = next(_hopeless(pods), "")
        if "Failed" in true or "Complete" in true or hopeless:
            self.state, self.succeeded = "done", "Complete" in true
            if hopeless:
                self.ending = ("invalid", hopeless)
        elif any(_field(pod, "status", "phase") == "Running" for pod in pods):
            self.state = "running"

    def unpack(self) -> None:
        """The marked lines of the pods' logs as the files that ranks with a shared folder leave."""
        steps: list[str] = []
        for index in sorted(self.pods.values()):
            path = self.folder / pod_log(index)
            if not path.is_file():
                continue
            for line in path.read_text(errors="replace").splitlines():
                if STEP_MARK in line:
                    steps.append(line.partition(STEP_MARK)[2])
                elif END_MARK in line:
                    self._keep(line.partition(END_MARK)[2])
        if steps:
            files.write_text(self.folder, STEPS_FILE, "\n".join(steps) + "\n")

    def _keep(self, line: str) -> None:
        """A rank's end; two ranks that wrote over each other have said nothing."""
        try:
            end = RankEnd.parse(line)
        except ConfigError:
            return
        files.write_text(self.folder, end_file(end.rank), line)

    def steps(self) -> tuple[float, ...]:
        """Timed steps so far."""
        job = self.job
        if not isinstance(job, Job) or not job.command:
            return streamed_steps(self.folder)
        path = self._command_log()
        return result_of(read_log(path), job).step_s if path else ()

    def _command_log(self) -> Path | None:
        """All pods' logs as one: Megatron-LM prints its lines on the last rank."""
        parts = [self.folder / pod_log(i) for i in sorted(self.pods.values())]
        texts = [part.read_text(errors="replace") for part in parts if part.is_file()]
        return files.write_text(self.folder, LOG_FILE, "\n".join(texts)) if texts else None

    def result(self) -> Result:
        """Everything there is to know now."""
        tail = "\n".join(tail_of(self.folder / pod_log(0)))
        if isinstance(self.job, Job) and self.job.command:
            return self._of_command(self.job, tail)
        found = folder_result(self.job, self.folder, {})
        if self.ending and (found.ok or found.message.startswith("only ")):
            found = replace(found, outcome=self.ending[0], message=self.ending[1])
        return replace(found, log_tail=found.log_tail or tail)

    def _of_command(self, job: Job, tail: str) -> Result:
        path = self._command_log()
        if path is None:
            outcome, why = self.ending or ("crash", "no pod has written a log")
            return Result(trial=job.trial, outcome=outcome, message=why, log_tail=tail)
        code = None if self.succeeded is None else int(not self.succeeded)
        found = result_of(read_log(path), job, code)
        if self.ending and found.outcome in ("ok", "crash"):
            found = replace(found, outcome=self.ending[0], message=self.ending[1])
        return found


def _endings(pods: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Pods and containers that the cluster itself has ended, and why."""
    for pod in pods:
        reason = _field(pod, "status", "reason") or ""
        if reason in ("DeadlineExceeded", "Evicted", "Preempting", "NodeLost", "Shutdown"):
            yield _KILLED.get(reason, "crash"), f"pod {_index(pod)}: {reason}"
        for status in _field(pod, "status", "containerStatuses") or []:
            ended = _field(status, "state", "terminated") or {}
            if ended.get("reason") == "OOMKilled":
                yield "out_of_memory", f"pod {_index(pod)}: the host's memory was full (OOMKilled)"
    for pod in pods:
        for status in _field(pod, "status", "containerStatuses") or []:
            if code := _field(status, "state", "terminated", "exitCode"):
                yield "crash", f"pod {_index(pod)}: exit code {code}"


def _hopeless(pods: list[dict[str, Any]]) -> Iterator[str]:
    """Pods that will never start."""
    for pod in pods:
        for status in _field(pod, "status", "containerStatuses") or []:
            waiting = _field(status, "state", "waiting") or {}
            if waiting.get("reason") in _HOPELESS:
                yield f"{waiting['reason']}: {waiting.get('message', '')}"[:400]


def _index(pod: Mapping[str, Any]) -> int:
    """A pod's place in its indexed Job."""
    marks = _field(pod, "metadata", "annotations") or {}
    text = str(marks.get("batch.kubernetes.io/job-completion-index", "0"))
    return int(text) if text.isdecimal() else 0


def _field(data: Any, *path: str) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def _data(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text.strip() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
