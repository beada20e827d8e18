"""Serving plans in the gate: what an `infer` run asked, by name, and what today's search answers.

A deployment is held by its engine, precisions and workers. Batch and token limits are the search's
to set anew, so they stand among its fields and not in its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoparallel import catalog
from autoparallel.errors import CatalogError, ConfigError
from autoparallel.regression.kinds import LockEntry, Numbers, Standing
from autoparallel.regression.names import (
    code_digest,
    digest,
    found_at,
    given_text,
    known_name,
    placed,
)
from autoparallel.regression.numbers import (
    catalog_numbers,
    changed_records,
    grouped,
    numbers_of,
    space_numbers,
)
from autoparallel.request import ServingRequest, serving_request
from autoparallel.request.compose import parsed_overrides
from autoparallel.serving_plan import ServingEntry, Worker
from autoparallel.serving_planning import Solved, question, solve, tied

TOP = 40
"""Deployments among which a pinned one is looked for."""
CODE_ROOMS = ("inference", "cost", "operators", "model", "serving_planning")
_SIZES = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "ep": "expert_model_parallel_size",
    "dp": "attention_data_parallel_size",
}
_NAMES = ("num_gpus", "prefill_gpus", "input_tokens", "output_tokens", "longest_tokens",
          "prefix_tokens", "accepted_tokens", "request_rate", "concurrency", "ttft_ms", "tpot_ms",
          "e2e_ms", "percentile", "objective", "disaggregated")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingToday:
    """A serving request searched today; see `kinds.Today`."""

    request: ServingRequest
    solved: Solved
    entries: tuple[LockEntry, ...]

    @property
    def objective(self) -> str:
        """The figure that the search makes best, under the load that is asked."""
        asked = self.request
        if asked.objective == "latency" or (asked.request_rate and asked.objective == "throughput"):
            return "e2e_ms"
        return "usd_per_million_tokens" if asked.objective == "cost" else "tokens_per_s"

    @property
    def counts(self) -> dict[str, int]:
        """Candidates after each sieve, and those that each rule left out."""
        plan = self.solved.plan
        sieves = {"considered": plan.considered, "legal": plan.legal, "feasible": plan.feasible}
        return sieves | {f"pruned.{rule}": n for rule, n in sorted(plan.pruned.items())}

    @property
    def used(self) -> dict[str, Any]:
        """The numbers that the answer rests on: catalog, space and every engine's constants."""
        request = self.request
        found = catalog_numbers(request.model, request.cluster)
        for here in question(request, request.num_gpus or 8).settings:
            own = numbers_of(here.constants).items()
            found |= {f"{here.backend.name}.{k}": v for k, v in own if not hasattr(v, "shape")}
        return found | {f"space.{k}": v for k, v in space_numbers(request.space).items()}

    @property
    def digests(self) -> dict[str, str]:
        """Serving profiles, operator tables and code rooms -> digest."""
        profiles = catalog.data_dir() / "profiles"
        return {
            **{f"code.{room}": code_digest(room) for room in CODE_ROOMS},
            "profiles.serving": digest(sorted((profiles / "serving").glob("*.yaml"))),
            "profiles.operators": digest(sorted((profiles / "operators").glob("*.csv"))),
        }

    def standing(self, layout: str, changes: Numbers) -> Standing:
        """What a deployment is worth with some numbers of model, cluster and GPU changed."""
        entries = self._entries(changes)
        entry = next((e for e in entries if e.layout == layout), None)
        if entry is None:
            reason = f"limits: not among the {TOP} best deployments that fit and keep the limits"
            return Standing(legal=False, reasons=(reason,))
        figures = {k: v for k, v in entry.predicted.items() if v is not None}
        return Standing(
            legal=True,
            fits_probability=figures.pop("fits_probability", None),
            figures=figures,
            parts=entry.parts.get("parts", {}),
        )

    def _entries(self, changes: Numbers) -> tuple[LockEntry, ...]:
        if not changes:
            return self.entries
        groups = grouped(changes)
        request = self.request
        model, cluster = changed_records(request.model, request.cluster, groups)
        space = {**request.space, **groups.get("space", {})}
        changed = replace(request, model=model, cluster=cluster, space=space)
        return _entries_of(solve(changed, top=TOP))

    def entry(self, layout: str) -> LockEntry:
        """A deployment of the short list as a lock keeps it.

        Raises:
            ConfigError: it is not on the list.
        """
        for entry in self.entries:
            if entry.layout == layout:
                return entry
        raise ConfigError(f"deployment: {layout} is not among the {TOP} best today; search again")

    def best(self, changes: Numbers) -> str:
        """The best deployment with some of the numbers changed; empty when nothing will do."""
        entries = self._entries(changes)
        return entries[0].layout if entries else ""

    def tied(self, layout: str) -> bool:
        """Whether the model cannot tell `layout` from the best."""
        labels = [entry.layout for entry in self.entries]
        return layout in labels and tied(self.solved)[labels.index(layout)]


def serving_today(request: ServingRequest) -> ServingToday:
    """Search `request` with today's code, catalog and profiles."""
    solved = solve(request, top=TOP)
    return ServingToday(request=request, solved=solved, entries=_entries_of(solved))


def deployment(entry: ServingEntry) -> str:
    """What names a deployment: `vllm bf16/bf16 aggregated 2 x tp4`."""
    workers = " | ".join(_worker(worker) for worker in entry.workers)
    return f"{entry.backend} {entry.precision}/{entry.kv_dtype} {workers}"


def _worker(worker: Worker) -> str:
    sizes = {letter: getattr(worker, name) for letter, name in _SIZES.items()}
    words = [f"{letter}{n}" for letter, n in sizes.items() if n > 1 or letter == "tp"]
    return f"{worker.role} {worker.replicas} x {' '.join(words)}"


def _entries_of(solved: Solved) -> tuple[LockEntry, ...]:
    return tuple(_entry(entry, solved.request) for entry in solved.plan.entries)


def _entry(entry: ServingEntry, request: ServingRequest) -> LockEntry:
    names = ("ttft_ms", "tpot_ms", "tokens_per_s_per_gpu", "memory_bytes", "fits_probability",
             "concurrency", "load", "usd_per_million_tokens")  # fmt: skip
    own = {name: getattr(entry, name) for name in names}
    last = (entry.ttft_ms or 0.0) + (entry.tpot_ms or 0.0) * (request.output_tokens - 1)
    figures = {**own, "tokens_per_s": entry.tokens_per_s, "e2e_ms": last}
    workers = {
        f"{w.role}.{name}": value
        for w in entry.workers
        for name, value in asdict(w).items()
        if name != "role"
    }
    return LockEntry(
        rank=entry.rank or 0,
        layout=deployment(entry),
        fields={"backend": entry.backend, "mode": entry.mode, "precision": entry.precision,
                "kv_dtype": entry.kv_dtype, **workers},
        predicted={k: None if v is None else float(f"{v:.6g}") for k, v in figures.items()},
        intervals={},
        parts={"parts": {k: float(f"{v:.6g}") for k, v in (entry.parts or {}).items() if v}},
    )  # fmt: skip


# --- what was asked ---------------------------------------------------------------------


def serving_asked(
    request: ServingRequest, folder: Path, named: Mapping[str, str | None]
) -> dict[str, Any]:
    """What a saved request asked, by name, for a lock in `folder`; see `training.asked`.

    Raises:
        ConfigError: names that today's catalog lacks, or that stand for other numbers.
    """
    steer = ("model", "cluster", "gpu", "framework", "site", "workload")
    keys = [o.key for o in parsed_overrides(request.overrides) if o.key not in steer]
    cluster = placed(named.get("cluster"), folder) or request.cluster.name
    prefill = request.prefill_cluster
    ask = {
        "model": placed(named.get("model"), folder) or request.model.name,
        "cluster": cluster,
        "gpu": _other_gpu(request, known_name(cluster, folder)),
        "prefill_cluster": prefill.name if prefill else None,
        **{name: getattr(request, name) for name in _NAMES},
        **{name: list(getattr(request, name)) for name in ("backends", "precisions", "kv_dtypes")},
        "trace": placed(request.trace, folder),
        "overrides": [given_text(request.overrides, key) for key in keys],
        "config_dir": placed(request.config_dir, folder),
        "profiles_dir": placed(request.profiles_dir, folder),
    }
    now = serving_resolved(ask, folder, {})
    before = catalog_numbers(request.model, request.cluster)
    after = catalog_numbers(now.model, now.cluster)
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            raise ConfigError(
                f"{name}: {before.get(name)!r} in the run, {after.get(name)!r} in today's catalog; "
                "search again, or give --model or --cluster with the file of the run"
            )
    return ask


def _other_gpu(request: ServingRequest, cluster: str) -> str | None:
    try:
        usual = catalog.cluster(cluster, request.config_path).gpu.name
    except CatalogError as error:
        hint = "if the run was made with a file, give --cluster FILE"
        raise ConfigError(f"request.cluster: {error}; {hint}") from error
    return None if request.cluster.gpu.name == usual else request.cluster.gpu.name


def serving_resolved(
    ask: Mapping[str, Any], folder: Path, folders: Mapping[str, Path | None]
) -> ServingRequest:
    """The request of a lock in `folder`, made of today's catalog; see `training.resolved`.

    Raises:
        ConfigError: a name that the catalog no longer has, or a value it no longer takes.
    """
    names = ("config_dir", "profiles_dir")
    own: dict[str, Any] = {n: folders.get(n) or found_at(ask[n], folder) for n in names}
    trace = found_at(ask["trace"], folder)
    load: dict[str, Any] = (
        {"trace": trace}
        if trace
        else {k: ask[k] for k in ("input_tokens", "output_tokens", "request_rate")}
        | {"concurrency": ask["concurrency"] or None}
    )
    flags = ("gpu", "prefill_cluster", "prefix_tokens", "accepted_tokens", "ttft_ms", "tpot_ms",
             "e2e_ms", "percentile", "objective", "disaggregated", "overrides")  # fmt: skip
    request = serving_request(
        model=known_name(ask["model"], folder),
        num_gpus=ask["num_gpus"] or "auto",
        cluster=known_name(ask["cluster"], folder),
        prefill_gpus=ask["prefill_gpus"] or None,
        backend=",".join(ask["backends"]),
        **load,
        **{name: ask[name] for name in flags},
        **own,
    )
    return replace(
        request,
        precisions=tuple(ask["precisions"]),
        kv_dtypes=tuple(ask["kv_dtypes"]),
        longest_tokens=ask["longest_tokens"],
    )
