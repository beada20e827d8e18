"""What a campaign leaves: measured rows, constants fitted to them, and the plan with all three."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoparallel import files
from autoparallel.campaign.correction import ROWS_FILE, correction
from autoparallel.campaign.outcome import Outcome
from autoparallel.campaign.rows import measured_rows
from autoparallel.envelope import PLAN_FILE
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout
from autoparallel.measured.rows import runs_text
from autoparallel.plan import Corrected, Measured, Plan, PlanEntry, load_plan
from autoparallel.profiling.job import Result
from autoparallel.profiling.store import Store, Trial
from autoparallel.request import TrainingRequest

PREDICTED_FILE = "plan.predicted.json"


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


def recorded(
    run: Path,
    plan: Plan,
    request: TrainingRequest,
    outcome: Outcome,
    catch_up: Callable[[], None] = lambda: None,
) -> Recorded:
    """Write measured rows, constants and the plan into the run directory.

    Drivers of one folder do it one after the other, each with all that has been finished by then,
    so that no plan has less in it than the one before.

    Args:
        run: The run directory.
        plan: Its plan, as it was before the campaign.
        request: The plan's request.
        outcome: What the campaign has found.
        catch_up: Brings what other drivers have finished into `outcome`.
    """
    store = Store(run)
    with store.alone():
        catch_up()
        if not outcome.study.seen.measured and not outcome.study.seen.failed:
            return Recorded(plan=plan, files=(), corrects=False, bias=None)
        return _recorded(run, plan, request, outcome, store.trials())


def _recorded(
    run: Path, plan: Plan, request: TrainingRequest, outcome: Outcome, journal: Sequence[Trial]
) -> Recorded:
    ours = [t for t in journal if t.job.model.name == request.model.name]
    rows = measured_rows(request, [*ours, *outcome.trials])
    written = [files.write_text(run, ROWS_FILE, runs_text(rows))] if rows else []
    found = correction(run, request, outcome)
    written += found.files if found else ()
    corrected = found.corrected if found else {}
    new = replace(
        plan, entries=_entries(plan, outcome, corrected, _kept(run, plan, outcome, journal))
    )
    predicted = all(entry.measured is None for entry in plan.entries)
    if predicted or not (run / PREDICTED_FILE).exists():
        written.append(files.write_text(run, PREDICTED_FILE, plan.text()))
    written.append(files.write_text(run, PLAN_FILE, new.text()))
    bias = _bias(outcome)
    return Recorded(plan=new, files=tuple(written), corrects=found is not None, bias=bias)


def _kept(
    run: Path, plan: Plan, outcome: Outcome, journal: Sequence[Trial]
) -> dict[Layout, PlanEntry]:
    """What the plan in the folder says of trials that this campaign does not know.

    Such as those of another mode. A failure counts for the mode and the device that it was seen in.
    """
    with contextlib.suppress(ConfigError):
        there = load_plan(run)
        jobs = {trial.result.trial: trial.job for trial in journal}
        alike = {(t.job.mode, t.job.device) for t in outcome.trials}
        return {
            entry.layout: entry
            for entry in (there.entries if there.request == plan.request else ())
            if (was := entry.measured)
            and (job := jobs.get(was.trial))
            and (was.outcome == "ok" or (job.mode, job.device) in alike)
        }
    return {}


def _bias(outcome: Outcome) -> float | None:
    measured = outcome.study.seen.measured
    ratios = [
        (r.iteration_s or 0.0) / (outcome.found[i].iteration_s or np.inf)
        for i, r in measured.items()
    ]
    return float(np.median(ratios)) if ratios else None


def _entries(
    plan: Plan,
    outcome: Outcome,
    corrected: dict[Layout, Corrected],
    kept: dict[Layout, PlanEntry],
) -> tuple[PlanEntry, ...]:
    """The short list and whatever was tried beside it, best first by what is believed now."""
    measured = {layout: e.measured for layout, e in kept.items() if e.measured}
    measured |= _measured(outcome)
    listed = {entry.layout: entry for entry in plan.entries}
    for entry in outcome.found:
        if entry.layout in measured:
            listed.setdefault(entry.layout, entry)
    for layout, entry in kept.items():
        listed.setdefault(layout, entry)
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
