"""What a campaign leaves: measured rows, constants fitted to them, and the plan with all three."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoparallel import files
from autoparallel.calibration.profile_file import Profile, rounded, write_profile
from autoparallel.calibration.training import fit_family, timed_rows
from autoparallel.campaign.candidates import beliefs
from autoparallel.campaign.loop import Outcome
from autoparallel.constants import NORMAL_90
from autoparallel.envelope import PLAN_FILE
from autoparallel.layout import Layout
from autoparallel.measured.cases import read
from autoparallel.measured.rows import MeasuredRun, runs_text
from autoparallel.plan import Corrected, Measured, Plan, PlanEntry
from autoparallel.planning import estimate
from autoparallel.profiles import read_calibration
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.store import Trial
from autoparallel.profiling.study import noise
from autoparallel.ranking import setting
from autoparallel.request import TrainingRequest
from autoparallel.units import GIB

ROWS_FILE = "measured.csv"
PREDICTED_FILE = "plan.predicted.json"
_TIMED_MODES = ("job", "proxy")
"""Modes whose own steps are whole steps of the job that ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The plan after a campaign, and what was written beside it.

    Attributes:
        corrects: Whether the trials say anything of the plan's machine: runs on a CPU prove the
            way, not the ranking of a GPU cluster.
        bias: Median of measured over predicted step times; None without any.
    """

    plan: Plan
    files: tuple[Path, ...]
    corrects: bool
    bias: float | None


def recorded(run: Path, plan: Plan, request: TrainingRequest, outcome: Outcome) -> Recorded:
    """Write measured rows, constants and the plan into the run directory."""
    if not outcome.study.seen.measured and not outcome.study.seen.failed:
        return Recorded(plan=plan, files=(), corrects=False, bias=None)
    rows = [row for trial in _distinct(outcome.trials) if (row := measured_row(request, trial))]
    written = [files.write_text(run, ROWS_FILE, runs_text(rows))] if rows else []
    corrects = _corrects(request, outcome)
    corrected: dict[Layout, Corrected] = {}
    if corrects:
        written += _recalibrated(run, request, rows)
        corrected = _corrected(run, request, outcome)
    new = replace(plan, entries=_entries(plan, outcome, corrected))
    if not (run / PREDICTED_FILE).exists():
        written.append(files.write_text(run, PREDICTED_FILE, plan.text()))
    written.append(files.write_text(run, PLAN_FILE, new.text()))
    return Recorded(plan=new, files=tuple(written), corrects=corrects, bias=_bias(outcome))


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    """The trial with the most steps of every subject."""
    found: dict[str, Trial] = {}
    for trial in trials:
        known = found.get(trial.job.subject)
        if known is None or len(known.result.step_s) <= len(trial.result.step_s):
            found[trial.job.subject] = trial
    return list(found.values())


def _corrects(request: TrainingRequest, outcome: Outcome) -> bool:
    """Whether what was measured is the plan's own machine."""
    devices = {r.device for r in outcome.study.seen.measured.values()}
    return bool(devices) and (("cpu" in devices) == (request.cluster.gpu.generation == "cpu"))


def _bias(outcome: Outcome) -> float | None:
    measured = outcome.study.seen.measured
    ratios = [
        (r.iteration_s or 0.0) / (outcome.found[i].iteration_s or np.inf)
        for i, r in measured.items()
    ]
    return float(np.median(ratios)) if ratios else None


# --- rows of the measured schema -----------------------------------------------------------------


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
        suspect="" if result.device != "cpu" else "a CPU: proves the way, not the speed",
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


# --- re-calibration and the corrected plan -------------------------------------------------------


def _recalibrated(run: Path, request: TrainingRequest, rows: Sequence[MeasuredRun]) -> list[Path]:
    """Fit the constants to the timed rows, pulled to those of before; none without timed rows."""
    timed = timed_rows([read(row, request.config_path) for row in rows if row.iteration_s])
    known = setting(request).calibration
    if not timed.readings:
        return []
    family = str(timed.families[0])
    everything = np.ones(len(timed.readings), dtype=bool)
    fitted = fit_family(timed, family, everything, known.constants)
    assert fitted is not None
    found = replace(
        known,
        family=known.family,
        constants=fitted.constants,
        state="measured",
        borrowed_from="",
        rows=len(timed.readings),
        source=f"{ROWS_FILE}: {len(timed.readings)} trials, near {known.borrowed_from or family}",
    )
    profile = Profile(calibration=rounded(found), groups=tuple(dict.fromkeys(timed.data.groups)))
    path = write_profile(run / "profiles", profile)
    read_calibration.cache_clear()
    return [path]


def _corrected(run: Path, request: TrainingRequest, outcome: Outcome) -> dict[Layout, Corrected]:
    """Predictions under the new constants, then moved by what was measured."""
    fresh = replace(request, profiles_dir=str((run / "profiles").resolve()))
    if not (run / "profiles").is_dir():
        fresh = request
    again = [estimate(fresh, entry.layout).entry for entry in outcome.found]
    spread = setting(request).calibration.spread
    seen = outcome.study.seen
    told = {i: (r.iteration_s or 0.0, noise(r)) for i, r in seen.measured.items()}
    after = beliefs(again, spread).after(told)
    fits = np.array([entry.fits_probability or 0.0 for entry in again])
    fits[list(seen.measured)] = 1.0
    fits[[*seen.failed, *seen.pruned]] = 0.0
    chances = after.best_probability(fits)
    low, high = after.interval_s(NORMAL_90)
    return {
        entry.layout: Corrected(
            iteration_s=float(after.seconds()[i]),
            iteration_s_interval=(float(low[i]), float(high[i])),
            memory_bytes=entry.memory_bytes,
            fits_probability=float(fits[i]),
            best_probability=float(chances[i]),
        )
        for i, entry in enumerate(again)
    }


def _entries(
    plan: Plan, outcome: Outcome, corrected: dict[Layout, Corrected]
) -> tuple[PlanEntry, ...]:
    """The short list and whatever was tried beside it, best first by what is believed now."""
    measured = _measured(outcome)
    listed = {entry.layout: entry for entry in plan.entries}
    for entry in outcome.found:
        if entry.layout in measured:
            listed.setdefault(entry.layout, entry)
    found = [
        replace(entry, measured=measured.get(layout), corrected=corrected.get(layout))
        for layout, entry in listed.items()
    ]
    if corrected:
        found.sort(key=_order)
    return tuple(replace(entry, rank=i + 1) for i, entry in enumerate(found))


def _order(entry: PlanEntry) -> tuple[bool, float]:
    """What did not run is last; then by the corrected step time."""
    failed = entry.measured is not None and entry.measured.outcome != "ok"
    seconds = entry.corrected.iteration_s if entry.corrected else entry.iteration_s
    return failed, seconds or np.inf


def _measured(outcome: Outcome) -> dict[Layout, Measured]:
    """The `measured` block of every layout that was tried."""
    found: dict[Layout, Measured] = {}
    seen = outcome.study.seen
    for index, result in {**_failures(outcome), **seen.measured}.items():
        found[outcome.found[index].layout] = Measured(
            iteration_s=result.iteration_s if result.ok else None,
            iteration_s_mad=result.iteration_s_mad if result.ok else None,
            peak_memory_bytes=result.peak_memory_bytes,
            mode=result.mode,
            device=result.device,
            impl=result.impl,
            steps=len(result.step_s),
            outcome=result.outcome,
            trial=result.trial,
            versions=dict(result.versions),
        )
    return found


def _failures(outcome: Outcome) -> dict[int, Result]:
    """Candidate -> the result of the trial that did not run."""
    found: dict[int, Result] = {}
    for index in outcome.study.seen.failed:
        subjects = {job.subject for job in outcome.jobs.get(index, ())}
        for trial in outcome.trials:
            if trial.job.subject in subjects and not trial.result.ok:
                found[index] = trial.result
    return found
