"""The worker as a handful of files, to run it where this package is not installed.

A rank needs this package's records, its strict reader and `worker/`: about forty small files and no
dependency beyond torch, megatron-core and what these bring along. `unpack` puts them into a folder
that becomes the rank's `PYTHONPATH`; so every rank runs the very code of its driver.
"""

from __future__ import annotations

from pathlib import Path

from autoparallel import files

PACKAGE = Path(__file__).parents[1]
_SINGLE = (
    "__init__.py",
    "counts.py",
    "errors.py",
    "layout/__init__.py",
    "layout/columns.py",
    "layout/distinct.py",
    "layout/product.py",
    "layout/record.py",
    "layout/words.py",
    "model.py",
    "strict_json.py",
    "units.py",
    "versions.py",
    "profiling/__init__.py",
    "profiling/errand.py",
    "profiling/job.py",
    "profiling/programs.py",
    "profiling/rank_end.py",
    "profiling/seen.py",
)


def worker_files() -> dict[str, bytes]:
    """Path below the parcel's folder -> content."""
    worker = sorted((PACKAGE / "profiling" / "worker").glob("*.py"))
    paths = [PACKAGE / name for name in _SINGLE] + worker
    root = PACKAGE.parent
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def unpack(folder: Path) -> Path:
    """Write the worker's files below `folder`; returns it."""
    for name, content in worker_files().items():
        files.write_bytes(folder, name, content)
    return folder
