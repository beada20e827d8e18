"""Launch files of a layout: what `search --out` and `export` write."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoparallel import files
from autoparallel.catalog import names
from autoparallel.errors import bad_value, nearest
from autoparallel.exporting.job import Run, TrainingJob
from autoparallel.framework import framework
from autoparallel.layout import Layout
from autoparallel.request import TrainingRequest

if TYPE_CHECKING:
    from autoparallel.exporting.targets import Exported


def launch_files(
    request: TrainingRequest, layout: Layout, to: str = "", launcher: str = "torchrun"
) -> tuple[str, Exported]:
    """The exporter's name, and the files that it and the launcher write for a layout.

    Args:
        request: The job and its site.
        layout: How it is laid out; its framework decides which exporters there are.
        to: The exporter; the framework's usual one when empty.
        launcher: What starts the nodes.

    Raises:
        ConfigError: an exporter that is not the framework's, or a job it cannot express.
    """
    from autoparallel.exporting.targets import exported

    name = _exporter(request, layout, to)
    per_node = request.cluster.gpus_per_node
    return name, exported(training_job(request, layout), name, launcher, request.site, per_node)


def write_launch_files(
    request: TrainingRequest,
    layout: Layout,
    folder: Path,
    to: str = "",
    launcher: str = "torchrun",
) -> list[Path]:
    """Write the launch files into `folder/launch/<exporter>/`; returns their paths."""
    name, found = launch_files(request, layout, to, launcher)
    return write_files(folder, name, found)


def write_files(folder: Path, name: str, found: Exported) -> list[Path]:
    """Write what was exported, scripts executable; returns the paths."""
    written = []
    for file, text in found.files.items():
        path = files.write_text(folder, f"launch/{name}/{file}", text)
        if text.startswith("#!"):
            path.chmod(path.stat().st_mode | 0o111)
        written.append(path)
    return written


def _exporter(request: TrainingRequest, layout: Layout, to: str) -> str:
    """The exporter asked for, if it is one of the layout's framework; else the usual one."""
    from autoparallel.exporting.targets import TARGETS

    where = request.config_path
    known = framework(layout.framework, where).exporters
    if not known:
        able = [name for name in names("framework", where) if framework(name, where).exporters]
        hint = f"{', '.join(able)} have some"
        raise bad_value("framework", layout.framework, "has no exporter", hint)
    if not to:
        return known[0]
    if to not in TARGETS:
        raise bad_value("--to", to, "is not an exporter", nearest(to, TARGETS))
    if to not in known:
        rule = f"does not write layouts of {layout.framework}, {' and '.join(known)} can"
        raise bad_value("--to", to, rule, "search again with the framework that it writes")
    return to


def training_job(request: TrainingRequest, layout: Layout) -> TrainingJob:
    """The request's job under a layout, for as long as the site's data and tokens allow."""
    return TrainingJob(
        model=request.model,
        layout=layout,
        num_gpus=request.num_gpus,
        global_batch_size=request.global_batch_size,
        seq_length=request.seq_length,
        generation=request.cluster.gpu.generation,
        domain_gpus=request.cluster.nvlink_domain_gpus,
        run=_run(request),
    )


def _run(request: TrainingRequest) -> Run:
    """The site's data, tokenizer and checkpoint folder, as far as it names them.

    With data the run is as long as the request's tokens, without it a short one on mock data.
    """
    site = request.site
    named: dict[str, Any] = {}
    if site.tokenizer_type:
        named["tokenizer_type"] = site.tokenizer_type
    if site.data_path and request.tokens:
        step_tokens = request.global_batch_size * request.seq_length
        named["train_iters"] = math.ceil(request.tokens / step_tokens)
    return Run(
        data_path=site.data_path,
        tokenizer_model=site.tokenizer_model,
        save=site.checkpoint_dir,
        **named,
    )
