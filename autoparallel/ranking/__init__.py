"""Ranking: candidates and an evaluator in, an ordered and explained short list out.

Takes blocks of candidate columns and a function that scores them (the cost model, recorded runs,
live trials); returns the best in order, with how sure that order is and why others lost.
"""

from autoparallel.ranking.chances import (
    best_probability,
    interval_ties,
    sampled_times,
    surest_choice,
    ties,
)
from autoparallel.ranking.evaluation import Evaluate, Scores, Setting, cost_model, setting
from autoparallel.ranking.order import (
    Ranked,
    Table,
    evaluated_blocks,
    objective_column,
    ranked,
)
from autoparallel.ranking.short_list import short_list

__all__ = [
    "Evaluate",
    "Ranked",
    "Scores",
    "Setting",
    "Table",
    "best_probability",
    "cost_model",
    "evaluated_blocks",
    "interval_ties",
    "objective_column",
    "ranked",
    "sampled_times",
    "setting",
    "short_list",
    "surest_choice",
    "ties",
]
