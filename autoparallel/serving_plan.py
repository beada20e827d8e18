"""The saved result of a serving search: what `infer --json` prints and its `plan.json` holds.

The same envelope as a training plan with `kind` `serving`; each entry is one deployment. Strict
both ways, as `plan`: the text is the file, byte for byte, and a file that is not whole is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoparallel import files
from autoparallel import strict_json as check
from autoparallel.errors import ConfigError, bad_value
from autoparallel.provenance import PROVENANCE, Provenance

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
PLAN_FILE = "plan.json"
MAX_BYTES = 64 * 1024 * 1024
MODES = ("aggregated", "disaggregated")
ROLES = ("aggregated", "prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One kind of engine instance of a deployment.

    Attributes:
        replicas: Instances of this kind.
        gpus: GPUs of one instance: the product of its tensor, pipeline and attention-data sizes.
        expert_model_parallel_size: GPUs of a stage that split the experts whole.
        max_batch_size: Sequences one attention copy runs at once.
        max_num_tokens: Token budget of a step; longer prompts are prefilled in chunks.
    """

    role: str
    replicas: int
    gpus: int
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    expert_model_parallel_size: int
    attention_data_parallel_size: int
    max_batch_size: int
    max_num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingEntry:
    """One deployment of the short list with what a user of it sees.

    Attributes:
        concurrency: Requests in the system, all replicas together, mean.
        load: Requests completed a second.
        ttft_ms, tpot_ms: Means at that load, and their percentiles.
        tokens_per_s_per_gpu: Output tokens over the GPUs of the workers.
        tokens_per_s_per_user: 1000 / `tpot_ms`.
        memory_bytes: On the fullest GPU with every running request at its longest.
        usd_per_million_tokens: Of output, all GPUs of the workers paid; None without a price.
        binding_constraint: What stops the plan from doing better.
        parts: Seconds by cause: of one decode step, of one prompt step, and of what is between.
    """

    rank: int | None
    backend: str
    mode: str
    workers: tuple[Worker, ...]
    precision: str
    kv_dtype: str
    concurrency: float
    load: float | None
    ttft_ms: float | None
    ttft_ms_p50: float | None
    ttft_ms_p90: float | None
    ttft_ms_p99: float | None
    tpot_ms: float | None
    tpot_ms_p50: float | None
    tpot_ms_p90: float | None
    tpot_ms_p99: float | None
    tokens_per_s_per_gpu: float | None
    tokens_per_s_per_user: float | None
    memory_bytes: float | None
    fits_probability: float | None
    usd_per_million_tokens: float | None
    binding_constraint: str | None
    parts: dict[str, float] | None

    @property
    def gpus(self) -> int:
        """GPUs of all workers."""
        return sum(worker.replicas * worker.gpus for worker in self.workers)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of the whole deployment."""
        return (self.tokens_per_s_per_gpu or 0.0) * self.gpus

    def to_json(self) -> dict[str, Any]:
        """The entry as plain data in the contract's key order."""
        return {name: check.plain(name, value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """A ranked short list of deployments with what was asked and what was left out."""

    schema_version: int = SCHEMA_VERSION
    kind: str = "serving"
    request: dict[str, Any]
    provenance: Provenance
    considered: int
    legal: int
    evaluated: int
    feasible: int
    pruned: dict[str, int]
    search_s: float
    entries: tuple[ServingEntry, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data: stable key order, finite numbers, null for what is absent."""
        head = asdict(replace(self, entries=()))
        del head["entries"]
        plan = [entry.to_json() for entry in self.entries]
        return {name: check.plain(name, value) for name, value in head.items()} | {"plan": plan}

    def text(self) -> str:
        """What `--json` prints and `plan.json` holds."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"

    def write(self, directory: Path) -> Path:
        """Write `plan.json` into `directory`, atomically; returns its path."""
        return files.write_text(directory, PLAN_FILE, self.text())

    def to_frame(self) -> pd.DataFrame:
        """One row a deployment; workers and parts become columns (`decode_replicas`)."""
        import pandas as pd

        return pd.DataFrame([flat(entry) for entry in self.entries])


def flat(entry: ServingEntry) -> dict[str, Any]:
    """An entry as one level of columns."""
    row = entry.to_json()
    workers, parts = row.pop("workers"), row.pop("parts") or {}
    for worker in workers:
        role = worker.pop("role")
        row |= {f"{role}_{name}": value for name, value in worker.items()}
    return row | parts


def load_serving_plan(path: Path | str) -> ServingPlan:
    """Read a saved serving plan, from the file or from its run directory.

    Raises:
        ConfigError: no such file, or one that is not a whole serving plan of this schema.
    """
    place = Path(path)
    place = place / PLAN_FILE if "\0" not in str(path) and place.is_dir() else place
    try:
        return _read(check.parsed(files.read_text(place, MAX_BYTES)))
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def plan_kind(path: Path | str) -> str:
    """`training`, `serving` or whatever a saved plan says it is.

    Raises:
        ConfigError: a file that cannot be read as JSON.
    """
    place = Path(path)
    place = place / PLAN_FILE if "\0" not in str(path) and place.is_dir() else place
    try:
        data = check.mapping("", check.parsed(files.read_text(place, MAX_BYTES)))
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    return str(data.get("kind"))


def _one_of(known: tuple[str, ...]) -> check.Check:
    def read(path: str, value: Any) -> str:
        if value not in known:
            raise check.wrong(path, value, f"is not one of {', '.join(known)}")
        return str(value)

    return read


_WORKER: dict[str, check.Check] = {
    f.name: _one_of(ROLES) if f.name == "role" else check.count for f in fields(Worker)
}


def _rows(read: Callable[[str, Any], Any]) -> check.Check:
    return lambda path, value: tuple(
        read(f"{path}[{i}]", item) for i, item in enumerate(check.sequence(path, value))
    )


_TEXTS = ("backend", "precision", "kv_dtype")
_ENTRY: dict[str, check.Check] = {
    f.name: check.or_null(check.number) for f in fields(ServingEntry)
} | {
    "rank": check.or_null(check.count),
    **dict.fromkeys(_TEXTS, check.text),
    "mode": _one_of(MODES),
    "workers": _rows(check.built(Worker, _WORKER)),
    "concurrency": check.number,
    "fits_probability": check.or_null(check.fraction),
    "binding_constraint": check.or_null(check.text),
    "parts": check.or_null(check.map_of(check.number, "_s")),
}
_PLAN: dict[str, check.Check] = {
    "schema_version": check.count,
    "kind": check.text,
    "request": check.mapping,
    "provenance": check.built(Provenance, PROVENANCE),
    **dict.fromkeys(("considered", "legal", "evaluated", "feasible"), check.count),
    "pruned": check.map_of(check.count),
    "search_s": check.number,
    "plan": _rows(check.built(ServingEntry, _ENTRY)),
}


def _read(data: Any) -> ServingPlan:
    found = check.mapping("", data)
    if found.get("kind") != "serving":
        raise check.wrong("kind", found.get("kind"), "is not a kind this reader knows: serving")
    version = check.count("schema_version", found.get("schema_version"))
    if version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        hint = "upgrade autoparallel-planner" if newer else "run the search again"
        raise bad_value("schema_version", version, f"is not {SCHEMA_VERSION}", hint)
    values = check.record("", found, _PLAN)
    return ServingPlan(**{("entries" if k == "plan" else k): v for k, v in values.items()})
