"""The envelope of a saved plan: what was asked, what it was made with, what was left out.

Training and serving plans share it; their short lists differ. `Envelope.text()` is what `--json`
prints and what `plan.json` holds, byte for byte. `read_envelope` reads a file back strictly: one
that is not whole, or that a newer program wrote, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from autoparallel import files
from autoparallel import strict_json as check
from autoparallel.errors import ConfigError, bad_value
from autoparallel.provenance import PROVENANCE, Provenance

SCHEMA_VERSION = 1
PLAN_FILE = "plan.json"
MAX_BYTES = 64 * 1024 * 1024

_MADE_BY = {"training": "search", "serving": "infer"}
"""Kind of a plan -> the verb that writes it."""

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A ranked short list with what was asked, what it was made with and what was left out.

    Attributes:
        request: The request as plain data; `--from` reads it back.
        considered, legal, evaluated, feasible: Candidates that survived each sieve.
        pruned: Reason -> how many candidates it removed.
        search_s: Wall time from request to ranked plan.
        entries: The short list, best first (`plan` in the file).
    """

    schema_version: int = SCHEMA_VERSION
    kind: str
    request: dict[str, Any]
    provenance: Provenance
    considered: int
    legal: int
    evaluated: int
    feasible: int
    pruned: dict[str, int]
    search_s: float
    entries: tuple[Any, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data: stable key order, finite numbers, null for what is absent."""
        head = asdict(replace(self, entries=()))
        del head["entries"]
        plan = [entry.to_json() for entry in self.entries]
        return {name: check.plain(name, value) for name, value in head.items()} | {"plan": plan}

    def text(self) -> str:
        """What `--json` prints and `plan.json` holds."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"

    def write(self, directory: Path) -> Path:
        """Write `plan.json` into `directory`, atomically; returns its path."""
        return files.write_text(directory, PLAN_FILE, self.text())


_ENVELOPE: dict[str, check.Check] = {
    "schema_version": check.count,
    "kind": check.text,
    "request": check.mapping,
    "provenance": check.built(Provenance, PROVENANCE),
    **dict.fromkeys(("considered", "legal", "evaluated", "feasible"), check.count),
    "pruned": check.map_of(check.count),
    "search_s": check.number,
}


def envelope_values(data: Any, kind: str, entry: check.Check) -> dict[str, Any]:
    """The fields of a plan of this kind; `entry` reads one element of its short list.

    Raises:
        ConfigError: another schema or kind, or a value that is not what the schema says.
    """
    found = check.mapping("", data)
    version = check.count("schema_version", found.get("schema_version"))
    if version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        hint = "upgrade autoparallel-planner" if newer else "run the search again"
        raise bad_value("schema_version", version, f"is not {SCHEMA_VERSION}", hint)
    if found.get("kind") != kind:
        hint = f"give a run of `autoparallel {_MADE_BY[kind]}`"
        raise bad_value("kind", found.get("kind"), f"is not {kind}", hint)
    values = check.record("", found, _ENVELOPE | {"plan": check.list_of(entry)})
    return {("entries" if name == "plan" else name): v for name, v in values.items()}


def read_envelope(path: Path | str, read: Callable[[Any], Read]) -> Read:
    """What `read` makes of the JSON of a saved plan, given as its file or its run directory.

    Raises:
        ConfigError: no such file, over 64 MB, not whole JSON, or refused by `read`.
    """
    place = Path(path)
    if "\0" not in str(path):
        place = place / PLAN_FILE if place.is_dir() else place
        if not place.exists():
            rule, hint = f"has no {PLAN_FILE}", "give the folder that `search` or `infer` wrote"
            raise bad_value("run", str(path), rule if Path(path).exists() else "is not there", hint)
    try:
        return read(check.parsed(files.read_text(place, MAX_BYTES)))
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def plan_kind(path: Path | str) -> str:
    """`training`, `serving` or whatever a saved plan says it is.

    Raises:
        ConfigError: a file that cannot be read as JSON.
    """
    return read_envelope(path, lambda data: str(check.mapping("", data).get("kind")))
