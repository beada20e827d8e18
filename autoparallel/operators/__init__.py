"""How long single operators take on a GPU, looked up in measured tables.

Takes a GPU id and the folder `profiles/operators`; returns an `Operators` record of four tables:
collectives inside the NVLink domain, the fabric between nodes, GEMM and flash attention. Every
lookup is a multilinear interpolation of log time over log sizes, a few NumPy calls for a scalar or
a column, and stays finite outside the measured range by the rule its docstring states. The tables
are made from `benchmarks/measured/` by `benchmarks/build_operator_tables.py`; their headers name
sources and units.
"""

from autoparallel.operators.collectives import WIRE_FACTOR
from autoparallel.operators.files import (
    STAND_INS,
    Operators,
    load_operators,
    operators_for,
    read_table,
)

__all__ = [
    "STAND_INS",
    "WIRE_FACTOR",
    "Operators",
    "load_operators",
    "operators_for",
    "read_table",
]
