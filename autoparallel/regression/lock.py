"""The lock file: a pinned plan as reviewable YAML, read strictly.

`note` and `tolerance` are a human's to edit; the checksum covers everything else, as data: comments
and line breaks are free. A file that is cut, merged badly, edited by hand or written by a newer
version is refused with the field that is wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoparallel import strict_json as check
from autoparallel.errors import ConfigError, bad_value
from autoparallel.files import write_text
from autoparallel.regression.kinds import Kind, LockEntry, Numbers, kind_of, tolerances
from autoparallel.regression.lock_text import lock_text
from autoparallel.regression.numbers import grouped
from autoparallel.strict_yaml import read_yaml

SCHEMA_VERSION = 1
EDITABLE = ("note", "tolerance")
MAX_NOTE = 4_000
MAX_SAMPLES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Repeated measurements of one layout, one value a run.

    Attributes:
        source: Where they are from: a file, or the trial of a run.
        values: Figure (`iteration_s`, `memory_bytes`) -> one value a run.
    """

    source: str
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A pinned plan.

    Attributes:
        request: What was asked, by name, so that a check asks it again.
        objective: The figure that the search made best.
        counts: Candidates after each sieve, and `pruned.RULE` for what each rule left out.
        pinned: The choice that is held.
        runners_up: Others of the short list, best first.
        used: The numbers that the prediction rests on.
        digests: Tables and rooms of code behind it -> digest.
        versions: What wrote the file.
    """

    kind: Kind
    note: str = ""
    tolerance: Mapping[str, float]
    request: Mapping[str, Any]
    objective: str
    counts: Mapping[str, int]
    pinned: LockEntry
    runners_up: tuple[LockEntry, ...]
    measured: Samples | None = None
    used: Numbers
    digests: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """The lock as plain data, in the order of the file, without its checksum."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind.name,
            "note": self.note,
            "tolerance": dict(self.tolerance),
            "request": dict(self.request),
            "pinned": _entry_data(self.pinned),
            "runners_up": [_entry_data(entry) for entry in self.runners_up],
            "measured": _samples_data(self.measured),
            "objective": self.objective,
            "counts": dict(self.counts),
            "used": grouped(self.used),
            "digests": dict(self.digests),
            "versions": dict(self.versions),
        }

    def text(self) -> str:
        """The content of the file."""
        data = self.to_mapping()
        return lock_text({**data, "checksum": checksum(data)})

    def write(self, path: Path) -> None:
        """Save whole or not at all."""
        write_text(path.parent, path.name, self.text())


def checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 over everything but what a human edits and the checksum itself."""
    covered = {k: v for k, v in data.items() if k not in (*EDITABLE, "checksum")}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def load_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        ConfigError: not a readable file of this schema, a newer schema_version, an unknown or
            missing field, a value of the wrong kind, or a checksum that does not fit.
    """
    data = read_yaml(path)
    try:
        return _lock(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _lock(data: dict[str, Any]) -> Lock:
    _check_version(data.get("schema_version"))
    kind = kind_of(data.get("kind"))
    found = check.record("", data, _checks(kind))
    _check_sum(data)
    del found["schema_version"], found["checksum"]
    return Lock(**{**found, "kind": kind})


def _check_version(version: Any) -> None:
    if version == SCHEMA_VERSION and not isinstance(version, bool):
        return
    newer = isinstance(version, int) and version > SCHEMA_VERSION
    hint = "upgrade autoparallel-planner" if newer else "write it with `autoparallel regress pin`"
    raise bad_value("schema_version", version, f"is not {SCHEMA_VERSION}", hint)


def _check_sum(data: Mapping[str, Any]) -> None:
    stated, right = data["checksum"], checksum(data)
    if stated != right:
        raise bad_value(
            "checksum",
            stated,
            f"is not that of the content ({right[:19]}...): only note and tolerance may be edited",
            "restore the file, or pin the run again",
        )


# --- blocks -----------------------------------------------------------------------------


def _entry_data(entry: LockEntry) -> dict[str, Any]:
    return {
        "rank": entry.rank,
        "layout": entry.layout,
        "fields": dict(entry.fields),
        "predicted": dict(entry.predicted),
        "intervals": {name: list(pair) for name, pair in entry.intervals.items()},
        "parts": {name: dict(block) for name, block in entry.parts.items()},
    }


def _samples_data(samples: Samples | None) -> dict[str, Any] | None:
    if samples is None:
        return None
    return {"source": samples.source, "values": {k: list(v) for k, v in samples.values.items()}}


def _used(path: str, value: Any) -> dict[str, Any]:
    found = check.map_of(check.mapping)(path, value)
    return {
        f"{g}.{k}": _plain(f"{path}.{g}.{k}", v) for g, b in found.items() for k, v in b.items()
    }


def _plain(path: str, value: Any) -> Any:
    if isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(v, list | dict) for v in value)
    ):
        raise check.wrong(path, value, "is neither a plain value nor a list of them")
    return value


def _note(path: str, value: Any) -> str:
    note = check.text(path, value)
    if len(note) > MAX_NOTE or not all(c.isprintable() or c in "\n\t" for c in note):
        raise check.wrong(path, value, f"is not printable text of at most {MAX_NOTE} characters")
    return note


def _figures(path: str, value: Any) -> tuple[float, ...]:
    found = [check.number(f"{path}[{i}]", v) for i, v in enumerate(check.sequence(path, value))]
    if not 0 < len(found) <= MAX_SAMPLES or min(found) <= 0:
        raise check.wrong(path, value, f"is not 1 to {MAX_SAMPLES} numbers above 0")
    return tuple(float(v) for v in found)


_ENTRY: dict[str, check.Check] = {
    "rank": check.count,
    "layout": check.text,
    "fields": check.map_of(_plain),
    "predicted": check.map_of(check.or_null(check.number)),
    "intervals": check.map_of(check.interval),
    "parts": check.map_of(check.map_of(check.number)),
}
_SAMPLES: dict[str, check.Check] = {"source": check.text, "values": check.map_of(_figures)}
_entry = check.built(LockEntry, _ENTRY)


def _checks(kind: Kind) -> dict[str, check.Check]:
    return {
        "schema_version": check.count,
        "kind": check.text,
        "note": _note,
        "tolerance": lambda path, value: tolerances(kind, path, value),
        "request": lambda path, value: check.record(path, value, kind.request),
        "pinned": _entry,
        "runners_up": check.list_of(_entry),
        "measured": check.or_null(check.built(Samples, _SAMPLES)),
        "objective": check.text,
        "counts": check.map_of(check.count),
        "used": _used,
        "digests": check.map_of(check.text),
        "versions": check.map_of(check.text),
        "checksum": check.text,
    }
