"""Stands in for `python -m torch.distributed.run -m MODULE FOLDER`: fake ranks of one node."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

count, nodes = int(os.environ["PET_NPROC_PER_NODE"]), int(os.environ["PET_NNODES"])
node = int(os.environ["PET_NODE_RANK"])
rank_script = Path(__file__).with_name("fake-rank")
ranks = []
for local in range(count):
    environment = {
        **os.environ,
        "RANK": str(node * count + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(nodes * count),
        "MASTER_ADDR": os.environ["PET_MASTER_ADDR"],
        "MASTER_PORT": os.environ["PET_MASTER_PORT"],
    }
    ranks.append(subprocess.Popen([str(rank_script), sys.argv[-1]], env=environment))
codes = [None]
while None in codes and not any(codes):
    time.sleep(0.01)
    codes = [rank.poll() for rank in ranks]
[rank.kill() for rank in ranks]
sys.exit(next((code for code in codes if code), 0))
