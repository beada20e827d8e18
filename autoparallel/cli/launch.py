"""Launch files of a layout: what `search --out` and `export` write."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from autoparallel import files
from autoparallel.errors import bad_value
from autoparallel.exporting import megatron_lm
from autoparallel.exporting.megatron_lm import Run
from autoparallel.framework import framework
from autoparallel.layout import Layout
from autoparallel.request import TrainingRequest


def write_launch_files(request: TrainingRequest, layout: Layout, folder: Path) -> list[Path]:
    """Write `launch/megatron-lm/args.txt` and `run.sh` into `folder`; returns their paths.

    Raises:
        ConfigError: the framework, the layout or part of a node has no launch files.
    """
    if framework(layout.framework, request.config_path).exporter != "megatron-lm":
        rule = "has no exporter yet"
        raise bad_value("framework", layout.framework, rule, "megatron-core has one")
    job = (request.num_gpus, request.global_batch_size, request.seq_length)
    arguments = megatron_lm.arguments(request.model, layout, *job, _run(request))
    generation = request.cluster.gpu.generation
    environment = {**megatron_lm.environment(layout, generation), **request.site.environment}
    per_node = min(request.cluster.gpus_per_node, request.num_gpus)
    nodes, rest = divmod(request.num_gpus, per_node)
    if rest:
        rule = f"is not whole nodes of {per_node} GPUs, which torchrun starts"
        raise bad_value("num_gpus", request.num_gpus, rule, f"use {nodes * per_node}")
    contents = {
        "args.txt": megatron_lm.text(arguments),
        "run.sh": megatron_lm.script(environment, nodes, per_node, "args.txt"),
    }
    place = "launch/megatron-lm"
    return [files.write_text(folder, f"{place}/{name}", text) for name, text in contents.items()]


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
