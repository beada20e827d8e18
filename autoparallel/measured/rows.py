"""One measured run, as users and the scoreboard write it: a CSV row in Megatron's field names."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from autoparallel.errors import ProfileError, nearest, shown

Record = TypeVar("Record")

MAX_FILE_BYTES = 256 * 2**20
MOST = 1e12
"""Largest number that a cell may hold."""
REQUIRED = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "seq_length",
    "gpu",
    "num_gpus",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "micro_batch_size",
    "global_batch_size",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """One run. `None` or an empty string means the source does not say."""

    id: str = ""
    source: str = ""
    split_group: str = ""
    framework: str = ""
    model: str = ""
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int | None = None
    ffn_hidden_size: int | None = None
    swiglu: int | None = None
    vocab_size: int | None = None
    seq_length: int
    num_moe_experts: int | None = None
    moe_router_topk: int | None = None
    gpu: str
    num_gpus: int
    precision: str = ""
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int | None = None
    expert_model_parallel_size: int | None = None
    data_parallel_size: int | None = None
    zero_stage: int | None = None
    sequence_parallel: int | None = None
    micro_batch_size: int
    global_batch_size: int
    recompute: str = ""
    recompute_num_layers: int | None = None
    schedule: str = ""
    attention: str = ""
    iteration_s: float | None = None
    tokens_per_s_per_gpu: float | None = None
    peak_memory_gib: float | None = None
    memory_kind: str = ""
    memory_rank: str = ""
    out_of_memory: int | None = None
    kernels: str = ""
    compiled: int | None = None
    async_tensor_parallel: int | None = None
    grad_reduce_dtype: str = ""
    tied_embeddings: int | None = None
    zero_group_size: int | None = None
    interconnect: str = ""
    software_release: str = ""
    measured_allreduce_busbw_inter_gbps: float | None = None
    measured_allreduce_busbw_intra_gbps: float | None = None
    suspect: str = ""
    search_group: str = ""
    notes: str = ""

    @property
    def seconds(self) -> float | None:
        """Measured step time, from the tokens per second when only those are given."""
        if self.iteration_s:
            return self.iteration_s
        if not self.tokens_per_s_per_gpu:
            return None
        tokens = self.global_batch_size * self.seq_length
        return tokens / (self.tokens_per_s_per_gpu * self.num_gpus)


_TYPES: Mapping[str, Any] = get_type_hints(MeasuredRun)
COLUMNS = tuple(f.name for f in fields(MeasuredRun))


def runs_text(runs: Iterable[MeasuredRun]) -> str:
    """`runs` as the CSV that `read_runs` reads, unknown values empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        cells = {name: getattr(run, name) for name in COLUMNS}
        writer.writerow({name: "" if cell is None else cell for name, cell in cells.items()})
    return stream.getvalue()


def read_runs(path: str | Path) -> list[MeasuredRun]:
    """Read a file of measured runs.

    Raises:
        ProfileError: unreadable or oversized file, unknown or missing column, a cell that is not a
            finite number of the right kind, or a row that measures nothing.
    """
    return csv_records(Path(path), COLUMNS, REQUIRED, _run)


def csv_records(
    path: Path,
    known: Sequence[str],
    required: Sequence[str],
    read: Callable[[dict[str, Any], str], Record],
) -> list[Record]:
    """What `read` makes of every row of a CSV file, given its cells and where it stands.

    Raises:
        ProfileError: unreadable or oversized file, unknown, repeated or missing column, or what
            `read` refuses.
    """
    reader = csv_reader(path)
    try:
        check_columns(path, reader.fieldnames or [], known, required)
        return [read(row, f"{path} line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise ProfileError(f"{path} line {reader.line_num + 1}: is not CSV: {error}") from error


def csv_reader(path: Path) -> csv.DictReader[str]:
    """The rows of a CSV file, by column name.

    Raises:
        ProfileError: an unreadable or oversized file.
    """
    return csv.DictReader(io.StringIO(_text(path)), strict=True)


def _text(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise ProfileError(f"{path}: {size} bytes is over the limit of {MAX_FILE_BYTES}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror})") from error


def check_columns(
    path: Path, header: Sequence[str], known: Sequence[str], required: Sequence[str]
) -> None:
    """A header has every required column, no unknown one and none twice.

    Raises:
        ProfileError: it does not, with the column's name.
    """
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ProfileError(f"{path} line 1: the column {shown(twice)} is repeated in the header")
    for name in header:
        if name not in known:
            raise ProfileError(
                f"{path} line 1: unknown column {shown(name)}; {nearest(str(name), known)}"
            )
    if missing := [name for name in required if name not in header]:
        raise ProfileError(f"{path} line 1: required column {shown(missing[0])} is missing")


def _run(row: dict[str, Any], where: str) -> MeasuredRun:
    run = MeasuredRun(**row_values(row, where, _TYPES, REQUIRED, _MAY_BE_ZERO))
    if not (run.seconds or run.peak_memory_gib or run.out_of_memory):
        raise ProfileError(
            f"{where}: measures nothing; give iteration_s, tokens_per_s_per_gpu, peak_memory_gib "
            "or out_of_memory=1"
        )
    return run


_MAY_BE_ZERO = (
    "zero_stage",
    "sequence_parallel",
    "swiglu",
    "out_of_memory",
    "compiled",
    "async_tensor_parallel",
    "tied_embeddings",
    "recompute_num_layers",
    "num_moe_experts",
    "moe_router_topk",
)


def row_values(
    row: Mapping[str, str | None],
    where: str,
    types: Mapping[str, Any],
    required: Sequence[str],
    may_be_zero: Sequence[str],
) -> dict[str, Any]:
    """The cells of a row by column: text, or a number of the column's type, None where empty.

    Raises:
        ProfileError: a cell too many, an empty one that is required, or no number in range.
    """
    if None in row:
        raise ProfileError(f"{where}: more cells than the header has columns")
    values = {
        name: _cell(name, (cell or "").strip(), where, types[name], name in may_be_zero)
        for name, cell in row.items()
    }
    for name in required:
        if values[name] in (None, ""):
            raise ProfileError(f"{where}: {name} is empty but required")
    return values


def _cell(name: str, cell: str, where: str, kind: Any, may_be_zero: bool) -> object:
    if kind is str:
        return cell
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        raise ProfileError(f"{where}: {name} {shown(cell)} is not a number") from None
    least_ok = value >= 0 if may_be_zero else value > 0
    if not math.isfinite(value) or not least_ok or value > MOST:
        raise ProfileError(f"{where}: {name} {shown(cell)} is not a finite number in range")
    if kind in (float, float | None):
        return value
    if value != int(value):
        raise ProfileError(f"{where}: {name} {shown(cell)} is not a whole number")
    return int(value)
