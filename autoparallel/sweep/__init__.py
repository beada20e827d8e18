"""Sweep: many requests in, one table and its decisions out.

What if there were more GPUs, other ones, another batch, another price: the product of the values of
a few axes, each searched like a single request. Takes requests, gives one `SweepResult` a case
(kept on disk as it is found, so a stopped sweep goes on where it was) and answers over all of them:
scaling, the cheapest cluster for a deadline, prices at which two clusters break even.
"""

from autoparallel.sweep.answers import Limits, break_evens, decided, decisions, scaled
from autoparallel.sweep.cases import Axes, SweepCase, cases
from autoparallel.sweep.results import SweepResult, searched_case
from autoparallel.sweep.running import run_cases

__all__ = [
    "Axes",
    "Limits",
    "SweepCase",
    "SweepResult",
    "break_evens",
    "cases",
    "decided",
    "decisions",
    "run_cases",
    "scaled",
    "searched_case",
]
