"""Whole families (a framework on a GPU generation) predicted without any run of theirs.

python benchmarks/families_left_out.py [--out FILE]

Every fit is made again without the family (minutes); it is then predicted by what `profiles` would
borrow for it. Prints Markdown and writes it to benchmarks/families_left_out_<yyyy-mm>.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pages import publish

from autoparallel.calibration.fit import log_error
from autoparallel.calibration.profile_file import versions
from autoparallel.calibration.training import Rows, fit_everything, known_without, timed_rows
from autoparallel.scoreboard.score import read_files
from autoparallel.scoreboard.text import Text, percent

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "benchmarks" / "measured" / "training.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """A family predicted without any run of its own.

    Attributes:
        groups: Its split groups.
        error: Mean over them of the median error.
        bias: Median of predicted over measured, minus 1.
    """

    name: str
    rows: int
    groups: int
    error: float
    bias: float


def stranger(rows: Rows, family: str) -> Stranger:
    """`family` predicted from all others."""
    own = rows.families == family
    base = fit_everything(rows, ~own).constants
    constants, nearby = known_without(rows, family, ~own, base)
    data = rows.at(own)
    errors = np.exp(log_error(data, constants, nearby)) - 1
    groups = np.unique(data.groups)
    medians = [np.median(np.abs(errors[data.groups == group])) for group in groups]
    return Stranger(
        name=family,
        rows=len(errors),
        groups=len(groups),
        error=float(np.mean(medians)),
        bias=float(np.median(errors)),
    )


def table(found: list[Stranger]) -> Text:
    """A row a family, the largest error first; over them in the last."""
    ordered = sorted(found, key=lambda s: -s.error)
    rows = [
        (s.name, str(s.rows), str(s.groups), percent(s.error), percent(s.bias)) for s in ordered
    ]
    errors = [s.error for s in found]
    for name, value in (("mean", np.mean(errors)), ("median", np.median(errors))):
        rows.append((name, str(sum(s.rows for s in found)), "", percent(float(value)), ""))
    return Text(
        title="Step time of families without a run of their own",
        columns=("family", "rows", "split groups", "mean of medians", "bias"),
        rows=tuple(rows),
    )


def page() -> str:
    """The whole page."""
    rows = timed_rows(read_files([MEASURED])[0])
    found = []
    for family in np.unique(rows.families):
        print(family, file=sys.stderr)
        found.append(stranger(rows, str(family)))
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    head = (
        f"# Families left out, {datetime.now(UTC):%Y-%m}\n\n"
        "    python benchmarks/families_left_out.py\n\n"
        f"{used}; {len(rows.readings):,} timed rows of {MEASURED.relative_to(ROOT)}. What a user\n"
        "of a framework on a GPU generation sees who has no run of it: every constant comes from\n"
        "other families, fitted without it.\n\n"
    )
    return head + table(found).markdown()


if __name__ == "__main__":
    publish("families_left_out", __doc__, page)
