"""Training calibration: measured step times -> constants and spreads of every family.

Two levels. One fit over everything gives the constants of an unknown machine; each family
(framework x GPU generation) is then fitted with a pull to those. Residuals of runs whose whole
split group was left out of both fits say how wide predictions must be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from autoparallel.calibration.fit import Data, Fit, fit, log_error
from autoparallel.calibration.spread import PARTS, fit_spread, layout_spread
from autoparallel.constants import CONSTANT_NAMES, Constants
from autoparallel.cost.neighbours import doubt, places
from autoparallel.cost.step import StepTime, step_time
from autoparallel.cost.unique import gathered
from autoparallel.measured.cases import Reading, case, select
from autoparallel.nearby import Nearby, nearby_of
from autoparallel.profiles import EVERYTHING, Calibration, Spread, lent_spread, stand_ins

Column = NDArray[np.float64]
Mask = NDArray[np.bool_]
Progress = Callable[[str], None]

FIXED = ("expert_imbalance", "moe_traffic")
"""Constants that published runs cannot tell apart from others; they stay at their prior."""
FAMILY_ONLY: Mapping[str, Mapping[str, float]] = {
    "nanotron": {
        "launch_s_per_layer": 4.5e-3,
        "launch_tp_factor": 0.01,
        "hop_latency_s": 40e-6,
    },
    "nanotron-slow-nodes": {"hop_latency_s": 20e-6, "launch_tp_factor": 0.7},
}
"""Frameworks that are fitted alone, with where the constants begin that are unlike the others'.

nanotron: a layer too small to fill the GPU takes 4.6 ms at tp 2 to 8 alike, and tensor parallelism
over 2 and 4 nodes pays tens of microseconds a rank in every ring.
"""
KNOWN_OF: Mapping[str, Mapping[str, float]] = {
    "megatron": {"dp_exposed": 1.0},
    "megatron-deepspeed": {"dp_exposed": 1.0},
}
"""What a family's software is known to do, put in place of what all families agree on: these reduce
gradients after the last micro-batch, not behind it (vTrain's configurations; Megatron-LM of
2021-22)."""
TIMED_AS: Mapping[str, str] = {"nanotron-early": "nanotron"}
"""Code that differs from another's in memory alone: the two share their time constants."""
OWN_WIDTH: Mapping[str, float] = {"expert_ramp_waves": 0.8}
"""Constants that frameworks do not share: no fit over all of them, each family starts at the prior
and may go this far from it."""
SOFTWARE = (
    "launch_s_per_layer",
    "launch_tp_factor",
    "step_overhead_s",
    "tp_exposed",
    "shard_exposed",
    "gather_exposed",
    "cp_exposed",
    "ep_exposed",
    "pp_exposed",
    "bubble",
    "expert_ramp_waves",
    "moe_launch",
)
"""Constants that say how code is written, not how fast a GPU is."""
GLOBAL_WIDTH, FAMILY_WIDTH = 0.3, 0.3
IDENTIFIED = 0.6
"""A constant is measured when the data shrink its prior's width to this share or less."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Timed runs: their readings and the one case that holds them all, in the same order."""

    readings: Sequence[Reading]
    data: Data
    families: NDArray[np.str_]

    def at(self, mask: Mask) -> Data:
        """The runs of `mask`."""
        index = np.flatnonzero(mask)
        return Data(
            case=select(self.data.case, index),
            seconds=self.data.seconds[index],
            groups=self.data.groups[index],
            suspect=self.data.suspect[index],
        )


def timed_rows(readings: Sequence[Reading]) -> Rows:
    """The readings that have a step time."""
    timed = [r for r in readings if r.run.seconds]
    data = Data(
        case=case(timed, Constants()),
        seconds=np.array([r.run.seconds for r in timed], dtype=np.float64),
        groups=np.array([r.run.split_group or r.run.source for r in timed]),
        suspect=np.array([bool(r.run.suspect) for r in timed]),
    )
    return Rows(
        readings=timed, data=data, families=np.array([time_family(r.family) for r in timed])
    )


def framework_part(family: str) -> str:
    """The framework of a family id: `megatron-hopper` -> `megatron`."""
    return family.rpartition("-")[0]


def time_family(family: str) -> str:
    """The family whose runs give `family` its time constants."""
    kind, _, generation = family.rpartition("-")
    return f"{TIMED_AS.get(kind, kind)}-{generation}" if kind else family


def fit_everything(rows: Rows, among: Mask, near: Constants | None = None) -> Fit:
    """Constants of an unknown machine, from all families without constants of their own."""
    fixed = (*FIXED, *OWN_WIDTH)
    names = [n for n in CONSTANT_NAMES if n not in fixed]
    return fit(rows.at(_ordinary(rows, among)), names, Constants(), GLOBAL_WIDTH, near)


def _ordinary(rows: Rows, among: Mask) -> Mask:
    """The runs of `among` that a fit to everything is made of; all of them where there are none."""
    alike = among & np.array([framework_part(f) not in FAMILY_ONLY for f in rows.families])
    return alike if alike.any() else among


@lru_cache(maxsize=1)
def _of_all(rows: Rows) -> Constants:
    """The fit to every run: where fits to all but one group begin (their prior is another)."""
    return fit_everything(rows, np.ones(len(rows.readings), dtype=bool)).constants


def fit_family(rows: Rows, family: str, among: Mask, base: Constants) -> Fit | None:
    """Constants of one family, pulled to `base`; None without runs.

    What is known of its code comes first, then what the runs of the same code on another GPU
    generation say of it, where those are more.
    """
    mine = among & (rows.families == family)
    if not mine.any():
        return None
    kind = framework_part(family)
    lent = _software(rows, family, among, base)
    own, known = FAMILY_ONLY.get(kind, {}), KNOWN_OF.get(kind, {})
    return _fit_rows(rows, mine, kind, replace(base, **{**lent, **own, **known}))


def _fit_rows(rows: Rows, mine: Mask, kind: str, prior: Constants) -> Fit:
    names = [n for n in CONSTANT_NAMES if n not in FIXED]
    return fit(rows.at(mine), names, prior, np.array([_width(kind, n) for n in names]))


def _software(rows: Rows, family: str, among: Mask, base: Constants) -> dict[str, float]:
    """What the richest sibling (same framework, another GPU) has measured of the code's constants.

    Nothing where `family` has more runs itself.
    """
    kind = framework_part(family)
    names, counts = np.unique(rows.families[among], return_counts=True)
    siblings = {str(n): int(c) for n, c in zip(names, counts, strict=True)}
    siblings = {n: c for n, c in siblings.items() if framework_part(n) == kind}
    richest = max(siblings, key=lambda n: siblings[n])
    if richest == family:
        return {}
    known = {**FAMILY_ONLY.get(kind, {}), **KNOWN_OF.get(kind, {})}
    found = _fit_rows(rows, among & (rows.families == richest), kind, replace(base, **known))
    return {
        name: float(getattr(found.constants, name))
        for name in SOFTWARE
        if found.deviations[name] <= IDENTIFIED * _width(kind, name)
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeftOut:
    """Predictions of every run from fits that never saw its split group.

    `doubt` is the share of a prediction's variance that measured runs nearby leave.
    """

    log_errors: Column
    doubt: Column
    step: StepTime


def leave_one_group_out(
    rows: Rows, progress: Progress = lambda text: None, groups: Sequence[str] = ()
) -> LeftOut:
    """Predict every split group, or those of `groups`, from the others; other rows stay 0."""
    errors, left = np.zeros(len(rows.readings)), np.zeros(len(rows.readings))
    parts = {f.name: np.zeros(len(rows.readings)) for f in fields(StepTime)}
    for group in groups or dict.fromkeys(rows.data.groups.tolist()):
        progress(group)
        held = rows.data.groups == group
        base = fit_everything(rows, ~held, _of_all(rows)).constants
        for family in np.unique(rows.families[held]):
            constants, nearby = known_without(rows, str(family), ~held, base)
            at = held & (rows.families == family)
            data = rows.at(at)
            known = replace(data.case, constants=constants, nearby=nearby)
            step = step_time(known)
            left[at] = doubt(known)
            errors[at] = np.log(np.asarray(step.iteration_s) / data.seconds)
            for name, column in parts.items():
                column[at] = getattr(step, name)
    return LeftOut(log_errors=errors, doubt=left, step=StepTime(**parts))


def known_without(
    rows: Rows, family: str, among: Mask, base: Constants
) -> tuple[Constants, Nearby | None]:
    """What a prediction for `family` rests on when only the runs of `among` are known.

    Constants and runs of its own when it has some there, else the constants that `profiles` would
    borrow.
    """
    known = set(rows.families[among].tolist())
    candidates = stand_ins(framework_part(family), family.rpartition("-")[2])
    for candidate in candidates[: candidates.index(EVERYTHING)]:
        if candidate in known:
            own = fit_family(rows, candidate, among, base)
            assert own is not None
            mine = among & (rows.families == family)
            return own.constants, nearby_runs(rows, mine, own.constants)
    return base, None


def nearby_runs(rows: Rows, mine: Mask, constants: Constants) -> Nearby | None:
    """How much longer the runs of `mine` took than `constants` say; None without one to trust."""
    mine = mine & ~rows.data.suspect
    if not mine.any():
        return None
    data = rows.at(mine)
    return nearby_of(places(data.case), np.exp(-log_error(data, constants)))


def calibrate(
    rows: Rows, left_out: LeftOut | None, source: str
) -> tuple[dict[str, Calibration], dict[str, Fit]]:
    """Calibrations of every family and of everything, and the fits behind them.

    Without predictions of left-out groups the spreads stay priors.
    """
    everybody = np.ones(len(rows.readings), dtype=bool)
    base = fit_everything(rows, everybody)
    fits = {EVERYTHING: base}
    for family in np.unique(rows.families):
        own = fit_family(rows, str(family), everybody, base.constants)
        assert own is not None
        fits[str(family)] = own
    shared = {r.family for r in rows.readings} - fits.keys()
    fits |= {family: fits[time_family(family)] for family in sorted(shared)}
    if left_out:
        left_out = replace(left_out, log_errors=unseen_errors(rows, left_out, fits))
    found = {name: _calibration(rows, left_out, name, f, source) for name, f in fits.items()}
    most = lent_spread(found[EVERYTHING].spread)
    return {name: replace(c, spread=_within(c.spread, most)) for name, c in found.items()}, fits


def _within(own: Spread, most: Spread) -> Spread:
    """A family's own runs tell no less of a step's parts than those of all others, if few.

    How unlike two layouts of a job are is the family's own.
    """
    return replace(own, **{n: min(getattr(own, n), getattr(most, n)) for n in PARTS})


def unseen_errors(rows: Rows, left_out: LeftOut, fits: Mapping[str, Fit]) -> Column:
    """What an unmeasured job of its family would err, by run: log(predicted / measured).

    Left out with its split group, where the family has others. A family of one group is predicted
    by the fit to everything else then, which says too much, and by its own too little, even times
    how much more other families err unseen than seen: there it is the geometric mean of the two.
    """
    seen, errors = errors_of(rows, fits), left_out.log_errors.copy()
    alone = np.zeros(len(rows.readings), dtype=bool)
    for family in np.unique(rows.families):
        at = rows.families == family
        alone[at] = len(np.unique(rows.data.groups[at])) == 1
    groups = np.unique(rows.data.groups[~alone])
    if not len(groups):
        return errors
    more = [_size(errors, rows, g) / max(_size(seen, rows, g), 1e-3) for g in groups]
    scaled = seen[alone] * max(float(np.median(more)), 1.0)
    errors[alone] = np.sign(scaled) * np.sqrt(np.abs(scaled * errors[alone]))
    return errors


def _size(errors: Column, rows: Rows, group: str) -> float:
    return float(np.median(np.abs(errors[rows.data.groups == group])))


def _calibration(
    rows: Rows, left_out: LeftOut | None, name: str, own: Fit, source: str
) -> Calibration:
    mine = rows_of(rows, name)
    return Calibration(
        family=name,
        constants=own.constants,
        nearby=None if name == EVERYTHING else nearby_runs(rows, mine, own.constants),
        spread=_spread(rows, left_out, mine) if left_out else Spread(),
        state="measured",
        rows=int(mine.sum()),
        measured_names=tuple(
            n for n, d in own.deviations.items() if d <= IDENTIFIED * _width(name, n)
        ),
        source=source,
    )


def rows_of(rows: Rows, name: str) -> Mask:
    """The runs that the time constants `name` come from, a family's or `EVERYTHING`'s."""
    if name == EVERYTHING:
        return _ordinary(rows, np.ones(len(rows.families), dtype=bool))
    return np.asarray(rows.families == time_family(name))


def _width(family: str, name: str) -> float:
    """How far the constant `name` of a family may go from its prior."""
    return GLOBAL_WIDTH if family == EVERYTHING else OWN_WIDTH.get(name, FAMILY_WIDTH)


def _spread(rows: Rows, left_out: LeftOut, mine: Mask) -> Spread:
    index = np.flatnonzero(mine)
    step = gathered(left_out.step, index)
    errors = left_out.log_errors[index]
    search_groups = np.array([rows.readings[int(i)].run.search_group for i in index])
    weights = rows.at(mine).weights()
    own = layout_spread(errors, search_groups)
    return fit_spread(step, errors, weights, own, left_out.doubt[index])


def errors_of(rows: Rows, known: Mapping[str, Calibration] | Mapping[str, Fit]) -> Column:
    """log(predicted / measured) of every run: by its family's fit, or its whole calibration."""
    errors = np.zeros(len(rows.readings))
    for family in np.unique(rows.families):
        at, found = rows.families == family, known[str(family)]
        nearby = found.nearby if isinstance(found, Calibration) else None
        errors[at] = log_error(rows.at(at), found.constants, nearby)
    return errors
