"""torchtitan v0.2.2: a TOML, the model's arguments, and the module that registers both.

torchtitan trains models of its own zoo, by name. `titan_model.py`, beside the TOML, registers the
exact model under the name `autoparallel` from `model.json`, and `autoparallel_mock` with random
tokens in place of a dataset and a tokenizer.

Source: pytorch/torchtitan v0.2.2 torchtitan/config/job_config.py and torchtitan/train.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from autoparallel.errors import bad_value
from autoparallel.exporting.job import TrainingJob, stage_modules, stage_sizes
from autoparallel.exporting.program import Program, one_line
from autoparallel.exporting.refusal import cannot, every_nth_layer, refuse_beside_fsdp2
from autoparallel.exporting.torchtitan_model import family_arguments

VERSION = "torchtitan v0.2.2"

_SCHEDULES = {
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "bfs": "LoopedBFS",
    "zb1p": "InterleavedZeroBubble",
}
_FLOAT8 = {"fp8-tensorwise": "tensorwise"}
_ROTATE = {"p2p": "alltoall", "all_gather": "allgather"}
"""Ring attention passes keys and values on by an all-to-all of neighbours."""


def program(job: TrainingJob, prefix: str = "") -> Program:
    """The TOML, the model and the registering module, and how `torchtitan.train` starts.

    Raises:
        ConfigError: a model or layout that v0.2.2 has no settings for.
    """
    family, arguments = family_arguments(job.model, VERSION)
    name = f"{prefix}config.toml"
    module = files("autoparallel.exporting.drivers").joinpath("titan_model.py").read_text("utf-8")
    described = {"family": family, "arguments": arguments}
    return Program(
        version=VERSION,
        files={
            name: toml_text(settings(job)),
            "model.json": json.dumps(described, indent=2) + "\n",
            "titan_model.py": module,
        },
        before=('export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"',),
        command=f'-m torchtitan.train --job.config_file "$here/{name}"',
        environment={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    )


def settings(job: TrainingJob) -> dict[str, dict[str, Any]]:
    """Section -> key -> value of the TOML."""
    _refuse(job)
    return {
        "job": {"description": f"{job.model.name} {job.layout}", "dump_folder": "outputs"},
        "experimental": {"custom_import": "titan_model"},
        "model": _model(job),
        "training": _training(job),
        "parallelism": _parallelism(job),
        "activation_checkpoint": _recompute(job),
        "compile": {"enable": _compiled(job)},
        **_quantize(job),
        "optimizer": {
            "name": "AdamW",
            "lr": job.run.lr,
            "beta1": job.run.adam_beta1,
            "beta2": job.run.adam_beta2,
            "weight_decay": job.run.weight_decay,
        },
        "lr_scheduler": {
            "warmup_steps": job.run.warmup_iters,
            "decay_type": job.run.lr_decay_style,
            "min_lr_factor": job.run.min_lr / job.run.lr,
        },
        "metrics": {"log_freq": 1},
        "checkpoint": _checkpoint(job),
        "comm": {"init_timeout_seconds": 60 * job.run.distributed_timeout_minutes},
        "debug": {"moe_force_load_balance": job.run.force_load_balancing},
    }


def _refuse(job: TrainingJob) -> None:
    layout = job.layout
    refuse_beside_fsdp2(job, VERSION, _SCHEDULES)
    if layout.grad_reduce_dtype != "fp32":
        why = "it reduces gradients in float32 only"
        raise cannot("grad", layout.grad_reduce_dtype, VERSION, why, "use grad=fp32")
    if layout.precision not in ("bf16", "mxfp8", *_FLOAT8):
        why = "it has bf16, tensorwise float8 and mxfp8"
        raise cannot("prec", layout.precision, VERSION, why)
    if layout.context_parallel_size > 1 and layout.cp_comm_type not in _ROTATE:
        why = "it has ring attention (p2p) and all_gather"
        raise cannot("cpcomm", layout.cp_comm_type, VERSION, why, "use cpcomm=p2p")


def _model(job: TrainingJob) -> dict[str, Any]:
    """The registered model; converters swap its linear layers for low-precision ones."""
    run = job.run
    found: dict[str, Any] = {
        "name": "autoparallel" if run.data_path else "autoparallel_mock",
        "flavor": "exported",
    }
    if run.data_path:
        if not run.tokenizer_model:
            rule = "is empty, and torchtitan reads its tokenizer from a Hugging Face folder"
            raise bad_value("site.tokenizer_model", "", rule, "name the folder")
        found["hf_assets_path"] = one_line("site.tokenizer_model", run.tokenizer_model)
    converters = {"bf16": [], "mxfp8": ["quantize.linear.mx"]}
    return found | {"converters": converters.get(job.layout.precision, ["quantize.linear.float8"])}


def _training(job: TrainingJob) -> dict[str, Any]:
    """A pipeline takes all micro-batches of a step at once, else they are accumulated."""
    layout, run = job.layout, job.run
    pipelined = layout.pipeline_model_parallel_size > 1
    return {
        **_dataset(job),
        "local_batch_size": job.replica_batch_size if pipelined else layout.micro_batch_size,
        "global_batch_size": job.global_batch_size,
        "seq_len": job.seq_length,
        "max_norm": run.clip_grad,
        "steps": run.train_iters,
        "dtype": "float32",
        "mixed_precision_param": "bfloat16",
        "mixed_precision_reduce": "float32",
    }


def _dataset(job: TrainingJob) -> dict[str, Any]:
    paths = job.run.data_path
    if not paths:
        return {}
    if len(paths) > 1:
        rule = f"is a blend, and {VERSION} reads one Hugging Face dataset"
        raise bad_value(
            "site.data_path", " ".join(paths), rule, "name one folder with a text field"
        )
    return {"dataset": "local", "dataset_path": one_line("site.data_path", paths[0])}


def _parallelism(job: TrainingJob) -> dict[str, Any]:
    layout = job.layout
    dp, cp = job.data_parallel_size, layout.context_parallel_size
    shard = layout.shard_group_size or dp * cp
    if shard % cp:
        why = f"a sharding group there is whole groups of cp {cp}"
        raise cannot("shard", shard, VERSION, why, "use a multiple of cp")
    return {
        "data_parallel_replicate_degree": dp * cp // shard,
        "data_parallel_shard_degree": shard // cp,
        "fsdp_reshard_after_forward": "always" if layout.zero_stage == 3 else "never",
        "tensor_parallel_degree": layout.tensor_model_parallel_size,
        "enable_async_tensor_parallel": "tp" in layout.overlap,
        "context_parallel_degree": cp,
        **({"context_parallel_rotate_method": _ROTATE[layout.cp_comm_type]} if cp > 1 else {}),
        **_pipeline(job),
        **_experts(job),
    }


def _pipeline(job: TrainingJob) -> dict[str, Any]:
    """The schedule, and the modules of every virtual stage by name."""
    layout = job.layout
    if layout.pipeline_model_parallel_size == 1:
        return {}
    return {
        "pipeline_parallel_degree": layout.pipeline_model_parallel_size,
        "pipeline_parallel_schedule": _SCHEDULES[layout.schedule],
        "pipeline_parallel_microbatch_size": layout.micro_batch_size,
        "module_fqns_per_model_part": stage_modules(
            job, "layers", ["tok_embeddings"], ["norm", "output"]
        ),
    }


def _experts(job: TrainingJob) -> dict[str, Any]:
    layout = job.layout
    ep, etp = layout.expert_model_parallel_size, layout.expert_tensor_parallel_size
    if not job.model.num_moe_experts:
        return {}
    if etp not in (1, layout.tensor_model_parallel_size):
        why = f"the experts' tensor parallel size is 1 or tp {layout.tensor_model_parallel_size}"
        raise cannot("etp", etp, VERSION, why)
    return {"expert_parallel_degree": ep, "expert_tensor_parallel_degree": etp}


def _recompute(job: TrainingJob) -> dict[str, Any]:
    """Whole layers, one in n, or (for any selective layout) its own choice operator by operator."""
    if job.layout.recompute_granularity == "selective":
        return {"mode": "selective", "selective_ac_option": "op"}
    nth = every_nth_layer(job, stage_sizes(job.model, job.layout), VERSION)
    if nth > 1:
        return {"mode": "selective", "selective_ac_option": str(nth)}
    return {"mode": "full" if nth else "none"}


def _compiled(job: TrainingJob) -> bool:
    """Low precision and asynchronous tensor parallelism need it; predictions are without it."""
    return job.layout.precision != "bf16" or "tp" in job.layout.overlap


def _quantize(job: TrainingJob) -> dict[str, Any]:
    precision = job.layout.precision
    if precision in _FLOAT8:
        return {"quantize.linear.float8": {"recipe_name": _FLOAT8[precision]}}
    if precision == "mxfp8":
        return {"quantize.linear.mx": {"recipe_name": "mxfp8_cublas"}}
    return {}


def _checkpoint(job: TrainingJob) -> dict[str, Any]:
    run = job.run
    if not run.save:
        return {"enable": False}
    folder = one_line("site.checkpoint_dir", run.save)
    return {"enable": True, "folder": folder, "interval": run.save_interval}


def toml_text(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """TOML of plain values: text, numbers, true and false, and lists of them."""
    blocks = []
    for section, values in sections.items():
        lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
        blocks.append("\n".join([f"[{section}]", *lines]))
    head = f"# Written for {VERSION}; later versions have no TOML.\n"
    return head + "\n\n".join(blocks) + "\n"


def _toml(value: object) -> str:
    """A value of TOML; JSON writes text, numbers, booleans and lists the same way.

    A lone exception is DEL, which TOML wants escaped.
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
