"""`candidates.parquet`: the kept candidates of a search as compact columns, one row a layout.

Knobs under Megatron's field names, predictions with their parts, and where a row comes from: `best`
(the best fitting ones, in order), `sample` (an even sample of all evaluated) or `all`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autoparallel import files
from autoparallel.cost.memory import Memory
from autoparallel.cost.step import StepTime
from autoparallel.layout import (
    CP_COMM_TYPES,
    GRANULARITIES,
    GRAPH_SCOPES,
    METHODS,
    OVERLAPS,
    PRECISIONS,
    RECOMPUTE_MODULES,
    SCHEDULES,
    Knobs,
)
from autoparallel.ranking import Evaluate, Ranked, Scores, Table, evaluated_blocks

FILE = "candidates.parquet"
ROW_GROUP = 1 << 17
_NUMBERS = {
    "tensor_model_parallel_size": "tp",
    "pipeline_model_parallel_size": "pp",
    "virtual_pipeline_model_parallel_size": "vpp",
    "microbatch_group_size_per_vp_stage": "group",
    "context_parallel_size": "cp",
    "expert_model_parallel_size": "ep",
    "expert_tensor_parallel_size": "etp",
    "micro_batch_size": "mbs",
    "data_parallel_size": "dp",
    "sequence_parallel": "sp",
    "zero_stage": "zero",
    "shard_group_size": "shard",
    "recompute_num_layers": "recompute_layers",
}
_WORDS = {
    "cp_comm_type": ("cp_comm", CP_COMM_TYPES),
    "recompute_granularity": ("granularity", GRANULARITIES),
    "recompute_method": ("method", METHODS),
    "schedule": ("schedule", SCHEDULES),
    "precision": ("precision", PRECISIONS),
    "cuda_graph_scope": ("graph", GRAPH_SCOPES),
}
_SETS = {"recompute_modules": ("modules", RECOMPUTE_MODULES), "overlap": ("overlap", OVERLAPS)}


def write_kept(folder: Path, result: Ranked) -> Path:
    """Write the best and the sample of a search; returns the path."""
    kept = ((result.best, "best"), (result.sample, "sample"))
    tables = [_arrow(table, kind) for table, kind in kept if table is not None]
    return _write(folder, tables)


def write_all(folder: Path, blocks: Iterable[Knobs], evaluate: Evaluate) -> Path:
    """Write every legal candidate, in the order of the space; returns the path."""
    scored = evaluated_blocks(blocks, evaluate)
    return _write(folder, (_arrow(Table(knobs=k, scores=s), "all") for k, s in scored))


def _write(folder: Path, tables: Iterable[pa.Table]) -> Path:
    buffer, writer = BytesIO(), None
    for table in tables:
        writer = writer or pq.ParquetWriter(buffer, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=ROW_GROUP)
    if writer is None:
        none = pa.Table.from_arrays([_dictionary([], ["best"])], names=["kept"])
        pq.write_table(none, buffer)
    else:
        writer.close()
    return files.write_bytes(folder, FILE, buffer.getvalue())


def _arrow(table: Table, kind: str) -> pa.Table:
    """A table's knobs, then its predictions."""
    rows, k = table.size, table.knobs

    def whole(value: Any) -> Any:
        return np.broadcast_to(np.asarray(value, dtype=np.float64), (rows,))

    columns: dict[str, Any] = {"kept": _dictionary(np.zeros(rows), [kind])}
    for name, knob in _NUMBERS.items():
        columns[name] = _integers(whole(getattr(k, knob)))
    for name, (knob, words) in _WORDS.items():
        columns[name] = _dictionary(whole(getattr(k, knob)), words)
    for name, (knob, words) in _SETS.items():
        columns[name] = _dictionary(whole(getattr(k, knob)), _sets(words))
    stages = [",".join(map(str, sizes)) for sizes in k.stage_table]
    columns["stage_layers"] = _dictionary(whole(k.stages), stages)
    columns["grad_reduce_dtype"] = _dictionary(whole(k.grad_bytes) == 4, ["bf16", "fp32"])
    columns["optimizer_offload_fraction"] = _floats(whole(k.offload))
    columns |= {name: _floats(whole(value)) for name, value in _predictions(table.scores)}
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))


def _sets(words: tuple[str, ...]) -> list[str]:
    """Every set of words, by its bit mask."""
    masks = range(1 << len(words))
    return ["+".join(word for i, word in enumerate(words) if mask >> i & 1) for mask in masks]


def _predictions(scores: Scores) -> Iterable[tuple[str, Any]]:
    for name in ("iteration_s", "memory_bytes", "fits_probability"):
        yield name, getattr(scores, name)
    for kind, record in ((StepTime, scores.step), (Memory, scores.memory)):
        for f in fields(kind):
            yield f.name, getattr(record, f.name)


# Arrays are made from their buffers: `pa.array` and `pa.table` import pandas when it is installed.


def _integers(values: Any) -> pa.Array:
    return _array(pa.int32(), np.asarray(values).astype(np.int32))


def _floats(values: Any) -> pa.Array:
    return _array(pa.float32(), np.asarray(values).astype(np.float32))


def _array(kind: pa.DataType, values: Any) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _dictionary(codes: Any, words: Sequence[str]) -> pa.DictionaryArray:
    texts = [word.encode() for word in words]
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
    known = pa.Array.from_buffers(pa.string(), len(texts), buffers)
    return pa.DictionaryArray.from_arrays(_integers(codes), known)
