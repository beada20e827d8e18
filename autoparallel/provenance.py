"""What a plan was made with: versions, commit, and digests of the data behind it."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from autoparallel import catalog
from autoparallel import strict_json as check
from autoparallel.versions import version_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a plan was made with: library versions, git commit, digests of the data it read."""

    versions: dict[str, str]
    git: str | None = None
    profile_digest: str | None = None
    catalog_digest: str | None = None


PROVENANCE: dict[str, check.Check] = {
    "versions": check.map_of(check.text),
    "git": check.or_null(check.text),
    "profile_digest": check.or_null(check.text),
    "catalog_digest": check.or_null(check.text),
}


@cache
def provenance() -> Provenance:
    """Versions, commit and digests behind a plan."""
    folder = catalog.data_dir()
    return Provenance(
        versions={
            "autoparallel": version_of(),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        git=_commit(folder),
        profile_digest=_digest((folder / "profiles").rglob("*.*")),
        catalog_digest=_digest((folder / "search_spaces").rglob("*.yaml")),
    )


def _commit(folder: Path) -> str | None:
    """The commit of a checkout; None for an installed package."""
    if not (folder / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5
        )
    except OSError:
        return None
    return found.stdout.strip() or None


def _digest(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents, shortened."""
    state = hashlib.sha256()
    for path in sorted(paths):
        if path.is_file():
            state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]
