"""The front of a serving search: throughput of a GPU against the speed that one user sees."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from autoparallel import files
from autoparallel.errors import bad_value

FRONT_FILE = "pareto.csv"
MAX_FRONT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A deployment of the front: tokens a second for a user and for a GPU, and what it is."""

    per_user: float
    per_gpu: float
    about: str


def read_front(folder: Path) -> tuple[Point, ...]:
    """The points of `pareto.csv`, the slowest user first; none without the file.

    Raises:
        ConfigError: a file that is not what `infer` wrote.
    """
    path = folder / FRONT_FILE
    if not path.is_file():
        return ()
    rows = csv.DictReader(io.StringIO(files.read_text(path, MAX_FRONT_BYTES), newline=""))
    try:
        points = [
            Point(
                per_user=float(row["tokens_per_s_per_user"]),
                per_gpu=float(row["tokens_per_s_per_gpu"]),
                about=f"{row['backend']} {row['mode']}",
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        reason = f"is not a front of deployments ({str(error)[:80]})"
        raise bad_value("file", str(path), reason, "run infer again") from None
    return tuple(sorted(points, key=lambda p: p.per_user))
