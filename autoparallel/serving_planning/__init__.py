"""Serving plans: a `ServingRequest` in, a `ServingPlan` out.

The whole way down in one place: request -> settings and space (`questions`) -> search and
simulation of the short list (`solving`) -> the saved records (`entries`). Also the fewest GPUs for
a rate, and what would help when nothing keeps the limits (`rescues`).
"""

from autoparallel.serving_planning.questions import limits, question
from autoparallel.serving_planning.rescues import explanation, rescues, too_much
from autoparallel.serving_planning.solving import (
    Solved,
    calibration_of,
    fewest,
    front_entries,
    miss_ms,
    nearest_miss,
    solve,
    tied,
)

__all__ = [
    "Solved",
    "calibration_of",
    "explanation",
    "fewest",
    "front_entries",
    "limits",
    "miss_ms",
    "nearest_miss",
    "question",
    "rescues",
    "solve",
    "tied",
    "too_much",
]
