"""Jobs that the exporters' tests write down, and the lists of settings that they may use."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoparallel import catalog
from autoparallel.exporting import Run, TrainingJob
from autoparallel.layout import Layout
from autoparallel.model import Model

LISTS = Path(__file__).parents[1] / "profiles" / "launch"


def keys(name: str) -> dict[str, Any]:
    """The settings of one framework, as `benchmarks/launch_keys.py` extracted them."""
    return json.loads((LISTS / f"{name}.json").read_text())


def model(name: str, **changes: Any) -> Model:
    """A model of the catalog, changed."""
    return replace(catalog.model(name), **changes)


def job(
    of: Model, words: str, gpus: int = 0, batch: int = 0, seq: int = 4096, **run: Any
) -> TrainingJob:
    """A job on just enough GPUs for eight replicas, with 64 micro-batches each."""
    layout = Layout.parse(words)
    gpus = gpus or 8 * layout.model_parallel_size * layout.expert_model_parallel_size
    batch = batch or 64 * layout.data_parallel_size(gpus) * layout.micro_batch_size
    return TrainingJob(
        model=of,
        layout=layout,
        num_gpus=gpus,
        global_batch_size=batch,
        seq_length=seq,
        run=Run(**run),
    )


def holds(annotation: str, value: object) -> bool:
    """Whether a value is of an annotated type: the plain types, their unions, lists, choices."""
    text = re.sub(r"Optional\[(.*)\]$", r"\1 | None", annotation.strip())
    if text.startswith("Union["):
        text = text[6:-1].replace(",", " |", 1)
    options = _split(text)
    return any(_is(option, value) for option in options)


def _split(text: str) -> list[str]:
    """The members of a union, brackets respected."""
    parts, depth, start = [], 0, 0
    for i, sign in enumerate(text):
        depth += (sign == "[") - (sign == "]")
        if sign == "|" and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def _is(kind: str, value: object) -> bool:
    if kind.startswith("Literal["):
        return value in [part.strip().strip("'\"") for part in kind[8:-1].split(",")]
    if kind.lower().startswith("list["):
        inner = kind[5:-1]
        return isinstance(value, list) and all(holds(inner, item) for item in value)
    plain = {"int": int, "float": int | float, "str": str, "bool": bool, "None": type(None)}
    if kind not in plain:
        return True  # a class of the framework's own
    return isinstance(value, plain[kind]) and (kind == "bool" or not isinstance(value, bool))


def assert_known(values: dict[str, Any], fields: dict[str, str], where: str) -> None:
    """Every key is a field, every value of its type."""
    for key, value in values.items():
        assert key in fields, f"{where}.{key}"
        assert holds(fields[key], value), f"{where}.{key} = {value!r} is no {fields[key]}"
