"""Stands in for `python -m autoparallel.profiling.worker FOLDER`: one rank that ends as told.

FAKE_RANKS is a comma-separated list, one word a rank: ok, out_of_memory, crash, hang, vanish, oom.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from autoparallel.profiling.job import Job, RankReport
from autoparallel.profiling.rank_end import (
    END_MARK,
    STEP_MARK,
    STEPS_FILE,
    RankEnd,
    end_file,
    step_line,
)

folder, rank = Path(sys.argv[-1]), int(os.environ["RANK"])
words = os.environ["FAKE_RANKS"].split(",")
how = words[min(rank, len(words) - 1)]
job = Job.parse((folder / "job.json").read_text())
assert int(os.environ["WORLD_SIZE"]) == job.processes
assert os.environ["MASTER_ADDR"]
assert os.environ["MASTER_PORT"]
print(f"rank {rank} of {job.trial}", flush=True)
if rank == 0:
    line = step_line(0.25, warmup=False)
    (folder / STEPS_FILE).write_text(line + "\n")
    print(STEP_MARK + line, flush=True)
if how == "hang":
    time.sleep(600)
if how in ("vanish", "oom"):
    sys.exit(3 if how == "vanish" else 137)
end = RankEnd(
    rank=rank,
    outcome=how,
    message="" if how == "ok" else "told to",
    device="cuda",
    backend="nccl",
    impl="sdpa",
    step_s=(0.25, 0.25) if how == "ok" else (),
    report=RankReport(rank=rank, peak_allocated_bytes=1000 + rank),
)
(folder / end_file(rank)).write_text(end.text())
print(END_MARK + end.text(), flush=True)
sys.exit(0 if how == "ok" else 1)
