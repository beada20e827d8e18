"""Training plans in the gate: what a run asked, by name, and what today's search answers.

A lock keeps the names (`cluster: dgx-h100`, or a file's path relative to the lock), not the records
they stood for, so that a check meets today's catalog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoparallel import catalog
from autoparallel.errors import CatalogError, ConfigError
from autoparallel.layout import Layout, knobs
from autoparallel.measured.cases import read
from autoparallel.measured.rows import MeasuredRun
from autoparallel.nearby import nearby_text
from autoparallel.plan import Plan, PlanEntry, megatron_fields
from autoparallel.planning import candidates_of, checked, estimate, illegal_reasons, searched
from autoparallel.ranking import (
    Setting,
    cost_model,
    objective_column,
    ranked,
    sampled_times,
    setting,
    ties,
)
from autoparallel.regression.kinds import LockEntry, Numbers, Standing
from autoparallel.regression.names import (
    code_digest,
    digest,
    found_at,
    given_text,
    known_name,
    operator_tables,
    placed,
    text_digest,
)
from autoparallel.regression.numbers import changed, used_numbers
from autoparallel.request import TrainingRequest, training_request
from autoparallel.request.compose import PICKS, SCALARS, parsed_overrides

TOP = 10
CODE_ROOMS = (
    *("cost", "rules", "space", "ranking", "planning"),
    *("operators", "nearby", "layout", "model"),
)
"""Rooms of the numeric core whose code decides a prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingToday:
    """A training request searched today; see `kinds.Today`."""

    where: Setting
    plan: Plan
    entries: tuple[LockEntry, ...]

    @property
    def objective(self) -> str:
        """The figure that the search makes small; cost and energy of one job go with its time."""
        wanted = self.where.request.objective
        return wanted if wanted == "memory_bytes" else "iteration_s"

    @property
    def counts(self) -> dict[str, int]:
        """Candidates after each sieve, and those that each rule left out."""
        plan = self.plan
        sieves = {"considered": plan.considered, "legal": plan.legal, "feasible": plan.feasible}
        return sieves | {f"pruned.{rule}": n for rule, n in sorted(plan.pruned.items())}

    @property
    def used(self) -> dict[str, Any]:
        """The numbers that the answer rests on."""
        return used_numbers(self.where)

    @property
    def digests(self) -> dict[str, str]:
        """Operator tables, measured neighbours and code rooms -> digest."""
        nearby = self.where.calibration.nearby
        tables = operator_tables(
            self.where.folder / "operators", self.where.request.cluster.gpu.name
        )
        return {
            **{f"code.{room}": code_digest(room) for room in CODE_ROOMS},
            **{f"operators.{table.stem}": digest([table]) for table in tables},
            **({"profile.nearby": text_digest(nearby_text(nearby))} if nearby else {}),
        }

    def standing(self, layout: str, changes: Numbers) -> Standing:
        """What `layout` is worth with some of the numbers changed."""
        where = changed(self.where, changes) if changes else self.where
        row = where.row(Layout.parse(layout))
        if broken := illegal_reasons(where, row):
            return Standing(legal=False, reasons=tuple(f"{r.rule}: {r.message}" for r in broken))
        scores = cost_model(where)(row)
        step = scores.step
        names = ("compute_s", "recompute_s", "tp_comm_s", "cp_comm_s", "ep_comm_s", "dp_comm_s",
                 "pp_comm_s", "bubble_s", "optimizer_s", "launch_s")  # fmt: skip
        return Standing(
            legal=True,
            figures={
                "iteration_s": float(scores.iteration_s[0]),
                "memory_bytes": float(scores.memory_bytes[0]),
            },
            parts={name: _first(getattr(step, name)) for name in names},
            fits_probability=float(scores.fits_probability[0]),
        )

    def entry(self, layout: str) -> LockEntry:
        """Any legal layout as a lock keeps it, with its place among all."""
        for entry in self.entries:
            if entry.layout == layout:
                return entry
        found = estimate(self.where.request, Layout.parse(layout))
        place = found.place.rank if found.place else None
        return _entry(replace(found.entry, rank=place))

    def best(self, changes: Numbers) -> str:
        """The best layout with some of the numbers changed: a search of its own."""
        where = changed(self.where, changes)
        request = where.request
        found = ranked(candidates_of(request, where), cost_model(where), request.objective, keep=1)
        return str(found.best.knobs.layout(0, where.framework.name)) if found.best else ""

    def tied(self, layout: str) -> bool:
        """Whether the model cannot tell `layout` from the best: it wins often enough."""
        if not self.entries or layout == self.entries[0].layout:
            return True
        request = self.where.request
        pair = [Layout.parse(self.entries[0].layout), Layout.parse(layout)]
        columns = knobs(pair, [request.num_gpus] * 2, [request.global_batch_size] * 2)
        scores = cost_model(self.where)(columns)
        if self.objective != "iteration_s":
            own = objective_column(scores, self.objective)
            return bool(own[1] <= own[0])
        return bool(ties(sampled_times(scores.step, self.where.calibration.spread))[1])


def training_today(request: TrainingRequest) -> TrainingToday:
    """Search `request` with today's code, catalog and profiles."""
    plan, _, where = searched(request, top=TOP)
    return TrainingToday(where=where, plan=plan, entries=tuple(map(_entry, plan.entries)))


def _first(column: Any) -> float:
    return float(column[0]) if getattr(column, "ndim", 0) else float(column)


def _entry(entry: PlanEntry) -> LockEntry:
    fields = megatron_fields(entry.layout, entry.data_parallel_size)
    own = {
        "data_parallel_size": entry.data_parallel_size,
        "num_micro_batches": entry.num_micro_batches,
        "framework": entry.layout.framework,
    }
    figures = ("iteration_s", "memory_bytes", "fits_probability", "best_probability",
               "tokens_per_s_per_gpu", "model_flops_utilization", "days")  # fmt: skip
    intervals = {
        "iteration_s": entry.iteration_s_interval,
        "memory_bytes": entry.memory_bytes_interval,
    }
    parts = {"parts": entry.parts, "memory_parts": entry.memory_parts}
    return LockEntry(
        rank=entry.rank or 0,
        layout=str(entry.layout),
        fields={k: v for k, v in {**fields, **own}.items() if v is not None},
        predicted={name: _short(getattr(entry, name)) for name in figures},
        intervals={k: (_six(v[0]), _six(v[1])) for k, v in intervals.items() if v},
        parts={block: _told(of) for block, of in parts.items() if of},
    )


def _told(parts: Mapping[str, float]) -> dict[str, float]:
    """The parts that can be seen in their sum."""
    total = sum(parts.values())
    return {name: _six(value) for name, value in parts.items() if value > 1e-6 * total}


def _short(value: float | None) -> float | None:
    return None if value is None else _six(value)


def _six(value: float) -> float:
    """Six digits: the same on every machine, and readable in a review."""
    return float(f"{value:.6g}")


# --- what was asked ---------------------------------------------------------------------


def asked(
    request: TrainingRequest, folder: Path, named: Mapping[str, str | None]
) -> dict[str, Any]:
    """What a saved request asked, by name, for a lock in `folder`.

    Args:
        request: The request of a run.
        folder: Where the lock will be; paths are kept relative to it.
        named: `model` and `cluster` files of a request that was not made of catalog entries.

    Raises:
        ConfigError: names that today's catalog lacks, or that stand for other numbers than the
            run's.
    """
    kept = [o for o in parsed_overrides(request.overrides) if _is_kept(o.key)]
    ask = {
        "model": placed(named.get("model"), folder) or request.model.name,
        "num_gpus": request.num_gpus,
        "cluster": placed(named.get("cluster"), folder) or request.cluster.name,
        "gpu": None,
        "framework": request.framework,
        "precision": request.precision,
        "global_batch_size": request.global_batch_size,
        "seq_length": request.seq_length,
        "tokens": request.tokens,
        "space": request.space_name,
        "objective": request.objective,
        "allow_numerics": request.allow_numerics,
        "overrides": [given_text(request.overrides, o.key) for o in kept],
        "config_dir": placed(request.config_dir, folder),
        "profiles_dir": placed(request.profiles_dir, folder),
    }
    ask["gpu"] = _other_gpu(request, ask, folder)
    _check_same(request, resolved(ask, folder, {}))
    return ask


def resolved(
    ask: Mapping[str, Any], folder: Path, folders: Mapping[str, Path | None]
) -> TrainingRequest:
    """The request of a lock in `folder`, made of today's catalog.

    Args:
        ask: The lock's `request` block.
        folder: Where the lock is.
        folders: `config_dir` and `profiles_dir` to take in place of the lock's own.

    Raises:
        ConfigError: a name that the catalog no longer has, or a value it no longer takes.
    """
    own: dict[str, Any] = {n: folders.get(n) or found_at(ask[n], folder) for n in _FOLDERS}
    flags = {k: v for k, v in ask.items() if k not in (*_FOLDERS, "overrides", "model", "cluster")}
    return checked(
        training_request(
            model=known_name(ask["model"], folder),
            cluster=known_name(ask["cluster"], folder),
            overrides=ask["overrides"],
            **flags,
            **own,
        )
    )


_FOLDERS = ("config_dir", "profiles_dir")


def _is_kept(key: str) -> bool:
    """Whether an override says more than the named fields of the lock do."""
    return key not in (*PICKS, *SCALARS) and key.partition(".")[0] not in ("workload", "site")


def _other_gpu(request: TrainingRequest, ask: Mapping[str, Any], folder: Path) -> str | None:
    """The GPU's name when it is not the cluster's own."""
    own = request.config_path
    try:
        usual = catalog.cluster(known_name(ask["cluster"], folder), own).gpu.name
    except CatalogError as error:
        hint = "if the run was made with a file, give --cluster FILE"
        raise ConfigError(f"request.cluster: {error}; {hint}") from error
    return None if request.cluster.gpu.name == usual else request.cluster.gpu.name


def _check_same(saved: TrainingRequest, now: TrainingRequest) -> None:
    """The names stand for the very numbers that the run was made with."""
    before, after = used_numbers(setting(saved)), used_numbers(setting(now))
    for name, value in before.items():
        group = name.partition(".")[0]
        if group in ("model", "cluster", "gpu", "space") and after.get(name) != value:
            raise ConfigError(
                f"{name}: {value!r} in the run, {after.get(name)!r} in today's catalog; search "
                f"again, or give --model or --cluster with the file that the run was made with"
            )


# --- measured runs ----------------------------------------------------------------------

_TOLD_APART = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "micro_batch_size",
    "sequence_parallel",
    "zero_stage",
    "recompute_granularity",
    "precision",
)
"""What a measured row states of its layout."""


def is_run_of(run: MeasuredRun, ask: Mapping[str, Any], layout: str) -> bool:
    """Whether a measured row is a run of a lock's job in its layout."""
    job = ("num_gpus", "global_batch_size", "seq_length")
    if any(getattr(run, name) != ask[name] for name in job):
        return False
    own, wanted = read(run).layout, Layout.parse(layout)
    return all(getattr(own, name) == getattr(wanted, name) for name in _TOLD_APART)
