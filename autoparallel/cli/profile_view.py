"""What `profile` shows: a bar while it runs, and predicted, measured and corrected after it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from autoparallel.cli import screen
from autoparallel.counts import counted
from autoparallel.profiling.beliefs import CPU_TRIAL_SIGMA, TRIAL_SIGMA
from autoparallel.units import GIB, MS

if TYPE_CHECKING:
    from autoparallel.campaign import Event
    from autoparallel.campaign.outcome import Outcome
    from autoparallel.campaign.record import Recorded
    from autoparallel.plan import Plan, PlanEntry
    from autoparallel.profiling.job import Result

_CELLS = 16


class Bar:
    """Trial, step, best so far and budget left, on stderr; off a terminal, one line a trial."""

    def __init__(self, *, shown: bool, budget_s: float) -> None:
        self._shown = shown
        self._over = sys.stderr.isatty()
        self._budget_s = budget_s

    def __call__(self, event: Event) -> None:
        """Show what has just happened."""
        if event.kind in ("end", "cut"):
            self._print(("\r\x1b[K" if self._over else "") + f"{_ended(event)}\n")
        if self._over:
            self.note(self._line(event))

    def note(self, text: str) -> None:
        """One line of news."""
        self._print(f"\r\x1b[K{text}" if self._over else f"{text}\n")

    def end(self) -> None:
        """Clear the line."""
        if self._over:
            self._print("\r\x1b[K")

    def _line(self, event: Event) -> str:
        spent = 1 - event.left_s / self._budget_s
        full = min(max(round(_CELLS * max(spent, event.done / event.top)), 0), _CELLS)
        bar = "#" * full + "-" * (_CELLS - full)
        best = f", best {event.best[1] / MS:.4g} ms" if event.best else ""
        others = f"{event.running} running, " if event.running > 1 else ""
        minutes, rest = divmod(int(event.left_s), 60)
        text = (
            f"[{bar}] {others}trial {event.number}, {event.done} of {event.top} measured: "
            f"{event.layout}, step {event.step} of {event.steps}{best}, {minutes}:{rest:02d} left"
        )
        return text[: max(screen.width() - 1, 40)]

    def _print(self, text: str) -> None:
        if self._shown:
            print(text, end="", file=sys.stderr, flush=True)


def _ended(event: Event) -> str:
    said = _said(event.result) if event.result else _cut(event)
    return f"trial {event.number}: {event.layout}: {said}"


def _cut(event: Event) -> str:
    """How far a trial came that counts for nothing."""
    steps = counted(event.steps, "step")
    return f"cut by the campaign's end after {event.step} of {steps}, not counted"


def _said(result: Result) -> str:
    """How a trial ended, in a few words."""
    if not result.ok:
        return f"{result.outcome}: {result.message.splitlines()[0] if result.message else ''}"[:300]
    early = ", stopped early" if result.stopped_early else ""
    mad = (result.iteration_s_mad or 0.0) / MS
    seconds = (result.iteration_s or 0.0) / MS
    return f"{seconds:.4g} ± {mad:.2g} ms a step, {counted(len(result.step_s), 'step')}{early}"


def table(plan: Plan) -> list[screen.Line]:
    """The plan's entries with what was predicted, measured and is now believed."""
    entries = plan.entries
    column = screen.Column
    return screen.rows(
        [
            column(head="#", cells=[str(entry.rank) for entry in entries]),
            column(head="layout", cells=[str(entry.layout) for entry in entries], right=False),
            column(head="predicted ms", cells=[_ms(entry.iteration_s) for entry in entries]),
            column(head="measured ms", cells=[_measured(entry) for entry in entries]),
            column(head="corrected ms", cells=[_corrected(entry) for entry in entries]),
            column(head="P(best)", cells=[_chance(entry) for entry in entries]),
            column(head="peak GiB", cells=[_peak(entry) for entry in entries]),
            column(head="steps", cells=[_steps(entry) for entry in entries]),
        ]
    )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value / MS:.2f}"


def _measured(entry: PlanEntry) -> str:
    found = entry.measured
    if found is None:
        return ""
    if found.iteration_s is None:
        return found.outcome
    return f"{found.iteration_s / MS:.2f} ± {(found.iteration_s_mad or 0.0) / MS:.2f}"


def _corrected(entry: PlanEntry) -> str:
    return _ms(entry.corrected.iteration_s) if entry.corrected else ""


def _chance(entry: PlanEntry) -> str:
    chance = entry.corrected.best_probability if entry.corrected else entry.best_probability
    return "" if chance is None else f"{chance:.2f}"


def _peak(entry: PlanEntry) -> str:
    found = entry.measured
    size = found.peak_memory_bytes if found else None
    return "" if size is None else f"{size / GIB:.3g}"


def _steps(entry: PlanEntry) -> str:
    return str(entry.measured.steps) if entry.measured else ""


def summary(folder: Path, found: Recorded, outcome: Outcome) -> list[screen.Line]:
    """Why it ended, what the trials say, and where everything is."""
    lines: list[screen.Line] = []
    if outcome.reason:
        lines += screen.prose(f"Ended: {outcome.reason}.", "bold")
    for cut in outcome.cut:
        text = f"Cut before it had measured anything: {cut}; run again to go on with it."
        lines += screen.prose(text, "yellow")
    lines += screen.prose(_worth(found, outcome))
    if outcome.study.seen.measured:
        lines += screen.prose(_repeats(outcome))
    for note in _deviations(outcome):
        lines += screen.prose(f"Note: {note}.", "yellow")
    if outcome.damaged:
        lost = outcome.damaged
        verb = "was" if lost == 1 else "were"
        text = f"{counted(lost, 'damaged line')} of the journal {verb} left out."
        lines += screen.prose(text, "yellow")
    best = outcome.study.best()
    if best is not None:
        layout = screen.firm(outcome.found[best].layout)
        lines += screen.prose(f"Fastest measured: {layout}.", "bold")
    names = [str(path.relative_to(folder.resolve())) for path in _below(folder, found.files)]
    lines += screen.prose(f"Files in {folder}/: " + ", ".join([*names, "trials/"]))
    return lines


def _below(folder: Path, paths: tuple[Path, ...]) -> list[Path]:
    return [path.resolve() for path in paths if path.resolve().is_relative_to(folder.resolve())]


def _worth(found: Recorded, outcome: Outcome) -> str:
    """What was measured, on what, and whether it says anything of the plan's machine."""
    measured = outcome.study.seen.measured
    if not measured:
        return "Nothing was measured."
    one = next(iter(measured.values()))
    how = ", ".join(word for word in (one.impl and f"{one.impl} kernels", one.backend) if word)
    text = f"{counted(len(measured), 'layout')} measured in mode {one.mode} on {one.device}"
    text += f" ({how})" if how else ""
    if found.bias is not None:
        text += f"; measured over predicted {found.bias:.3g} in the median"
    if not found.corrects:
        text += (
            "; a CPU says nothing of the plan's GPUs, so constants and order are left as they were"
        )
    return text + "."


def _repeats(outcome: Outcome) -> str:
    """What P(best) takes for granted of trials that were not repeated."""
    on_cpu = any(result.device == "cpu" for result in outcome.study.seen.measured.values())
    sigma = CPU_TRIAL_SIGMA if on_cpu else TRIAL_SIGMA
    return f"P(best) takes trials of one layout to scatter by {sigma:.0%} (assumed)."


def _deviations(outcome: Outcome) -> list[str]:
    """Where runs differed from their layouts, each said once."""
    words = [note for result in outcome.study.seen.measured.values() for note in result.deviations]
    return list(dict.fromkeys(words))
