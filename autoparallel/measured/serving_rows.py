"""One measured serving figure, as users and the scoreboard write it: a CSV row."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from autoparallel.errors import ProfileError
from autoparallel.measured.rows import csv_reader, csv_records, row_values

REQUIRED = ("framework_version", "model", "gpu", "isl", "osl", "metric", "value")
METRICS = ("ttft_ms", "tpot_ms", "throughput_tok_s_total", "tokens_s_per_gpu")
LATENCIES = ("ttft_ms", "tpot_ms")
"""Metrics of a closed loop, which need its concurrency."""
SIGNATURE = frozenset({"isl", "osl", "metric", "value"})
"""Columns that tell a file of serving figures from one of training runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRun:
    """One figure of one run. `None` or an empty string means the source does not say.

    Attributes:
        framework_version: Starts with the backend: `vllm 0.12.0`, `trtllm 1.0.0rc3`.
        isl, osl: Prompt and answer lengths in tokens.
        batch_or_concurrency: Clients of a closed loop; empty or text (`max(infinite rate)`) where
            the engine is given all requests at once.
        metric: One of `METRICS`, or one that is not scored; throughput counts output tokens.
        notes: `;`-separated words; `attn_dp=8`, `disagg`, and the mappings `DEP8` (attention copies
            and experts over 8 GPUs) and `TEP8` (tensor and expert parallel over 8) are read.
    """

    id: str = ""
    source: str = ""
    framework_version: str
    model: str
    gpu: str
    gpus: int | None = None
    precision: str = ""
    kv_dtype: str = ""
    tp: int | None = None
    pp: int | None = None
    ep: int | None = None
    isl: int
    osl: int
    batch_or_concurrency: str = ""
    metric: str
    value: float
    notes: str = ""

    @property
    def concurrency(self) -> float | None:
        """Clients of the closed loop; None at an infinite rate."""
        try:
            return float(self.batch_or_concurrency)
        except ValueError:
            return None

    @property
    def tensor_parallel(self) -> int:
        """Tensor parallel size of the attention layers; what the row leaves open is one replica."""
        if _mapped(self.notes, "DEP"):
            return 1
        return self.tp or max((self.gpus or 1) // self.pipeline_parallel, 1)

    @property
    def pipeline_parallel(self) -> int:
        """Pipeline stages."""
        return self.pp or 1

    @property
    def attention_copies(self) -> int:
        """Attention data parallel size, from the notes; 1 where they do not say."""
        return _mapped(self.notes, "DEP") or _noted(self.notes, "attn_dp")

    @property
    def expert_parallel(self) -> int:
        """Expert parallel size."""
        return self.ep or _mapped(self.notes, "DEP") or _mapped(self.notes, "TEP") or 1

    @property
    def mapping_stated(self) -> bool:
        """Whether the notes say how attention and experts share the GPUs."""
        return self.attention_copies > 1 or _mapped(self.notes, "TEP") > 0

    @property
    def replica_gpus(self) -> int:
        """GPUs of one replica."""
        return self.tensor_parallel * self.pipeline_parallel * self.attention_copies

    @property
    def num_gpus(self) -> int:
        """GPUs of the run."""
        return self.gpus or self.replica_gpus

    @property
    def disaggregated(self) -> bool:
        """Whether prefill and decode ran on GPUs of their own."""
        return any(word.strip().startswith("disagg") for word in self.notes.lower().split(";"))


def _noted(notes: str, name: str) -> int:
    for word in notes.split(";"):
        key, _, value = word.strip().partition("=")
        if key == name and value.isdigit():
            return max(int(value), 1)
    return 1


def _mapped(notes: str, mapping: str) -> int:
    """The size of a mapping word such as `DEP8`; 0 where the notes have none."""
    match = re.search(rf"(?<![A-Za-z]){mapping}(\d{{1,4}})(?!\d)", notes)
    return int(match[1]) if match else 0


_TYPES: Mapping[str, Any] = get_type_hints(ServingRun)
COLUMNS = tuple(f.name for f in fields(ServingRun))


def is_serving_file(path: str | Path) -> bool:
    """Whether the header is one of serving figures; what is not CSV is none.

    Raises:
        ProfileError: the file cannot be read.
    """
    try:
        return set(csv_reader(Path(path)).fieldnames or []) >= SIGNATURE
    except csv.Error:
        return False


def read_serving_runs(path: str | Path) -> list[ServingRun]:
    """Read a file of serving figures.

    Raises:
        ProfileError: unreadable or oversized file, unknown or missing column, or a cell that is
            not a finite number of the right kind.
    """
    return csv_records(Path(path), COLUMNS, REQUIRED, _run)


def _run(row: dict[str, Any], where: str) -> ServingRun:
    run = ServingRun(**row_values(row, where, _TYPES, REQUIRED, ("ep", "pp")))
    if run.concurrency is not None and not 1 <= run.concurrency <= 1e6:
        shown = f"batch_or_concurrency {run.batch_or_concurrency!r}"
        raise ProfileError(f"{where}: {shown} is not in 1 to 1000000")
    if run.metric in LATENCIES and run.concurrency is None:
        raise ProfileError(f"{where}: {run.metric} needs batch_or_concurrency, a number")
    return run
