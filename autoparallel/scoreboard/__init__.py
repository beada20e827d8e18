"""Scoreboard: how far predictions are from measured runs.

Takes files of measured runs (the schema of `measured.rows`) and answers with a `Score`: errors of
time and memory, false alarms about fitting, and how well the order of layouts holds, over all rows
and by split group. `Score.table` keeps every row, for whoever wants to cut it differently.
"""

from __future__ import annotations

from autoparallel.scoreboard.score import Score, scored, validate
from autoparallel.scoreboard.table import Table, table_of

__all__ = ["Score", "Table", "scored", "table_of", "validate"]
