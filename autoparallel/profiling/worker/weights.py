"""Initial weights that do not depend on the layout, so that losses of layouts can be compared.

Every weight is drawn whole from a seed of its name in the unsplit model, then cut as Megatron cuts
it: layers by their number in the whole model, experts by their number among all, matrices along
their partitioned dimension.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import torch
from megatron.core import parallel_state

from autoparallel.profiling.job import Job

_STD = 0.02
_LAYER = re.compile(r"decoder\.layers\.\d+")
_EXPERT = re.compile(r"local_experts\.(\d+)\.")


def fill(chunk: Any, job: Job) -> None:
    """Set the matrices of one chunk; vectors keep their ones and zeros."""
    numbers = {
        name: module.layer_number
        for name, module in chunk.named_modules()
        if _LAYER.fullmatch(name) and hasattr(module, "layer_number")
    }
    with torch.no_grad():
        for name, parameter in chunk.named_parameters():
            if parameter.dim() > 1:
                whole = _whole_name(name, numbers, job)
                gated = job.model.gated_linear_unit and "linear_fc1" in name
                parameter.copy_(_part(whole, parameter, gated))


def _whole_name(name: str, numbers: dict[str, int], job: Job) -> str:
    """The name the parameter has in the model that is not split; tied matrices are one."""
    if name == "output_layer.weight" and not job.model.untie_embeddings_and_output_weights:
        return "embedding.word_embeddings.weight"
    if layer := _LAYER.match(name):
        name = f"layer{numbers[layer[0]]}{name[layer.end() :]}"
    if expert := _EXPERT.search(name):
        held = job.model.num_moe_experts // job.layout.expert_model_parallel_size
        first = parallel_state.get_expert_model_parallel_rank() * held
        name = _EXPERT.sub(f"expert{first + int(expert[1])}.", name)
    return name


def _part(name: str, parameter: Any, gated: bool) -> Any:
    """This rank's part of the whole matrix; a gated one is two matrices, cut apart."""
    expert = not getattr(parameter, "allreduce", True)
    size, rank = _place(expert)
    split = getattr(parameter, "tensor_model_parallel", False) and size > 1
    shape = list(parameter.shape)
    dimension = parameter.partition_dim if split else 0
    if split:
        shape[dimension] *= size
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    whole = torch.randn(shape, generator=generator) * _STD
    halves = whole.chunk(2, dim=0) if gated and dimension == 0 else (whole,)
    parts = [half.chunk(size, dim=dimension)[rank] if split else half for half in halves]
    return torch.cat(parts, dim=0) if len(parts) > 1 else parts[0]


def _place(expert: bool) -> tuple[int, int]:
    """Size and rank of the tensor-parallel group that cuts a matrix."""
    if expert:
        return (
            parallel_state.get_expert_tensor_parallel_world_size(),
            parallel_state.get_expert_tensor_parallel_rank(),
        )
    return (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
