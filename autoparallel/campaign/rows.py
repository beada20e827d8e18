"""Trials as rows of the measured schema, which `validate` and `calibrate` take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoparallel.measured.rows import MeasuredRun
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.store import Trial
from autoparallel.request import TrainingRequest
from autoparallel.units import GIB

_TIMED_MODES = ("job", "proxy")
"""Modes whose own steps are whole steps of the job that ran."""
_CPU = "a CPU: proves the way, not the speed"


def measured_rows(request: TrainingRequest, trials: Sequence[Trial]) -> list[MeasuredRun]:
    """A row of every subject: of its trial with the most steps."""
    found: dict[str, Trial] = {}
    for trial in trials:
        known = found.get(trial.job.subject)
        if known is None or len(known.result.step_s) <= len(trial.result.step_s):
            found[trial.job.subject] = trial
    return [row for trial in found.values() if (row := measured_row(request, trial))]


def measured_row(request: TrainingRequest, trial: Trial) -> MeasuredRun | None:
    """A trial as a row for `validate` and `calibrate`; None when it measured nothing they take.

    A rank of a made-up world has no step time, only memory; a CPU has no allocator to ask.
    """
    job, result = trial.job, trial.result
    timed = result.ok and job.mode in _TIMED_MODES
    kind = result.memory_kind if result.memory_kind in ("allocated", "reserved", "device") else ""
    memory = result.peak_memory_bytes if kind else None
    failed = result.outcome == "out_of_memory"
    if not (timed or memory or failed):
        return None
    return MeasuredRun(
        **_model_cells(job),
        **_layout_cells(job),
        id=f"trial-{result.trial}",
        source=f"autoparallel profile, {result.started_at}",
        split_group=f"profile-{request.model.name}-{request.cluster.gpu.name}",
        search_group=f"profile-{request.model.name}-{job.num_gpus}-{job.mode}",
        framework=request.framework,
        gpu=request.cluster.gpu.name,
        iteration_s=result.iteration_s if timed else None,
        peak_memory_gib=memory / GIB if memory else None,
        memory_kind=kind,
        memory_rank="max" if memory else "",
        out_of_memory=int(failed),
        attention="unfused" if result.impl == "local" else "flash",
        kernels=result.impl,
        software_release="",
        suspect=_CPU if "cpu" in (job.device, result.device) else "",
        notes=_notes(job, result),
    )


def _model_cells(job: Job) -> dict[str, Any]:
    model = job.model
    return {
        "model": model.name,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "ffn_hidden_size": model.moe_ffn_hidden_size or model.ffn_hidden_size,
        "swiglu": int(model.gated_linear_unit),
        "vocab_size": model.vocab_size,
        "seq_length": job.seq_length,
        "num_moe_experts": model.num_moe_experts or None,
        "moe_router_topk": model.moe_router_topk or None,
        "tied_embeddings": int(not model.untie_embeddings_and_output_weights),
    }


def _layout_cells(job: Job) -> dict[str, Any]:
    layout = job.layout
    chunks = layout.virtual_pipeline_model_parallel_size
    full = layout.recompute_granularity == "full"
    block = full and layout.recompute_method == "block"
    return {
        "num_gpus": job.num_gpus,
        "precision": layout.precision,
        "tensor_model_parallel_size": layout.tensor_model_parallel_size,
        "pipeline_model_parallel_size": layout.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": chunks if chunks > 1 else None,
        "context_parallel_size": layout.context_parallel_size,
        "expert_model_parallel_size": layout.expert_model_parallel_size,
        "data_parallel_size": job.data_parallel_size,
        "zero_stage": layout.zero_stage,
        "sequence_parallel": int(layout.sequence_parallel),
        "micro_batch_size": layout.micro_batch_size,
        "global_batch_size": job.global_batch_size,
        "recompute": layout.recompute_granularity,
        "recompute_num_layers": layout.recompute_num_layers if block else None,
        "schedule": layout.schedule,
        "grad_reduce_dtype": layout.grad_reduce_dtype,
    }


def _notes(job: Job, result: Result) -> str:
    expert = f"ETP {job.layout.expert_tensor_parallel_size} | " if job.model.num_moe_experts else ""
    words = (f"mode {job.mode}", f"impl {result.impl}", str(job.layout), *result.deviations)
    return expert + " | ".join(words)
