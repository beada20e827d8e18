"""PyTorch FSDP2 through NeMo AutoModel 0.7.0: a recipe in YAML and the model's `config.json`.

AutoModel takes any Hugging Face architecture; the model is built from the exported `config.json`.

Source: NVIDIA-NeMo/Automodel v0.7.0 nemo_automodel/components/distributed/{config,mesh}.py,
components/distributed/pipelining/config.py, components/training/step_scheduler.py, and its
examples/llm_benchmark and examples/llm_pretrain.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from autoparallel.errors import bad_value
from autoparallel.exporting.hf_model import hf_config
from autoparallel.exporting.job import TrainingJob, stage_modules, stage_sizes
from autoparallel.exporting.program import Program, one_line
from autoparallel.exporting.refusal import (
    cannot,
    every_nth_layer,
    refuse_beside_fsdp2,
    refuse_prediction_layers,
)

VERSION = "NeMo AutoModel 0.7.0"

_SCHEDULES = {
    "1f1b": "1f1b",
    "interleaved": "interleaved1f1b",
    "bfs": "loopedbfs",
    "zb1p": "interleavedzerobubble",
}
_EXPERT_PARALLEL = ("deepseek_v3", "qwen3_moe", "gpt_oss")
"""Families whose experts AutoModel has an implementation of its own for."""
_NO_PIPELINE = ("gpt2", "nemotron")
"""Families whose modules have other names than AutoModel's pipeline splitter knows."""
_DATA = "nemo_automodel.components.datasets.llm"
_FP32_STATES = {"_target_": "torch.optim.AdamW", "fused": True}
_REMAINDERS = {
    "_target_": "transformer_engine.pytorch.optimizers.fused_adam.FusedAdam",
    "adam_w_mode": True,
    "bias_correction": True,
    "master_weights": True,
    "store_param_remainders": True,
    "exp_avg_dtype": "torch.bfloat16",
    "exp_avg_sq_dtype": "torch.bfloat16",
}
"""What `automodel` stands for: bf16 weights with 16-bit remainders, moments in bf16."""


def program(job: TrainingJob, prefix: str = "") -> Program:
    """The recipe, the model, and how AutoModel's own command starts under torchrun.

    Raises:
        ConfigError: a model or layout that AutoModel has no settings for.
    """
    name = f"{prefix}recipe.yaml"
    text = yaml.safe_dump(settings(job), sort_keys=False, width=100, allow_unicode=True)
    model = json.dumps(hf_config(job.model, job.seq_length), indent=2) + "\n"
    return Program(
        version=VERSION,
        files={name: f"# Written for {VERSION}.\n{text}", "config.json": model},
        before=('export AUTOPARALLEL_LAUNCH="$here"',),
        command=f'-m nemo_automodel.cli.app "$here/{name}"',
        environment={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    )


def settings(job: TrainingJob) -> dict[str, Any]:
    """The recipe as plain data."""
    _refuse(job)
    layout, run = job.layout, job.run
    pipelined = layout.pipeline_model_parallel_size > 1
    local = job.replica_batch_size if pipelined else layout.micro_batch_size
    return {
        "recipe": "TrainFinetuneRecipeForNextTokenPrediction",
        "seed": 1234,
        "step_scheduler": {
            "global_batch_size": job.global_batch_size,
            "local_batch_size": local,
            "num_epochs": 1,
            "max_steps": run.train_iters,
            "ckpt_every_steps": run.save_interval,
            "gc_every_steps": 10,
        },
        "dist_env": {"backend": "nccl", "timeout_minutes": run.distributed_timeout_minutes},
        "model": _model(job),
        "distributed": _distributed(job),
        "checkpoint": _checkpoint(job),
        "loss_fn": {"_target_": "nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy"},
        **_data(job, local),
        "optimizer": {
            **(_REMAINDERS if _keeps_remainders(job) else _FP32_STATES),
            "lr": run.lr,
            "betas": [run.adam_beta1, run.adam_beta2],
            "weight_decay": run.weight_decay,
        },
        "lr_scheduler": {
            "lr_decay_style": run.lr_decay_style,
            "lr_warmup_steps": run.warmup_iters,
            "min_lr": run.min_lr,
        },
    }


def _refuse(job: TrainingJob) -> None:
    layout, family = job.layout, hf_config(job.model, 1)["model_type"]
    refuse_beside_fsdp2(job, VERSION, _SCHEDULES)
    refuse_prediction_layers(job, VERSION)
    if layout.precision != "bf16":
        why = "its recipe here is bf16 with float32 gradients and master weights"
        raise cannot("prec", layout.precision, VERSION, why, "use prec=bf16")
    if layout.context_parallel_size > 1 and layout.cp_comm_type != "p2p":
        why = "it has ring attention only"
        raise cannot("cpcomm", layout.cp_comm_type, VERSION, why, "use cpcomm=p2p")
    if layout.pipeline_model_parallel_size > 1 and family in _NO_PIPELINE:
        why = f"it does not split the {family} family over a pipeline"
        raise cannot("pp", layout.pipeline_model_parallel_size, VERSION, why, "use pp1")
    _refuse_experts(job, family)


def _refuse_experts(job: TrainingJob, family: str) -> None:
    layout = job.layout
    ep, etp = layout.expert_model_parallel_size, layout.expert_tensor_parallel_size
    if ep > 1 and family not in _EXPERT_PARALLEL:
        why = f"expert parallelism is for {', '.join(_EXPERT_PARALLEL)}, this is {family}"
        raise cannot("ep", ep, VERSION, why, "use ep1")
    if job.model.num_moe_experts and etp > 1:
        raise cannot("etp", etp, VERSION, "it does not split experts", "use etp1")


def _model(job: TrainingJob) -> dict[str, Any]:
    """Built on the meta device from `config.json` beside the recipe; weights are random."""
    reader = {
        "_target_": "transformers.AutoConfig.from_pretrained",
        "pretrained_model_name_or_path": "${AUTOPARALLEL_LAUNCH}",
    }
    backend = {
        "_target_": "nemo_automodel.components.models.common.BackendConfig",
        "fake_balanced_gate": True,
    }
    return {
        "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_config",
        "config": reader,
        "torch_dtype": "bfloat16" if _keeps_remainders(job) else "float32",
        "attn_implementation": "sdpa",
        **({"backend": backend} if job.run.force_load_balancing and _own_experts(job) else {}),
    }


def _keeps_remainders(job: TrainingJob) -> bool:
    """Whether the layout is of the framework `automodel`; of `fsdp2` it has fp32 weights."""
    return job.layout.framework == "automodel"


def _own_experts(job: TrainingJob) -> bool:
    return hf_config(job.model, 1)["model_type"] in _EXPERT_PARALLEL


def _distributed(job: TrainingJob) -> dict[str, Any]:
    layout = job.layout
    dp, cp = job.data_parallel_size, layout.context_parallel_size
    shard = layout.shard_group_size or dp * cp
    if shard % cp:
        why = f"a sharding group there is whole groups of cp {cp}"
        raise cannot("shard", shard, VERSION, why, "use a multiple of cp")
    return {
        "strategy": "fsdp2",
        "dp_size": dp,
        "dp_replicate_size": dp * cp // shard,
        "tp_size": layout.tensor_model_parallel_size,
        "cp_size": cp,
        "pp_size": layout.pipeline_model_parallel_size,
        "ep_size": layout.expert_model_parallel_size,
        "sequence_parallel": layout.tensor_model_parallel_size > 1,
        "activation_checkpointing": _recompute(job),
        "reshard_after_forward": layout.zero_stage == 3,
        "enable_async_tensor_parallel": "tp" in layout.overlap,
        "enable_compile": "tp" in layout.overlap,
        "enable_fsdp2_prefetch": True,
        "defer_fsdp_grad_sync": False,
        **_pipeline(job),
    }


def _recompute(job: TrainingJob) -> str | bool:
    if job.layout.recompute_granularity == "selective":
        return "selective"
    nth = every_nth_layer(job, stage_sizes(job.model, job.layout), VERSION)
    if nth > 1:
        count = job.layout.recompute_num_layers
        why = "it recomputes every layer or none"
        raise cannot("recompute", f"full/block/{count}", VERSION, why, "use full/uniform/1")
    return "full" if nth else False


def _pipeline(job: TrainingJob) -> dict[str, Any]:
    """The schedule, and the modules of every virtual stage by name; rotary tables are on each."""
    layout = job.layout
    if layout.pipeline_model_parallel_size == 1:
        return {}
    ends = (["model.embed_tokens"], ["model.norm", "lm_head"])
    parts = stage_modules(job, "model.layers", *ends)
    custom = _own_experts(job)
    return {
        "pipeline": {
            "pp_schedule": _SCHEDULES[layout.schedule],
            "pp_microbatch_size": layout.micro_batch_size,
            "module_fqns_per_model_part": [[*part, "model.rotary_emb"] for part in parts],
            "patch_inner_model": not custom,
            "patch_causal_lm_model": not custom,
        }
    }


def _checkpoint(job: TrainingJob) -> dict[str, Any]:
    if not job.run.save:
        return {"enabled": False}
    return {"enabled": True, "checkpoint_dir": _plain("site.checkpoint_dir", job.run.save)}


def _data(job: TrainingJob, local_batch_size: int) -> dict[str, Any]:
    """Megatron's blend with its tokenizer, or random tokens in batches."""
    run = job.run
    if not run.data_path:
        dataset: dict[str, Any] = {
            "_target_": f"{_DATA}.mock_iterable_dataset.MockIterableDataset",
            "vocab_size": job.model.vocab_size,
            "seq_len": job.seq_length,
            "num_samples": 1_000_000,
            "batch_size": local_batch_size,
            "tokenizer": None,
        }
        loader: dict[str, Any] = {"_target_": "torch.utils.data.DataLoader", "batch_size": None}
        return {"dataset": dataset, "dataloader": loader}
    if not run.tokenizer_model:
        rule = "is empty, and AutoModel reads its tokenizer from a Hugging Face folder or name"
        raise bad_value("site.tokenizer_model", "", rule, "name one")
    reader = "nemo_automodel._transformers.auto_tokenizer.NeMoAutoTokenizer.from_pretrained"
    dataset = {
        "_target_": f"{_DATA}.megatron_dataset.MegatronPretraining",
        "paths": [_plain("site.data_path", path) for path in run.data_path],
        "tokenizer": {
            "_target_": reader,
            "pretrained_model_name_or_path": _plain("site.tokenizer_model", run.tokenizer_model),
        },
        "seq_length": job.seq_length,
        "split": "0.99, 0.01, 0.00",
        "splits_to_build": "train",
    }
    loader = {
        "_target_": "torchdata.stateful_dataloader.StatefulDataLoader",
        "collate_fn": "torch.utils.data.default_collate",
        "dataloader_type": "single",
    }
    return {"dataset": dataset, "dataloader": loader}


def _plain(field_name: str, text: str) -> str:
    """`text` without a dollar sign, which AutoModel would read as a variable of the environment."""
    if "$" in one_line(field_name, text):
        rule = f"holds a $, which {VERSION} replaces from the environment"
        raise bad_value(field_name, text, rule, "write the path out")
    return text
