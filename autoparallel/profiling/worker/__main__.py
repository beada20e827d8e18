"""`python -m autoparallel.profiling.worker FOLDER`: one rank, as torchrun or srun starts it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from autoparallel.profiling.worker.rank import run_in_folder

if __name__ == "__main__":
    end = run_in_folder(Path(sys.argv[1]), os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if end.outcome == "ok" else 1)  # peers may still sit in a collective
