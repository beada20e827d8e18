"""Figures of a plan for a notebook: `plan.figures.breakdown()` and its siblings.

Each method computes its table and draws it; plotly shows the figure in the notebook, or
`write_html` and `write_image` save it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from autoparallel.layout import Layout
from autoparallel.plan import Plan, PlanEntry
from autoparallel.planning import searched, written
from autoparallel.reporting import breakdown, stage_memory, timeline, what_if
from autoparallel.reporting.candidates import Candidates, grid, of_ranked, parallel_lines, thinned
from autoparallel.reporting.run import TrainingRun, training_run
from autoparallel.reporting.wording import tied

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Figures:
    """Figures of `plan`; what was not saved with it is searched again once."""

    plan: Plan

    @cached_property
    def run(self) -> TrainingRun:
        """The plan in today's setting."""
        return training_run(self.plan)

    @cached_property
    def candidates(self) -> Candidates | None:
        """What a search of the plan's request keeps."""
        return of_ranked(searched(self.run.request)[1])

    def short_list(self) -> go.Figure:
        """Step times with their ranges."""
        from autoparallel.reporting.figures import plans

        entries = [(f"#{e.rank}", e) for e in self.plan.entries]
        return plans.short_list(entries, tied(self.plan, self.run.where))

    def breakdown(self, baseline: str | Layout | None = None) -> go.Figure:
        """Where the steps of the top plans go, beside a layout of yours and full recompute."""
        from autoparallel.reporting.figures import plans

        return plans.step_parts(breakdown.step_bars(self._rivals(baseline)))

    def memory(self, baseline: str | Layout | None = None) -> go.Figure:
        """Memory of the same, by cause."""
        from autoparallel.reporting.figures import plans

        bars = breakdown.memory_bars(self._rivals(baseline))
        return plans.memory_parts(bars, self.run.capacity_bytes)

    def pareto(self) -> go.Figure:
        """Time against memory of all candidates that a search keeps."""
        from autoparallel.reporting.figures import space

        return space.time_against_memory(thinned(self._found()), self.run.capacity_bytes)

    def parallel_coordinates(self) -> go.Figure | None:
        """Knobs of the fitting layouts; None when fewer than two fit."""
        from autoparallel.reporting.figures import space

        lines = parallel_lines(self._found())
        return space.parallel_coordinates(lines) if lines else None

    def heat_map(self) -> go.Figure:
        """The best step time of every tp and pp."""
        from autoparallel.reporting.figures import space

        return space.best_by_mesh(grid(self._found()))

    def timeline(self, rank: int = 1) -> go.Figure:
        """One step of a layout's pipeline, from the simulator."""
        from autoparallel.reporting.figures import schedule

        step = timeline.pipeline_step(self.run, self.plan.entries[rank - 1].layout)
        return schedule.timeline(step, step.drawn)

    def stages(self, rank: int = 1) -> go.Figure:
        """Memory of every pipeline rank of a layout."""
        from autoparallel.reporting.figures import plans

        bars = stage_memory.rank_bars(self.run, self.plan.entries[rank - 1].layout)
        return plans.stages(bars, self.run.capacity_bytes)

    def scaling(self) -> go.Figure:
        """Strong scaling, each size planned again."""
        from autoparallel.reporting.figures import what_if as drawn

        return drawn.scaling(what_if.scaling(self.run))

    def sensitivity(self) -> go.Figure:
        """Throughput when hardware or batch were different."""
        from autoparallel.reporting.figures import what_if as drawn

        return drawn.sensitivity(what_if.sensitivity(self.run))

    def write_html(self, path: str | Path) -> list[Path]:
        """The whole report, as `autoparallel report` writes it; returns the files."""
        from autoparallel.reporting.report import training_report, write_report

        return write_report(training_report(self.run), Path(path))

    def _rivals(self, baseline: str | Layout | None) -> list[tuple[str, PlanEntry]]:
        own = written(baseline, self.run.request) if isinstance(baseline, str) else baseline
        return breakdown.rivals(self.run, own)

    def _found(self) -> Candidates:
        found = self.candidates
        assert found is not None  # a plan with entries has fitting candidates
        return found
