"""The evaluator: columns of layouts in, columns of time, memory and probability of fitting out.

Ranking takes it as an argument. This one is the cost model; a table of recorded runs or live trials
can stand in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoparallel import catalog
from autoparallel.cost.case import Case
from autoparallel.cost.memory import Memory, fits_probability, memory, peak
from autoparallel.cost.neighbours import slower
from autoparallel.cost.step import StepTime, running, step_of, update
from autoparallel.cost.unique import assembled
from autoparallel.framework import Framework, framework
from autoparallel.hardware import machine
from autoparallel.layout import PRECISIONS, Knobs, Layout, knobs
from autoparallel.operators import operators_for
from autoparallel.profiles import Calibration, first_calibration
from autoparallel.request import TrainingRequest
from autoparallel.rules import RuleCase, limits
from autoparallel.space import SpaceSpec
from autoparallel.units import Num


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Predictions of N layouts."""

    step: StepTime
    memory: Memory
    iteration_s: NDArray[np.float64]
    memory_bytes: NDArray[np.float64]
    fits_probability: NDArray[np.float64]


Evaluate = Callable[[Knobs], Scores]


def _time(case: Case) -> tuple[StepTime, Num]:
    ran, then, more = running(case), update(case), slower(case)
    return assembled(step_of, ran, then, more), (ran.total_s + then.total_s) * more


def _room(case: Case) -> tuple[Memory, Num, Num]:
    fullest = peak(case)
    probability = fits_probability(fullest, case.machine.memory_bytes, case.memory)
    return memory(case), fullest.total_bytes, probability


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What stays the same over all layouts of a request."""

    request: TrainingRequest
    framework: Framework
    calibration: Calibration
    folder: Path

    def rule_case(self, knobs: Knobs) -> RuleCase:
        """`knobs` as the rules see them."""
        return RuleCase(
            model=self.request.model.shape(self.request.seq_length),
            knobs=knobs,
            limits=limits(self.request.cluster, self.framework),
        )

    def case(self, knobs: Knobs) -> Case:
        """`knobs` as a case of this request."""
        cluster = self.request.cluster
        base = machine(cluster, self.request.precision)
        return Case(
            model=self.request.model.shape(self.request.seq_length),
            machine=replace(base, peak_flops_per_s=self._peaks(knobs)),
            knobs=knobs,
            traits=self.framework.traits,
            constants=self.calibration.constants,
            memory=self.calibration.memory,
            operators=(
                operators_for(cluster.gpu.name, cluster.gpu.generation, self.folder / "operators"),
            ),
            nearby=self.calibration.nearby,
        )

    def row(self, layout: Layout) -> Knobs:
        """A layout of this job, as columns of one row."""
        return knobs([layout], [self.request.num_gpus], [self.request.global_batch_size])

    def nearby_factor(self, layout: Layout) -> float:
        """What measured runs near a layout multiply its step by; 1 without any."""
        return float(slower(self.case(self.row(layout))))

    def _peaks(self, knobs: Knobs) -> Num:
        """Peak of the linear layers in each row's precision."""
        cluster = self.request.cluster
        known = np.array([machine(cluster, name).peak_flops_per_s for name in PRECISIONS])
        peaks = known[np.asarray(knobs.precision, dtype=np.intp)]
        return float(peaks.flat[0]) if (peaks == peaks.flat[0]).all() else peaks


def setting(request: TrainingRequest) -> Setting:
    """Framework, calibration and profiles of a request."""
    record = framework(request.framework, request.config_path)
    if not all(SpaceSpec.from_mapping(request.space).flash_attention):
        record = replace(record, traits=replace(record.traits, flash_attention=0.0))
    shipped = catalog.data_dir() / "profiles"
    own = request.profiles_path or shipped
    generation = request.cluster.gpu.generation
    found = first_calibration(record.constants, generation, (own, shipped))
    measured = own if (own / "operators" / "index.csv").is_file() else shipped
    return Setting(request=request, framework=record, calibration=found, folder=measured)


def cost_model(where: Setting) -> Evaluate:
    """The analytic evaluator of a request."""

    def evaluate(knobs: Knobs) -> Scores:
        case, n = where.case(knobs), knobs.size
        step, iteration_s = _time(case)
        used, memory_bytes, probability = _room(case)
        return Scores(
            step=step,
            memory=used,
            iteration_s=_column(iteration_s, n),
            memory_bytes=_column(memory_bytes, n),
            fits_probability=_column(probability, n),
        )

    return evaluate


def _column(value: Num, size: int) -> NDArray[np.float64]:
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (size,))
