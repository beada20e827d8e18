"""The jobs that stand for a layout, and one result made of theirs.

`job` is the layout itself. `proxy` runs fewer layers and replicas and is carried over to the whole
by the cost model's own ratio. `rank` runs one rank of every distinct pipeline stage in a made-up
world: its compute and memory are real, communication and bubble are the cost model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoparallel.counts import counted
from autoparallel.errors import bad_value
from autoparallel.layout import Layout
from autoparallel.model import Model
from autoparallel.plan import PlanEntry
from autoparallel.planning import estimate
from autoparallel.profiling.job import Job, Result, timing
from autoparallel.request import TrainingRequest

_COMMUNICATION = ("tp_comm_s", "cp_comm_s", "ep_comm_s", "dp_comm_s", "pp_comm_s")
_PREDICTED_WAITING = "communication and bubble are predicted, not measured"
_BUSY = ("compute_s", "recompute_s", "optimizer_s", "launch_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How layouts are tried.

    Attributes:
        name: `job`, `proxy` or `rank`.
        room: Ranks that fit at once, for `proxy`; 0 means as many as the layout has.
    """

    name: str
    room: int = 0


def jobs_of(request: TrainingRequest, base: Job, entry: PlanEntry, mode: Mode) -> tuple[Job, ...]:
    """The jobs to run for a layout.

    Args:
        request: What the plan is for.
        base: Settings that all jobs share: device, steps, time limits.
        entry: The layout.
        mode: Which way.

    Raises:
        ConfigError: no smaller job of this layout fits into the room.
    """
    whole = (
        replace(
            base,
            model=request.model,
            layout=entry.layout,
            num_gpus=request.num_gpus,
            global_batch_size=request.global_batch_size,
            seq_length=request.seq_length,
            mode=mode.name,
            rank=None,
        )
        if mode.name != "rank"
        else None
    )
    if whole is None:
        return _stage_jobs(request, base, entry.layout)
    return (_smaller(whole, mode.room),) if mode.name == "proxy" else (whole,)


def _stage_jobs(request: TrainingRequest, base: Job, layout: Layout) -> tuple[Job, ...]:
    """One rank of the first, a middle and the last pipeline stage, as far as they differ.

    Of a user's command also the world's last rank: Megatron-LM prints memory on the first rank of a
    stage and step times on the last of all (core_v0.16.1 megatron/training/utils.py,
    `report_memory` and `print_rank_last`).
    """
    stages = layout.pipeline_model_parallel_size
    per_stage = request.num_gpus // stages
    ranks = {stage * per_stage for stage in (0, min(1, stages - 1), stages - 1)}
    if base.command:
        ranks.add(request.num_gpus - 1)
    return tuple(
        replace(
            base,
            model=request.model,
            layout=layout,
            num_gpus=request.num_gpus,
            global_batch_size=request.global_batch_size,
            seq_length=request.seq_length,
            mode="rank",
            rank=rank,
        )
        for rank in sorted(ranks)
    )


def _smaller(whole: Job, room: int) -> Job:
    """The same layout with fewer replicas and, if it must be, fewer stages with their layers."""
    layout, dp = whole.layout, whole.data_parallel_size
    replicas = _fewest_replicas(layout, dp, bool(whole.model.num_moe_experts))
    limit = room or whole.num_gpus
    stages = layout.pipeline_model_parallel_size
    per_stage = layout.tensor_model_parallel_size * layout.context_parallel_size * replicas
    fitting = [p for p in range(1, stages + 1) if stages % p == 0 and p * per_stage <= limit]
    if not fitting:
        rule = f"needs {per_stage} ranks for one stage, and there is room for {limit}"
        raise bad_value("--mode", "proxy", rule, "use --mode rank")
    fewer = max(fitting)
    model = _shallower(whole.model, stages // fewer)
    chunks = layout.virtual_pipeline_model_parallel_size if fewer > 1 else 1
    return replace(
        whole,
        model=model,
        layout=replace(
            layout,
            pipeline_model_parallel_size=fewer,
            virtual_pipeline_model_parallel_size=chunks,
            schedule=layout.schedule if chunks > 1 else "1f1b",
            stage_layers=layout.stage_layers if fewer == stages else (),
        ),
        num_gpus=fewer * per_stage,
        global_batch_size=whole.global_batch_size * replicas // dp,
    )


def _fewest_replicas(layout: Layout, dp: int, experts: bool) -> int:
    """Replicas that the expert groups need at the least."""
    if not experts:
        return 1
    whole = layout.expert_model_parallel_size * layout.expert_tensor_parallel_size
    dense = layout.tensor_model_parallel_size * layout.context_parallel_size
    return next((n for n in range(1, dp + 1) if dp % n == 0 and dense * n % whole == 0), dp)


def _shallower(model: Model, times: int) -> Model:
    """`model` with its layers divided; leading dense layers stay while experts remain."""
    layers = max(model.num_layers // times, 1)
    dense = min(model.moe_first_dense_layers, max(layers - 1, 0))
    return replace(model, num_layers=layers, moe_first_dense_layers=dense)


def combined(
    request: TrainingRequest, entry: PlanEntry, jobs: Sequence[Job], results: Sequence[Result]
) -> Result:
    """What the jobs of a layout say of the layout itself."""
    if failed := next((r for r in results if r.outcome != "ok"), None):
        return failed
    if jobs[0].mode == "proxy":
        return _carried_over(request, entry, jobs[0], results[0])
    return _with_predicted_waiting(entry, jobs, results) if jobs[0].mode == "rank" else results[0]


def _carried_over(request: TrainingRequest, entry: PlanEntry, job: Job, result: Result) -> Result:
    """A proxy's time and memory, times what the cost model says the whole takes over it."""
    small = estimate(
        replace(
            request,
            model=job.model,
            num_gpus=job.num_gpus,
            global_batch_size=job.global_batch_size,
        ),
        job.layout,
    ).entry
    time_ratio = (entry.iteration_s or 0.0) / (small.iteration_s or float("nan"))
    room_ratio = (entry.memory_bytes or 0.0) / (small.memory_bytes or float("nan"))
    if not (time_ratio > 0 and room_ratio > 0):
        raise bad_value("--mode", "proxy", "has no legal smaller job here", "use --mode rank")
    whole = replace(job, num_gpus=request.num_gpus, global_batch_size=request.global_batch_size)
    note = (
        f"extrapolated from {counted(job.num_gpus, 'rank')} and "
        f"{counted(job.model.num_layers, 'layer')}: "
        f"time x {time_ratio:.4g}, memory x {room_ratio:.4g}"
    )
    return replace(
        result,
        **timing(whole, tuple(s * time_ratio for s in result.step_s)),
        peak_memory_bytes=_times(result.peak_memory_bytes, room_ratio),
        deviations=(*result.deviations, note),
    )


def _with_predicted_waiting(
    entry: PlanEntry, jobs: Sequence[Job], results: Sequence[Result]
) -> Result:
    """The slowest stage's measured work, with predicted communication and bubble around it."""
    parts = entry.parts or {}
    slowest = max(results, key=lambda r: r.iteration_s or 0.0)
    if slowest.iteration_s is None:
        return replace(slowest, outcome="invalid", message="no rank said how long a step takes")
    busy = sum(parts[name] for name in _BUSY)
    bubble = parts["bubble_s"] / busy if busy else 0.0
    waiting = sum(parts[name] for name in _COMMUNICATION)
    steps = tuple(s * (1 + bubble) + waiting for s in slowest.step_s)
    fullest = max(results, key=lambda r: r.peak_memory_bytes or 0.0)
    return replace(
        slowest,
        trial=jobs[0].trial,
        **timing(jobs[0], steps),
        device=slowest.device or fullest.device,
        peak_memory_bytes=fullest.peak_memory_bytes,
        memory_kind=fullest.memory_kind,
        ranks=tuple(report for r in results for report in r.ranks),
        deviations=(*slowest.deviations, *_untimed(results), _PREDICTED_WAITING),
    )


def _untimed(results: Sequence[Result]) -> tuple[str, ...]:
    """What is said where some ranks told their memory alone."""
    if all(r.ok for r in results):
        return ()
    return ("the step time is the last stage's: its log alone has one",)


def _times(value: float | None, ratio: float) -> float | None:
    return None if value is None else value * ratio
