"""Ranks as Ray actors in a placement group: one rank an actor, one trial a group.

Actors are made for one trial and killed with it, because megatron-core keeps its groups in globals.
They bring the worker's files along (`parcel`), so the nodes of a cluster need torch and
megatron-core but not this package. Where driver and node share the trial's folder, ranks write into
it; elsewhere rank 0 is asked for its steps and every rank for its end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoparallel.errors import bad_value
from autoparallel.profiling.errand import Errand, Work, spread
from autoparallel.profiling.job import Result
from autoparallel.profiling.launcher import Progress
from autoparallel.profiling.parcel import worker_files
from autoparallel.profiling.rank_end import STEPS_FILE, end_file, log_file
from autoparallel.profiling.ranks import (
    folder_result,
    rank_environment,
    start_folder,
    streamed_steps,
)
from autoparallel.profiling.ray_actor import rank_actor
from autoparallel.profiling.ray_session import Session

_LOOK_S = 1.0


@dataclass(slots=True, kw_only=True)
class _Running:
    job: Work
    folder: Path
    group: Any
    placed: Any
    actors: list[Any] = field(default_factory=list)
    places: list[Any] = field(default_factory=list)
    runs: dict[Any, int] = field(default_factory=dict)
    look: Any = None
    looked_at: float = 0.0
    lost: dict[int, tuple[str, str]] = field(default_factory=dict)
    ended: bool = False


class RayLauncher:
    """Runs jobs on Ray.

    Args:
        address: A cluster's address, or `auto`; empty starts a local Ray that ends with `close`.
        gpus: Whether a rank takes a GPU; None when it does where the cluster has any.
        ranks: The most ranks a trial has; a local Ray has room for them.
    """

    name = "ray"

    def __init__(self, *, address: str = "", gpus: bool | None = False, ranks: int = 1) -> None:
        self._session = Session(address, cpus=max(ranks, os.cpu_count() or 1))
        self._ray, self._calls = self._session.ray, self._session.calls
        self._running: dict[str, _Running] = {}
        self._actor = rank_actor(self._ray)
        self._code = worker_files()
        self._gpus = self.gpus() > 0 if gpus is None else gpus

    def gpus(self) -> int:
        """GPUs of the cluster."""
        return int(self._calls(self._ray.cluster_resources).get("GPU", 0))

    def submit(self, job: Work, folder: Path) -> str:
        """Ask for a place for every rank; the ticket is the trial's folder.

        Raises:
            ConfigError: more ranks than the cluster has room for.
            ClusterGoneError: the cluster has gone.
        """
        self._calls.check(0.0)
        self._calls(lambda: self._check_room(job))
        start_folder(job, folder)
        self._running[str(folder)] = self._calls(lambda: self._asked(job, folder.resolve()))
        return str(folder)

    def _asked(self, job: Work, folder: Path) -> _Running:
        """A place asked for: GPUs close together, or a rank a node to look at it."""
        bundle = {"CPU": 1.0, **({"GPU": 1.0} if self._gpus and not spread(job) else {})}
        group = self._ray.util.placement_group([bundle] * job.processes, strategy=_strategy(job))
        return _Running(job=job, folder=folder, group=group, placed=group.ready())

    def poll(self, ticket: str) -> Progress:
        """Look; the first rank that failed ends the others."""
        running = self._running[ticket]
        if not running.ended:
            try:
                if self._calls(lambda: self._advance(running)):
                    self._end(running)
            except self._ray.exceptions.RayError as error:
                running.lost.setdefault(0, self._reason(error))
                self._end(running)
        state = "done" if running.ended else "running" if running.runs else "waiting"
        return Progress(state=state, step_s=streamed_steps(running.folder))

    def collect(self, ticket: str) -> Result:
        """What the ranks have said or left."""
        running = self._running[ticket]
        return folder_result(running.job, running.folder, running.lost)

    def cancel(self, ticket: str) -> None:
        """Kill every actor and give its place back."""
        self._end(self._running[ticket])

    def _end(self, running: _Running) -> None:
        if running.ended:
            return
        running.ended = True
        with contextlib.suppress(Exception):
            self._calls(lambda: self._release(running))
        for parcel in running.folder.glob(".worker-*"):
            shutil.rmtree(parcel, ignore_errors=True)

    def _release(self, running: _Running) -> None:
        for actor in running.actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor, no_restart=True)
        with contextlib.suppress(Exception):
            self._ray.util.remove_placement_group(running.group)

    def close(self) -> None:
        """End whatever still runs, and the local Ray with its files."""
        for ticket in self._running:
            self.cancel(ticket)
        self._session.close()

    def _check_room(self, job: Work) -> None:
        """A placement group larger than the cluster would wait forever."""
        if spread(job):
            nodes = sum(1 for node in self._ray.nodes() if node["Alive"])
            if nodes < job.processes:
                rule = f"is more than the {nodes} nodes of this Ray"
                raise bad_value("--nodes", job.processes, rule, f"use at most {nodes}")
            return
        total = self._ray.cluster_resources()
        for name in ("GPU", "CPU") if self._gpus else ("CPU",):
            if total.get(name, 0.0) < job.processes:
                rule = f"is more than the {total.get(name, 0.0):g} {name}s of this Ray"
                raise bad_value("processes", job.processes, rule, "use --mode proxy or rank")

    def _advance(self, running: _Running) -> bool:
        """One step further: placed, then addressed, then running; whether it is to be ended."""
        if not running.actors:
            if self._ready(running.placed):
                self._ray.get(running.placed)
                self._make_actors(running)
        elif not running.runs:
            size = len(running.places)
            if len(self._ray.wait(running.places, num_returns=size, timeout=0)[0]) == size:
                found = self._ray.get(running.places)
                self._start_ranks(running, found[0])
        else:
            self._look(running)
            return self._settled(running)
        return False

    def _ready(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])

    def _make_actors(self, running: _Running) -> None:
        strategy = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        environment = dict(running.job.environment)
        alone = spread(running.job)
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1 if self._gpus and not alone else 0}
        if alone:
            environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else it hides the GPUs
        if environment:
            options["runtime_env"] = {"env_vars": environment}
        for bundle in range(running.job.processes):
            place = strategy(running.group, placement_group_bundle_index=bundle)
            actor = self._actor.options(scheduling_strategy=place, **options).remote()
            running.actors.append(actor)
        running.places = [actor.place.remote() for actor in running.actors]

    def _start_ranks(self, running: _Running, address: tuple[str, int]) -> None:
        self._session.note_processes()
        for rank, actor in enumerate(running.actors):
            environment = rank_environment(running.job, rank, address)
            log = log_file(rank)
            text = running.job.text()
            reference = actor.run.remote(self._code, text, environment, str(running.folder), log)
            running.runs[reference] = rank

    def _look(self, running: _Running) -> None:
        """Where the folder is not shared, fetch rank 0's steps now and then."""
        now = time.monotonic()
        if running.look is not None and self._ready(running.look):
            if steps := self._ray.get(running.look):
                (running.folder / STEPS_FILE).write_text(steps, encoding="utf-8")
            running.look = None
        elif running.look is None and now - running.looked_at > _LOOK_S:
            running.looked_at = now
            running.look = running.actors[0].steps.remote()

    def _settled(self, running: _Running) -> bool:
        """Take the ends that have come; whether it is over, which a failed one makes it."""
        ready, _ = self._ray.wait(list(running.runs), num_returns=len(running.runs), timeout=0)
        failed = False
        for reference in ready:
            rank = running.runs[reference]
            try:
                ok = self._keep(running, rank, self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                self._calls.check(0.0)
                ok = False
                running.lost.setdefault(rank, self._reason(error))
            failed = failed or not ok
        return failed or len(ready) == len(running.runs)

    def _keep(self, running: _Running, rank: int, ended: Mapping[str, str]) -> bool:
        """Write what a rank on another machine left; whether it went well."""
        target = running.folder / end_file(rank)
        if not target.exists():
            target.write_text(ended["end"], encoding="utf-8")
            (running.folder / log_file(rank)).write_text(ended["log"], encoding="utf-8")
            if ended["steps"]:
                (running.folder / STEPS_FILE).write_text(ended["steps"], encoding="utf-8")
        return ended["outcome"] == "ok"

    def _reason(self, error: Exception) -> tuple[str, str]:
        """Outcome and words for a rank that Ray lost."""
        exceptions = self._ray.exceptions
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = f"{type(error).__name__}: {' '.join(lines)[:400]}"
        memory = isinstance(error, exceptions.OutOfMemoryError) or "OOM" in text
        return ("out_of_memory" if memory else "crash"), text


def _strategy(job: Work) -> str:
    """How ranks lie on nodes: one each, all on one, or as close as they fit."""
    if spread(job):
        return "STRICT_SPREAD"
    return "STRICT_PACK" if isinstance(job, Errand) else "PACK"
