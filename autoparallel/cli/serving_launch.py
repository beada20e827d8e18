"""Files of a serving plan: what `infer --out` and `export` write."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from autoparallel import files
from autoparallel.errors import ConfigError, bad_value, nearest
from autoparallel.exporting import dynamo, kubernetes, load_test, sglang, trtllm, vllm
from autoparallel.exporting.serving import Deployment, deployment
from autoparallel.request import ServingRequest
from autoparallel.serving_plan import ServingEntry, flat

if TYPE_CHECKING:
    from autoparallel.serving_planning import Solved

TARGETS = {
    "vllm": vllm.files,
    "sglang": sglang.files,
    "trtllm": trtllm.files,
    "dynamo": dynamo.files,
    "kubernetes": kubernetes.files,
}
BACKENDS = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm"}
PARETO_FILE = "pareto.csv"


def write_serving_files(
    request: ServingRequest, entry: ServingEntry, folder: Path, target: str | None = None
) -> list[Path]:
    """Write the launch files of a deployment into `folder`; returns their paths.

    Args:
        request: What was asked.
        entry: The chosen entry of the plan.
        folder: Run directory.
        target: One of `TARGETS`; None writes all that this backend has, and says which it lacks.

    Raises:
        ConfigError: a target that is unknown or cannot launch this deployment.
    """
    deployed = _deployment(request, entry)
    own = BACKENDS[entry.backend]
    if target is not None and target not in TARGETS:
        raise bad_value("--to", target, "is not a target", nearest(target, TARGETS))
    if target in BACKENDS.values() and target != own:
        rule = f"cannot launch a deployment of {entry.backend}"
        raise bad_value("--to", target, rule, f"use {own}, dynamo or kubernetes")
    written = []
    for name in (own, "dynamo", "kubernetes") if target is None else (target,):
        try:
            texts = TARGETS[name](deployed)
        except ConfigError as error:
            if target is not None:
                raise
            typer.echo(f"no launch files for {name}: {error}", err=True)
            continue
        written += [files.write_text(folder, f"launch/{name}/{n}", t) for n, t in texts.items()]
    texts = load_test.files(deployed)
    return [*written, *(files.write_text(folder, f"launch/{n}", t) for n, t in texts.items())]


def _deployment(request: ServingRequest, entry: ServingEntry) -> Deployment:
    from autoparallel.inference import backend
    from autoparallel.model import published_precision

    fraction = backend(entry.backend).memory_fraction
    return deployment(request, entry, fraction, published_precision(request.model))


def write_pareto(folder: Path, solved: Solved) -> str:
    """Write the front of tokens/s/GPU against tokens/s/user; returns the file's name."""
    from autoparallel.serving_planning import front_entries

    rows = [flat(entry) for entry in front_entries(solved)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(folder, PARETO_FILE, stream.getvalue())
    return PARETO_FILE
