"""What a calibration is worth: errors before, after, and predicted from the other split groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from autoparallel.calibration.identify import NOT_TOLD
from autoparallel.calibration.run import Outcome
from autoparallel.calibration.training import LeftOut, Rows, errors_of, time_family
from autoparallel.cost.step import interval_s
from autoparallel.cost.unique import gathered
from autoparallel.counts import counted
from autoparallel.profiles import EVERYTHING, Calibration
from autoparallel.scoreboard.predictions import calibration_of, folders
from autoparallel.scoreboard.scores import Block, Column, Errors, error_block, macro_block
from autoparallel.scoreboard.text import ERROR_COLUMNS, Text, error_row, percent

STAGES = ("before", "after", "left_out")


def errors_in_force(rows: Rows, profiles_dir: Path | None = None) -> Column:
    """log(predicted / measured) of every run under the profiles that are there already."""
    where = folders(profiles_dir)
    return errors_of(rows, {time_family(r.family): calibration_of(r, where) for r in rows.readings})


def left_out_errors(
    rows: Rows, left_out: LeftOut, calibrations: Mapping[str, Calibration]
) -> Errors:
    """Predictions of every run from the other split groups, with its family's intervals."""
    low, high = np.zeros(len(rows.readings)), np.zeros(len(rows.readings))
    for family in np.unique(rows.families):
        at = np.flatnonzero(rows.families == family)
        step = gathered(left_out.step, at)
        low[at], high[at] = interval_s(step, calibrations[str(family)].spread, left_out.doubt[at])
    predicted = np.exp(left_out.log_errors) * rows.data.seconds
    return Errors(predicted=predicted, measured=rows.data.seconds, low=low, high=high)


def summary(outcome: Outcome, before: Column) -> Block:
    """Errors by split group and over them, and what each family's runs determine; JSON data."""
    rows, blind = outcome.rows, outcome.left_out
    logs = {"before": before, "after": outcome.after}
    logs |= {"left_out": blind.log_errors} if blind else {}
    relative = {stage: np.exp(logs[stage]) - 1 if stage in logs else None for stage in STAGES}
    calibrations = {name: p.calibration for name, p in outcome.profiles.items()}
    return {
        "rows": len(rows.readings),
        "macro": {
            s: None if r is None else macro_block(r, rows.data.groups) for s, r in relative.items()
        },
        "left_out": error_block(left_out_errors(rows, blind, calibrations)) if blind else None,
        "by_group": {
            str(group): _medians(relative, rows.data.groups == group)
            for group in dict.fromkeys(rows.data.groups.tolist())
        },
        "families": {name: _family(outcome, name) for name in outcome.profiles},
    }


def _medians(relative: Mapping[str, Column | None], at: Any) -> Block:
    medians = {
        s: None if r is None else float(np.median(np.abs(r[at]))) for s, r in relative.items()
    }
    return {"n": int(at.sum()), **medians}


def _family(outcome: Outcome, name: str) -> Block:
    found = outcome.profiles[name].calibration
    return {
        "rows": found.rows,
        "groups": list(outcome.profiles[name].groups),
        "measured": list(found.measured_names),
        "held": dict(outcome.held[name]),
        "spread": {f.name: getattr(found.spread, f.name) for f in fields(found.spread)},
    }


# --- as words ------------------------------------------------------------------------------------


def group_errors(answer: Mapping[str, Any]) -> Text:
    """Median errors by split group, the largest first; over them in the last line."""
    groups = answer["by_group"]
    last = "left_out" if answer["macro"]["left_out"] else "after"
    names = sorted(groups, key=lambda n: groups[n][last], reverse=True)
    rows = [(n, str(groups[n]["n"]), *(percent(groups[n][s]) for s in STAGES)) for n in names]
    macro = answer["macro"]
    for figure in ("median_of_medians", "mean_of_medians"):
        over = (percent(macro[s][figure]) if macro[s] else "-" for s in STAGES)
        rows.append((figure.replace("_", " "), str(answer["rows"]), *over))
    return Text(
        title="Median error of the step time",
        columns=("split group", "rows", "before", "after", "group left out"),
        rows=tuple(rows),
    )


WORSE = 0.01
"""Growth of a group's median error from which a fit is said to have made it worse."""


def worse_groups(answer: Mapping[str, Any]) -> Iterator[str]:
    """What to say of every split group that the fit predicts worse than the profiles before it."""
    for name, group in answer["by_group"].items():
        if group["after"] > group["before"] + WORSE:
            errors = f"{percent(group['before'])} before, {percent(group['after'])} after"
            beside = "disagree with each other or with what was fitted beside them"
            if group["n"] == 1:
                beside = "disagrees with what was fitted beside it"
            yield (
                f"{name}: predicted worse than before ({errors}): its "
                f"{counted(group['n'], 'run')} {beside}; measure more, or keep the profile there "
                "was"
            )


def determined(answer: Mapping[str, Any]) -> Text:
    """What the runs of each family determine, and what stays at its prior and why."""
    return Text(
        title="Constants that the runs determine, and those held at their prior",
        columns=("family", "rows", "measured", "held: not told apart", "held: no or little effect"),
        rows=tuple(_determined(answer["families"])),
    )


def _determined(families: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, family in families.items():
        shown = "everything" if name == EVERYTHING else name
        twins = {n: w.split()[-1] for n, w in family["held"].items() if w.startswith(NOT_TOLD)}
        apart = ", ".join(f"{n} ({twin})" for n, twin in twins.items())
        others = ", ".join(n for n in family["held"] if n not in twins)
        yield shown, str(family["rows"]), ", ".join(family["measured"]), apart or "-", others or "-"


def left_out_line(answer: Mapping[str, Any]) -> Text:
    """Errors of left-out runs, with how often their intervals cover."""
    block = answer["left_out"]
    return Text(
        title="Step time with its split group left out",
        columns=ERROR_COLUMNS,
        rows=(error_row(block),) if block else (),
    )
