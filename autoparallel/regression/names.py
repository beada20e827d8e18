"""Names and paths in a lock, and digests of what has no numbers: shared by all kinds of plan."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from autoparallel.request.compose import parsed_overrides


def given_text(overrides: Sequence[str], key: str) -> str:
    """The override of `key` as it was given."""
    return next(text for text in overrides if parsed_overrides([text])[0].key == key)


def placed(path: str | None, folder: Path) -> str | None:
    """A path as the lock keeps it: relative to its folder, with forward slashes."""
    if not path:
        return None
    relative = Path(os.path.relpath(Path(path).resolve(), folder.resolve())).as_posix()
    return relative if "/" in relative or "." in relative else f"./{relative}"


def found_at(path: str | None, folder: Path) -> Path | None:
    """A path of the lock from where the lock is; the folder itself need not exist yet."""
    return Path(os.path.normpath(folder.resolve() / path)) if path else None


def known_name(name: str, folder: Path) -> str:
    """A catalog name as it is; a path from the lock's folder."""
    is_path = "/" in name or name.lower().endswith((".yaml", ".yml", ".json"))
    return str(found_at(name, folder)) if is_path else name


def operator_tables(folder: Path, gpu: str) -> list[Path]:
    """The operator tables of a GPU, and those that all share; every table when it has none."""
    tables = sorted(folder.glob("*.csv"))
    own = [t for t in tables if t.stem.startswith(f"{gpu.partition('-')[0]}-")]
    shared = [t for t in tables if "-" not in t.stem]
    return [*own, *shared] if own else tables


@cache
def code_digest(room: str) -> str:
    """Digest of a room's source, whether it is a file or a folder."""
    package = Path(__file__).resolve().parent.parent
    folder = package / room
    return digest(sorted(folder.glob("*.py")) if folder.is_dir() else [package / f"{room}.py"])


def digest(paths: Sequence[Path]) -> str:
    """SHA-256 over names and contents, shortened; line ends as git may have them do not count."""
    state = hashlib.sha256()
    for path in paths:
        if path.is_file():
            content = path.read_bytes().replace(b"\r\n", b"\n")
            state.update(path.name.encode() + b"\0" + content + b"\0")
    return state.hexdigest()[:12]


def text_digest(text: str) -> str:
    """SHA-256 of a text, shortened."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
