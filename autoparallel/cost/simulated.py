"""One layout's pipeline by the event simulator, beside the closed form that ranked it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from autoparallel.cost.case import Case
from autoparallel.cost.layer import layer_time
from autoparallel.cost.schedule import Stages, pipeline_time
from autoparallel.cost.simulator import simulate_stages
from autoparallel.cost.step import stages

MOST_EVENTS = 200_000
"""Pieces of work beyond which a pipeline is not simulated: about a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Seconds that a pipeline adds to a step, event by event and in closed form."""

    simulated_s: float
    closed_form_s: float

    @property
    def difference(self) -> float:
        """How much longer the simulated pipeline takes, as a fraction."""
        return self.simulated_s / self.closed_form_s - 1


def one_row(case: Case) -> Stages:
    """The pipeline of a case of one layout, as plain numbers."""
    whole = stages(case, layer_time(case))
    return Stages(**{f.name: float(np.ravel(getattr(whole, f.name))[0]) for f in fields(Stages)})


def simulated(case: Case) -> Simulated | None:
    """The pipeline of a case of one layout; None for one of too many events.

    Transfers that are partly hidden lie between those that both ranks wait for and those that run
    beside the work.
    """
    x = one_row(case)
    if 2 * x.pp * x.vpp * x.micro_batches > MOST_EVENTS:
        return None
    hidden = float(x.p2p_overlapped)
    beside = simulate_stages(x, overlap=True).total_s if hidden > 0 else 0.0
    met = simulate_stages(x, overlap=False).total_s if hidden < 1 else 0.0
    return Simulated(
        simulated_s=hidden * beside + (1 - hidden) * met,
        closed_form_s=float(pipeline_time(x).total_s),
    )
