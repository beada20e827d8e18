"""Process groups, model chunks, gradients and optimizer of one rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.transformer.module import Float16Module

from autoparallel.profiling.job import Job
from autoparallel.profiling.worker import weights
from autoparallel.profiling.worker.attention import LocalAttention, SdpaAttention
from autoparallel.profiling.worker.config import (
    data_parallel_config,
    optimizer_config,
    padded_vocabulary,
    transformer_config,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What one rank trains: its chunks of the model, wrapped, and their optimizer."""

    config: Any
    chunks: list[Any]
    optimizer: Any

    @property
    def parameters(self) -> int:
        """Held by this rank."""
        return sum(p.numel() for chunk in self.chunks for p in chunk.parameters())


def start_groups(job: Job) -> None:
    """Megatron's process groups of the layout.

    `init_process_group`'s own time limit does not reach them, so it is given again.
    """
    layout = job.layout
    chunks = layout.virtual_pipeline_model_parallel_size
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        context_parallel_size=layout.context_parallel_size,
        expert_model_parallel_size=layout.expert_model_parallel_size,
        expert_tensor_parallel_size=layout.expert_tensor_parallel_size,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=job.collective_timeout_s / 60,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(job.seed)


def network(job: Job, device: Any, impl: str) -> Network:
    """The model of this rank, ready for its first step."""
    cuda = device.type == "cuda"
    config = transformer_config(job, cuda=cuda, impl=impl)
    count = job.layout.virtual_pipeline_model_parallel_size
    chunks = []
    for index in range(count):
        chunk = _chunk(job, config, impl, index if count > 1 else None).to(device)
        if job.comparable:
            weights.fill(chunk, job)
        half = config.bf16 or config.fp16
        chunks.append(Float16Module(config, chunk) if half else chunk)
    wrapped = [
        DistributedDataParallel(config, data_parallel_config(job), chunk, disable_bucketing=i > 0)
        for i, chunk in enumerate(chunks)
    ]
    _connect(config, wrapped, job)
    optimizer = get_megatron_optimizer(
        optimizer_config(job), wrapped, use_gloo_process_groups=False
    )
    config.grad_scale_func = optimizer.scale_loss
    return Network(config=config, chunks=wrapped, optimizer=optimizer)


def _chunk(job: Job, config: Any, impl: str, vp_stage: int | None) -> Any:
    """One chunk of the model: all of it, or what one virtual stage holds."""
    model = job.model
    where = {"ignore_virtual": False, "vp_stage": vp_stage} if vp_stage is not None else {}
    stage = {"vp_stage": vp_stage} if vp_stage is not None else {}
    return GPTModel(
        config=config,
        transformer_layer_spec=_layers(job, config, impl, vp_stage),
        vocab_size=padded_vocabulary(model, job.layout),
        max_sequence_length=max(job.seq_length, model.max_position_embeddings),
        pre_process=parallel_state.is_pipeline_first_stage(**where),
        post_process=parallel_state.is_pipeline_last_stage(**where),
        share_embeddings_and_output_weights=not model.untie_embeddings_and_output_weights,
        position_embedding_type=model.position_embedding_type,
        rotary_base=int(model.rotary_base),
        **stage,
    )


def _layers(job: Job, config: Any, impl: str, vp_stage: int | None) -> Any:
    """The layers of a chunk, dense or of experts, with the attention that `impl` names."""
    te = impl == "te"
    norm = job.model.normalization
    block = get_gpt_decoder_block_spec(config, te, normalization=norm, vp_stage=vp_stage)
    if not te:
        attention = SdpaAttention if impl == "sdpa" else LocalAttention
        for layer in block.layer_specs:
            layer.submodules.self_attention.submodules.core_attention = attention
    return block


def _connect(config: Any, wrapped: list[Any], job: Job) -> None:
    """How the schedule reaches gradient reduction."""
    if "grad" in job.layout.overlap:
        hooks = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = hooks if len(hooks) > 1 else hooks[0]
    config.finalize_model_grads_func = finalize_model_grads
    for chunk in wrapped:
        chunk.broadcast_params()
