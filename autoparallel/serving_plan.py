"""The saved result of a serving search: what `infer --json` prints and its `plan.json` holds.

The same envelope as a training plan with `kind` `serving`; each entry is one deployment. Strict
both ways, as `plan`: the text is the file, byte for byte, and a file that is not whole is refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoparallel import strict_json as check
from autoparallel.envelope import Envelope, envelope_values, read_envelope

if TYPE_CHECKING:
    import pandas as pd

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
class ServingPlan(Envelope):
    """A ranked short list of deployments with what was asked and what was left out."""

    kind: str = "serving"
    entries: tuple[ServingEntry, ...]

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
    return read_envelope(path, lambda data: ServingPlan(**envelope_values(data, "serving", _entry)))


_WORKER: dict[str, check.Check] = {
    f.name: check.choice(*ROLES) if f.name == "role" else check.count for f in fields(Worker)
}


_TEXTS = ("backend", "precision", "kv_dtype")
_ENTRY: dict[str, check.Check] = {
    f.name: check.or_null(check.number) for f in fields(ServingEntry)
} | {
    "rank": check.or_null(check.count),
    **dict.fromkeys(_TEXTS, check.text),
    "mode": check.choice(*MODES),
    "workers": check.list_of(check.built(Worker, _WORKER)),
    "concurrency": check.number,
    "fits_probability": check.or_null(check.fraction),
    "binding_constraint": check.or_null(check.text),
    "parts": check.or_null(check.map_of(check.number, "_s")),
}
_entry = check.built(ServingEntry, _ENTRY)
