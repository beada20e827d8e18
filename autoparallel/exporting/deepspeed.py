"""DeepSpeed 0.19.8: its JSON, the model's Hugging Face `config.json`, and a training program.

DeepSpeed is a library: `deepspeed_train.py`, beside the JSON, builds the model, gives it to
`deepspeed.initialize` and trains it on random tokens or on a tokenized dataset.

Source: deepspeedai/DeepSpeed v0.19.8 deepspeed/runtime/{config,constants}.py,
deepspeed/runtime/zero/{config,offload_config}.py, deepspeed/runtime/tensor_parallel/config.py.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from autoparallel.errors import bad_value
from autoparallel.exporting.hf_model import hf_config
from autoparallel.exporting.job import TrainingJob, stage_sizes
from autoparallel.exporting.program import Program, one_line
from autoparallel.exporting.refusal import cannot, every_nth_layer, refuse_prediction_layers

VERSION = "DeepSpeed 0.19.8"

BUCKET_ELEMENTS = 500_000_000
"""Elements of one reduction or gathering: DeepSpeed's own default."""


def program(job: TrainingJob, prefix: str = "") -> Program:
    """The engine's JSON, the run's JSON, the model, and the program that reads them.

    Raises:
        ConfigError: a model or layout that DeepSpeed has no settings for.
    """
    engine, run = f"{prefix}ds_config.json", f"{prefix}run.json"
    driver = files("autoparallel.exporting.drivers").joinpath("deepspeed_train.py")
    return Program(
        version=VERSION,
        files={
            engine: _text(engine_settings(job)),
            run: _text(run_settings(job)),
            "config.json": _text(hf_config(job.model, job.seq_length)),
            "deepspeed_train.py": driver.read_text("utf-8"),
        },
        command=f'"$here/deepspeed_train.py" "$here/{engine}" "$here/{run}"',
        environment={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    )


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def engine_settings(job: TrainingJob) -> dict[str, Any]:
    """The configuration that `deepspeed.initialize` takes."""
    _refuse(job)
    layout, run = job.layout, job.run
    half = "fp16" if layout.precision == "fp16" else "bf16"
    return {
        "train_batch_size": job.global_batch_size,
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": job.replica_batch_size // layout.micro_batch_size,
        half: {"enabled": True},
        "data_types": {"grad_accum_dtype": layout.grad_reduce_dtype},
        "communication_data_type": layout.grad_reduce_dtype,
        "zero_optimization": _zero(job),
        **_tensor_parallel(job),
        "gradient_clipping": run.clip_grad,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": run.lr,
                "betas": [run.adam_beta1, run.adam_beta2],
                "weight_decay": run.weight_decay,
            },
        },
        "scheduler": {
            "type": "WarmupCosineLR",
            "params": {
                "total_num_steps": run.train_iters,
                "warmup_num_steps": run.warmup_iters,
                "cos_min_ratio": run.min_lr / run.lr,
            },
        },
        "steps_per_print": 1,
        "wall_clock_breakdown": False,
    }


def run_settings(job: TrainingJob) -> dict[str, Any]:
    """What the training program reads: data, length, recomputation, checkpoints."""
    run = job.run
    if len(run.data_path) > 1:
        rule = "is a blend, and the training program reads one tokenized Hugging Face dataset"
        hint = "name one folder of datasets.save_to_disk with a column input_ids"
        raise bad_value("site.data_path", " ".join(run.data_path), rule, hint)
    data = one_line("site.data_path", run.data_path[0]) if run.data_path else None
    return {
        "steps": run.train_iters,
        "seq_length": job.seq_length,
        "data": data,
        "recompute": every_nth_layer(job, stage_sizes(job.model, job.layout), VERSION),
        "save": one_line("site.checkpoint_dir", run.save) if run.save else None,
        "save_interval": run.save_interval,
    }


def _refuse(job: TrainingJob) -> None:
    refuse_prediction_layers(job, VERSION)
    layout = job.layout
    alone = {
        "pp": layout.pipeline_model_parallel_size,
        "cp": layout.context_parallel_size,
        "ep": layout.expert_model_parallel_size,
    }
    for word, size in alone.items():
        if size > 1:
            why = "the exported program splits the data and single matrices only"
            raise cannot(word, size, VERSION, why, f"use {word}1")
    if layout.tensor_model_parallel_size > 1 and layout.zero_stage == 3:
        why = "tensor parallelism there goes with zero 0 to 2"
        raise cannot("tp", layout.tensor_model_parallel_size, VERSION, why, "use zero2 or tp1")
    if layout.sequence_parallel:
        why = "it keeps whole sequences between the matrices"
        raise cannot("sp", "on", VERSION, why, "leave sp out")
    if layout.precision not in ("bf16", "fp16"):
        why = "it has bf16 and fp16"
        raise cannot("prec", layout.precision, VERSION, why, "use prec=bf16")
    if layout.recompute_granularity == "selective":
        why = "Hugging Face models recompute whole layers"
        shown = "+".join(layout.recompute_modules)
        raise cannot("recompute", shown, VERSION, why, "use recompute=full or none")
    if layout.recompute_granularity == "full" and layout.recompute_method == "block":
        why = "Hugging Face models recompute every layer or none"
        shown = f"full/block/{layout.recompute_num_layers}"
        raise cannot("recompute", shown, VERSION, why, "use recompute=full/uniform/1")
    if layout.cuda_graph_scope != "none" or set(layout.overlap) & {"tp", "moe"}:
        why = "it has neither CUDA graphs nor overlap inside a layer"
        raise cannot("graph, overlap", str(layout), VERSION, why, "leave them out")
    if layout.shard_group_size:
        why = "it shards the optimizer over all replicas"
        raise cannot("shard", layout.shard_group_size, VERSION, why, "leave shard out")


def _zero(job: TrainingJob) -> dict[str, Any]:
    """Stage, buckets, overlap and offload."""
    layout, stage = job.layout, job.layout.zero_stage
    found: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": "grad" in layout.overlap,
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET_ELEMENTS,
    }
    if stage < 3:
        found |= {"reduce_scatter": stage > 0, "allgather_bucket_size": BUCKET_ELEMENTS}
    else:
        width = job.model.hidden_size
        # The sizes that Hugging Face's own "auto" takes, from the width of the model.
        found |= {
            "stage3_prefetch_bucket_size": int(0.9 * width * width) if _prefetches(job) else 0,
            "stage3_param_persistence_threshold": 10 * width,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    if layout.optimizer_offload_fraction:
        found["offload_optimizer"] = _offload(job)
    return found


def _prefetches(job: TrainingJob) -> bool:
    return "param" in job.layout.overlap


def _offload(job: TrainingJob) -> dict[str, Any]:
    """Part of the optimizer on the host is for ZeRO 3 only (ZeRO-Offload++)."""
    fraction, stage = job.layout.optimizer_offload_fraction, job.layout.zero_stage
    if stage == 0 or (fraction < 1 and stage < 3):
        why = "the host takes the whole optimizer under zero 1 and 2, a part under zero 3"
        raise cannot("offload", fraction, VERSION, why, "use offload=opt1 or zero3")
    return {"device": "cpu", "pin_memory": True, **({"ratio": fraction} if stage == 3 else {})}


def _tensor_parallel(job: TrainingJob) -> dict[str, Any]:
    tp = job.layout.tensor_model_parallel_size
    return {"tensor_parallel": {"autotp_size": tp}} if tp > 1 else {}
