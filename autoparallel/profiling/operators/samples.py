"""Samples kept as they come, so that a measurement may stop at any time and go on later."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoparallel import strict_json as check
from autoparallel.errors import ConfigError
from autoparallel.files import write_text
from autoparallel.profiling.errand import sample_line, samples_in


class Samples:
    """Seconds by key, in one file of JSON lines; a half-written last line is forgotten.

    Raises:
        ConfigError: the file holds samples of another machine or other software.
    """

    def __init__(self, path: Path, made_with: dict[str, str]) -> None:
        self.path = path
        self._seconds: dict[str, float] = {}
        if path.is_file():
            self._read(made_with)
        else:
            write_text(path.parent, path.name, json.dumps({"made_with": made_with}) + "\n")

    def _read(self, made_with: dict[str, str]) -> None:
        head, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        if check.parsed(head).get("made_with") != made_with:
            raise ConfigError(
                f"{self.path}: holds samples of another machine or software; give another --out"
            )
        self._seconds |= dict(samples_in(lines))
        if lines and lines[-1]:
            self._append("\n")

    def __contains__(self, key: object) -> bool:
        return key in self._seconds

    def __len__(self) -> int:
        return len(self._seconds)

    def __getitem__(self, key: str) -> float:
        return self._seconds[key]

    def get(self, key: str) -> float | None:
        """Seconds of a key, None when it was not measured."""
        return self._seconds.get(key)

    def of(self, kind: str) -> Iterator[tuple[list[str], float]]:
        """The samples whose key begins with `kind`: the rest of the key's words, and seconds."""
        for key, seconds in self._seconds.items():
            first, *rest = key.split()
            if first == kind:
                yield rest, seconds

    def add(self, key: str, seconds: float) -> None:
        """Keep one sample."""
        self._seconds[key] = seconds
        self._append(sample_line(key, seconds) + "\n")

    def _append(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())


def key_of(kind: str, *words: Any) -> str:
    """The key of a sample."""
    return " ".join((kind, *map(str, words)))
