"""Planning: a request in, a `Plan` or an `Estimate` out.

The whole way down in one place: space -> cost -> ranking -> the saved records.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoparallel.constants import FITS, NORMAL_90, MemoryConstants
from autoparallel.cost.goodput import run
from autoparallel.cost.memory import PARTS
from autoparallel.cost.neighbours import doubt
from autoparallel.cost.step import StepTime, interval_s, part_shares
from autoparallel.cost.unique import gathered
from autoparallel.errors import bad_value
from autoparallel.framework import framework
from autoparallel.layout import PRECISIONS, Knobs, Layout
from autoparallel.model import flops_per_token
from autoparallel.plan import Estimate, IllegalReason, Origin, Place, Plan, PlanEntry
from autoparallel.profiles import Calibration
from autoparallel.provenance import provenance
from autoparallel.ranking import (
    Ranked,
    Scores,
    Setting,
    Table,
    best_probability,
    cost_model,
    evaluated_blocks,
    objective_column,
    ranked,
    sampled_times,
    setting,
    short_list,
)
from autoparallel.request import TrainingRequest
from autoparallel.request.records import MAX_TOP, whole
from autoparallel.rules import explain
from autoparallel.space import Candidates, SpaceSpec

TOP = 10


def search(request: TrainingRequest, *, top: int = TOP) -> Plan:
    """The best layouts of a request, best first."""
    return searched(request, top=top)[0]


def searched(request: TrainingRequest, *, top: int = TOP) -> tuple[Plan, Ranked, Setting]:
    """The plan, with everything the search kept and the setting it ran in."""
    start = time.perf_counter()
    top = whole("top", top, 1, MAX_TOP)
    where = setting(request)
    found = candidates_of(request, where)
    result = ranked(found, cost_model(where), request.objective)
    entries = _entries(where, result.best, top) if result.best else ()
    plan = Plan(
        request=request.to_mapping(),
        provenance=provenance(),
        considered=found.considered,
        legal=result.evaluated,
        evaluated=result.evaluated,
        feasible=result.feasible,
        pruned=dict(sorted(found.pruned.items(), key=lambda item: -item[1])),
        search_s=time.perf_counter() - start,
        entries=entries,
    )
    return plan, result, where


def checked(request: TrainingRequest) -> TrainingRequest:
    """The request, once every name in it is known to the rooms that use it.

    Raises:
        ConfigError: a precision, framework, folder, space or baseline that cannot be used.
    """
    if request.precision not in PRECISIONS:
        rule = "is not a precision"
        raise bad_value("precision", request.precision, rule, "one of " + ", ".join(PRECISIONS))
    for name in ("config_dir", "profiles_dir"):
        if (folder := getattr(request, name)) and not Path(folder).is_dir():
            raise bad_value(name, folder, "is not a folder", f"give --{name.replace('_', '-')}")
    framework(request.framework, request.config_path)
    SpaceSpec.from_mapping(request.space)
    if request.baseline:
        Layout.parse(request.baseline)
    return request


def candidates_of(request: TrainingRequest, where: Setting) -> Candidates:
    """The legal candidates of a request; knobs that change the mathematics only when allowed."""
    spec = SpaceSpec.from_mapping(request.space)
    if not request.allow_numerics and not any("space." in o for o in request.overrides):
        spec = spec.execution_knobs()
    return Candidates(spec, request.model, request.cluster, where.framework, request)


def solved(request: TrainingRequest) -> tuple[Setting, Ranked]:
    """What a search keeps, without the records of a plan."""
    where = setting(request)
    return where, ranked(candidates_of(request, where), cost_model(where), request.objective)


def estimate(request: TrainingRequest, layout: Layout, *, among: Ranked | None = None) -> Estimate:
    """What one layout costs, whether it is legal, and its place among all candidates.

    Args:
        request: The job.
        layout: Any layout, inside the request's space or not.
        among: The kept candidates of a search of this request, which save searching again.
    """
    request, layout = same_framework(request, layout)
    where = setting(request)
    one = where.row(layout)
    broken = illegal_reasons(where, one)
    if broken:
        return Estimate(entry=_empty_entry(request, layout), legal=False, illegal_reasons=broken)
    scores = cost_model(where)(one)
    entry = _entry(where, layout, one, scores, 0, rank=None, best=None)
    return Estimate(entry=entry, legal=True, place=_place(request, where, scores, among))


def written(text: str, request: TrainingRequest) -> Layout:
    """A layout as somebody writes it for a job: in the job's precision unless it names another.

    Raises:
        ConfigError: an unknown, repeated or malformed word.
    """
    return Layout.parse(text, precision=request.precision)


def same_framework(request: TrainingRequest, layout: Layout) -> tuple[TrainingRequest, Layout]:
    """Both under one framework: the layout's when it names one, else the request's."""
    if layout.framework == Layout().framework:
        return request, replace(layout, framework=request.framework)
    return checked(replace(request, framework=layout.framework)), layout


def illegal_reasons(where: Setting, one: Knobs) -> tuple[IllegalReason, ...]:
    """Every rule that a layout breaks."""
    broken = explain(where.rule_case(one), 0)
    return tuple(IllegalReason(rule=v.rule, fields=v.fields, message=v.message) for v in broken)


def _place(request: TrainingRequest, where: Setting, scores: Scores, among: Ranked | None) -> Place:
    """Rank of a scored layout among the fitting candidates (1 = nothing is better)."""
    own = float(objective_column(scores, request.objective)[0]) * (1 - 1e-9)
    if among is not None and among.best is not None:
        kept = objective_column(among.best.scores, request.objective)
        if among.best.size == among.feasible or kept[-1] >= own:
            return Place(rank=int(np.sum(kept < own)) + 1, of=among.feasible)
    better = feasible = 0
    for _, found in evaluated_blocks(candidates_of(request, where), cost_model(where)):
        fits = found.fits_probability >= FITS
        feasible += int(fits.sum())
        better += int((fits & (objective_column(found, request.objective) < own)).sum())
    return Place(rank=better + 1, of=feasible)


def _entries(where: Setting, best: Table, top: int) -> tuple[PlanEntry, ...]:
    most = max(top, TOP)  # so that chances do not depend on how many are shown
    rows = short_list(best.knobs, most, (best.scores.iteration_s, best.scores.memory_bytes))
    times = sampled_times(gathered(best.scores.step, rows), where.calibration.spread)
    chances = best_probability(times, best.scores.fits_probability[rows])
    name = where.framework.name
    return tuple(
        _entry(
            where,
            best.knobs.layout(int(row), name),
            best.knobs,
            best.scores,
            int(row),
            rank=place + 1,
            best=float(chances[place]),
        )
        for place, row in enumerate(rows[:top])
    )


def _entry(
    where: Setting,
    layout: Layout,
    columns: Knobs,
    scores: Scores,
    row: int,
    *,
    rank: int | None,
    best: float | None,
) -> PlanEntry:
    """Row `row` of scored columns as a record of the plan."""
    request = where.request
    step = _row(scores.step, row)
    used = {name: n for name, n in _row(scores.memory, row).items() if name in PARTS}
    seconds = float(sum(step.values()))
    left = doubt(where.case(columns.take(np.array([row]))))
    spread = where.calibration.spread
    low, high = (float(x) for x in interval_s(StepTime(**step), spread, left))
    tokens = request.global_batch_size * request.seq_length
    rate = tokens / seconds
    peak = request.cluster.gpu.peak_flops_per_s
    flops = float(flops_per_token(request.model.shape(request.seq_length))) * rate
    total = float(sum(used.values()))
    whole = _run(request, rate, step, seconds)
    return PlanEntry(
        rank=rank,
        layout=layout,
        data_parallel_size=layout.data_parallel_size(request.num_gpus),
        num_micro_batches=request.global_batch_size
        // (layout.micro_batch_size * layout.data_parallel_size(request.num_gpus)),
        iteration_s=seconds,
        iteration_s_interval=(low, high),
        tokens_per_s_per_gpu=rate / request.num_gpus,
        model_flops_utilization=flops / (request.num_gpus * peak.get("bf16", peak.get("fp16", 1))),
        memory_bytes=total,
        memory_bytes_interval=memory_interval_bytes(total, where.calibration.memory),
        fits_probability=float(scores.fits_probability[row]),
        best_probability=best,
        **whole,
        parts=step,
        memory_parts=used,
        origin=origin(where.calibration, StepTime(**step)),
    )


def memory_interval_bytes(total: float, constants: MemoryConstants) -> tuple[float, float]:
    """5th and 95th percentile of the memory in use."""
    factor = float(np.exp(NORMAL_90 * constants.error_sigma))
    return total / factor, total * factor


def _row(record: Any, row: int) -> dict[str, float]:
    """One row of a record of columns, as plain numbers by name."""
    values = {f.name: np.asarray(getattr(record, f.name)) for f in fields(record)}
    return {name: float(v[row] if v.ndim else v) for name, v in values.items()}


def _run(
    request: TrainingRequest, rate: float, step: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    """Days, dollars and energy of the whole run; nothing when the tokens are unknown."""
    if request.tokens is None:
        return {}
    busy = 1 - (step["bubble_s"] + step["launch_s"]) / seconds
    whole = run(
        request.model, request.cluster, request.num_gpus, request.tokens, rate, max(busy, 0.0)
    )
    return {
        "days": whole.days,
        "cost_usd": whole.cost_usd,
        "energy_kwh": whole.energy_kwh,
        "co2_kg": whole.co2_kg,
    }


_CONSTANTS_OF = {
    "compute": ("gemm_efficiency", "attention_efficiency", "memory_traffic"),
    "communication": ("tp_exposed", "dp_exposed", "shard_exposed", "gather_exposed", "ep_exposed"),
    "bubble": ("bubble",),
    "launch": ("launch_s_per_layer",),
}


def origin(found: Calibration, step: StepTime) -> Origin:
    """Shares of a step that rest on measured, published and assumed constants.

    A part is measured when runs of this framework on this GPU generation told its constants apart.
    The bubble follows from a published schedule.
    """
    shares = {name: float(value) for name, value in part_shares(step).items()}
    measured = sum(
        shares[part]
        for part, names in _CONSTANTS_OF.items()
        if part != "bubble" and any(name in found.measured_names for name in names)
    )
    published = shares["bubble"]
    return Origin(
        measured=min(measured, 1.0),  # the shares add up to 1 but for rounding
        published=published,
        assumed=max(0.0, 1 - measured - published),
    )


def _empty_entry(request: TrainingRequest, layout: Layout) -> PlanEntry:
    """A layout that is not legal has no times."""
    divides = request.num_gpus % layout.model_parallel_size == 0
    replicas = layout.data_parallel_size(request.num_gpus) if divides else 0
    return PlanEntry(
        rank=None,
        layout=layout,
        data_parallel_size=replicas or None,
        num_micro_batches=None,
        iteration_s=None,
        iteration_s_interval=None,
        tokens_per_s_per_gpu=None,
        model_flops_utilization=None,
        memory_bytes=None,
        memory_bytes_interval=None,
        fits_probability=None,
        parts=None,
        memory_parts=None,
    )
