"""A saved run: what a report reads, from the folder that a search wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoparallel.cost.case import Case
from autoparallel.errors import NothingFitsError, one_line
from autoparallel.layout import Layout
from autoparallel.plan import Plan, PlanEntry, load_plan
from autoparallel.provenance import provenance
from autoparallel.ranking import Setting, setting
from autoparallel.request import TrainingRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """A plan with the request it answers and the setting of now.

    Attributes:
        name: Name of the folder.
        folder: Where it lies; None for a plan that was never saved.
    """

    name: str
    folder: Path | None
    plan: Plan
    request: TrainingRequest
    where: Setting

    @property
    def winner(self) -> PlanEntry:
        """The first of the short list."""
        return self.plan.entries[0]

    @property
    def capacity_bytes(self) -> float:
        """Memory of one GPU."""
        return self.request.cluster.gpu.memory_bytes

    def case(self, layout: Layout) -> Case:
        """A layout as a case of one row."""
        return self.where.case(self.where.row(layout))

    @property
    def is_current(self) -> bool:
        """Whether the shipped data of now are those the plan was made with."""
        then, now = self.plan.provenance, provenance()
        digests = (then.profile_digest, then.catalog_digest)
        return digests == (now.profile_digest, now.catalog_digest)


def training_run(plan: Plan, folder: Path | None = None, name: str = "") -> TrainingRun:
    """The run of a plan.

    Raises:
        NothingFitsError: the plan is empty.
    """
    if not plan.entries:
        raise NothingFitsError(
            f"{name or 'plan'}: its plan is empty, so there is nothing to report"
        )
    request = TrainingRequest.from_mapping(plan.request, f"{name or 'plan'} request")
    return TrainingRun(
        name=name or request.model.name,
        folder=folder,
        plan=plan,
        request=request,
        where=setting(request),
    )


def read_training_run(path: Path) -> TrainingRun:
    """The run in a folder, or beside a `plan.json`.

    Raises:
        ConfigError: no plan there, or one that cannot be used.
        NothingFitsError: the plan is empty.
    """
    plan = load_plan(path)
    folder = path if path.is_dir() else path.parent
    return training_run(plan, folder, one_line(folder.resolve().name))
