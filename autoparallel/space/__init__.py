"""The candidates of a search: which combinations exist, which are legal, why the rest are not.

A `SpaceSpec` lists values a knob; `candidates` multiplies them out for one job. It does so axis by
axis (mesh, micro-batch, pipeline plan, sequence parallel, sharding, recomputation, precision,
overlap, offload and graphs): a rule is applied as soon as its knobs are known, and a combination
that falls there is counted with everything it stands for, without being built.
`considered = legal + sum(pruned)` holds exactly.

A value that cannot change time or memory for the case at hand is not a candidate and is not
counted: no sequence parallelism at tp 1, no chunks without a pipeline, no expert knobs in a dense
model.
"""

from __future__ import annotations

from autoparallel.space.axes import decided
from autoparallel.space.spec import STAGE_WORDS, SpaceSpec
from autoparallel.space.walk import BLOCK_ROWS, Candidates, Space, Workload, candidates

__all__ = [
    "BLOCK_ROWS",
    "STAGE_WORDS",
    "Candidates",
    "Space",
    "SpaceSpec",
    "Workload",
    "candidates",
    "decided",
]
