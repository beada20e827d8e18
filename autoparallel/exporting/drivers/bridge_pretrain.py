"""Start a Megatron-Bridge 0.3.1 run: `torchrun bridge_pretrain.py CONFIG`.

CONFIG is YAML, one block a part of Bridge's ConfigContainer. `model_values` and `typed` only turn
names into the functions and dtypes that they stand for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml

DTYPE_FIELDS = ("params_dtype", "pipeline_dtype", "main_grads_dtype")


def typed(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a part, dtypes in place of their names."""
    return {k: getattr(torch, v) if k in DTYPE_FIELDS else v for k, v in values.items()}


def model_values(values: dict[str, Any]) -> dict[str, Any]:
    """The provider's fields, functions and enumerations in place of their names."""
    from megatron.core.activations import squared_relu
    from megatron.core.fusions.fused_bias_geglu import quick_gelu
    from megatron.core.transformer.enums import AttnBackend, CudaGraphScope

    functions = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "quick_gelu": quick_gelu,
        "squared_relu": squared_relu,
    }
    found = typed(values)
    found["activation_func"] = functions[values["activation_func"]]
    found["attention_backend"] = AttnBackend[values["attention_backend"]]
    if "cuda_graph_scope" in values:
        found["cuda_graph_scope"] = [CudaGraphScope[name] for name in values["cuda_graph_scope"]]
    if "window_size" in values:
        found["window_size"] = tuple(values["window_size"])
    return found


def container(settings: dict[str, dict[str, Any]]) -> Any:
    """The ConfigContainer of the settings."""
    from megatron.bridge.models.gpt_provider import GPTModelProvider
    from megatron.bridge.models.mla_provider import MLAModelProvider
    from megatron.bridge.training import config as parts
    from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
    from megatron.bridge.training.tokenizers.config import TokenizerConfig
    from megatron.core.datasets.utils import get_blend_from_list

    latent = settings["model"].get("multi_latent_attention", False)
    provider = MLAModelProvider if latent else GPTModelProvider
    dataset = dict(settings["dataset"])
    if blend := dataset.pop("blend", None):
        data = parts.GPTDatasetConfig(**dataset, blend=get_blend_from_list(blend))
    else:
        data = parts.MockGPTDatasetConfig(**dataset)
    return parts.ConfigContainer(
        model=provider(**model_values(settings["model"])),
        train=parts.TrainingConfig(**settings["train"]),
        optimizer=parts.OptimizerConfig(**typed(settings["optimizer"])),
        ddp=parts.DistributedDataParallelConfig(**settings["ddp"]),
        scheduler=parts.SchedulerConfig(**settings["scheduler"]),
        dataset=data,
        logger=parts.LoggerConfig(**settings["logger"]),
        tokenizer=TokenizerConfig(**settings["tokenizer"]),
        checkpoint=parts.CheckpointConfig(**settings["checkpoint"]),
        dist=parts.DistributedInitConfig(**settings["dist"]),
        rng=parts.RNGConfig(**settings["rng"]),
        mixed_precision=MixedPrecisionConfig(**typed(settings["mixed_precision"])),
    )


def main() -> None:
    """Build the configuration and train."""
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain

    settings = yaml.safe_load(Path(sys.argv[1]).read_text())
    pretrain(config=container(settings), forward_step_func=forward_step)


if __name__ == "__main__":
    main()
