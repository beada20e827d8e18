"""What a sweep keeps of one case, and how it is found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from autoparallel import files
from autoparallel import strict_json as check
from autoparallel.counts import counted
from autoparallel.errors import AutoparallelError, ConfigError
from autoparallel.planning import searched, solved
from autoparallel.ranking.spare import better_with_fewer
from autoparallel.request import TrainingRequest
from autoparallel.sweep.cases import SweepCase

SCHEMA_VERSION = 1
MAX_BYTES = 1 << 20
STATES = ("ok", "nothing_fits", "not_legal", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """The answer to one case; numbers are null where there is no layout.

    Attributes:
        state: One of `STATES`.
        tokens_per_s: Of the whole job.
        free_memory_fraction: Share of the GPU's memory that the layout leaves.
        use_gpus: A smaller number of GPUs that is faster than all of them; null when none is.
        message: Why there is no layout.
    """

    id: str
    model: str
    cluster: str
    framework: str
    precision: str
    num_gpus: int
    global_batch_size: int | None
    seq_length: int | None
    state: str
    usd_per_gpu_hour: float | None = None
    layout: str | None = None
    iteration_s: float | None = None
    tokens_per_s: float | None = None
    model_flops_utilization: float | None = None
    memory_bytes: float | None = None
    free_memory_fraction: float | None = None
    fits_probability: float | None = None
    days: float | None = None
    cost_usd: float | None = None
    energy_kwh: float | None = None
    co2_kg: float | None = None
    use_gpus: int | None = None
    use_gpus_iteration_s: float | None = None
    search_s: float | None = None
    message: str = ""

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours of the whole run."""
        return None if self.days is None else self.days * 24 * self.num_gpus

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {name: check.plain(name, value) for name, value in asdict(self).items()}


def searched_case(case: SweepCase) -> SweepResult:
    """Search one case; whatever is wrong with it alone becomes its result."""
    if case.request is None:
        return _without(case, "error", case.error)
    try:
        return _found(case, case.request)
    except AutoparallelError as error:
        return _without(case, "error", str(error))


def _named(case: SweepCase) -> dict[str, Any]:
    values = case.values
    price = case.request.cluster.usd_per_gpu_hour if case.request else None
    texts = {k: str(values[k] or "") for k in ("model", "cluster", "framework", "precision")}
    numbers = {k: values[k] for k in ("num_gpus", "global_batch_size", "seq_length")}
    if case.request is not None:
        texts["model"] = case.request.model.name
    return {"id": case.id, **texts, **numbers, "usd_per_gpu_hour": price}


def _without(case: SweepCase, state: str, message: str, **more: Any) -> SweepResult:
    return SweepResult(**_named(case), state=state, message=message, **more)


def _found(case: SweepCase, request: TrainingRequest) -> SweepResult:
    plan, _, _ = searched(request, top=1)
    best = plan.entries[0] if plan.entries else None
    spare = better_with_fewer(request, best.iteration_s if best else None, solved)
    fewer: dict[str, Any] = {}
    if spare is not None:
        fewer = {"use_gpus": spare.num_gpus, "use_gpus_iteration_s": spare.iteration_s}
    if best is None or best.iteration_s is None or best.memory_bytes is None:
        state = "nothing_fits" if plan.legal else "not_legal"
        rules = ", ".join(f"{rule} {count:,}" for rule, count in list(plan.pruned.items())[:3])
        none = f"none of {counted(plan.legal, 'legal layout')} fits"
        text = none if plan.legal else f"by rule: {rules}"
        return _without(case, state, text, search_s=plan.search_s, **fewer)
    tokens = request.global_batch_size * request.seq_length
    return SweepResult(
        **_named(case),
        state="ok",
        layout=str(best.layout),
        iteration_s=best.iteration_s,
        tokens_per_s=tokens / best.iteration_s,
        model_flops_utilization=best.model_flops_utilization,
        memory_bytes=best.memory_bytes,
        free_memory_fraction=1 - best.memory_bytes / request.cluster.gpu.memory_bytes,
        fits_probability=best.fits_probability,
        days=best.days,
        cost_usd=best.cost_usd,
        energy_kwh=best.energy_kwh,
        co2_kg=best.co2_kg,
        search_s=plan.search_s,
        **fewer,
    )


def save(result: SweepResult, folder: Path) -> Path:
    """Write `cases/<id>.json`, whole or not at all."""
    values = {"schema_version": SCHEMA_VERSION, **result.to_json()}
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    return files.write_text(folder, f"cases/{result.id}.json", text)


def load(folder: Path, name: str) -> SweepResult | None:
    """The saved result of a case; None when there is none, or none of this version."""
    path = folder / "cases" / f"{name}.json"
    if not path.is_file():
        return None
    try:
        return from_json(check.mapping("", check.parsed(files.read_text(path, MAX_BYTES))), name)
    except ConfigError:
        return None


def from_json(values: Mapping[str, Any], name: str) -> SweepResult | None:
    """A result of this version for the case `name`, else None."""
    rest = dict(values)
    known = {f.name for f in fields(SweepResult)}
    if rest.pop("schema_version", None) != SCHEMA_VERSION or rest.keys() != known:
        return None
    usable = rest["id"] == name and rest["state"] in STATES
    return SweepResult(**rest) if usable else None
