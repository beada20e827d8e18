"""Calibrated profiles: the constants of a framework on a GPU generation, read from `profiles/`.

`calibration` finds the profile of a family, or borrows that of everything measured, says so and
widens it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from autoparallel.catalog_schema import GENERATIONS as GENERATIONS
from autoparallel.constants import Constants, MemoryConstants, memory_bounds
from autoparallel.errors import ProfileError, nearest, shown
from autoparallel.nearby import Nearby, read_nearby
from autoparallel.strict_yaml import read_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far predictions of this family are off: standard deviations of log factors.

    The step's parts are wrong independently of each other, each by one factor common to all layouts
    of a job, so errors shared by two layouts cancel in their order. `layout` is what remains
    between two layouts whose parts are alike.
    """

    compute: float = 0.12
    communication: float = 0.5
    bubble: float = 0.3
    launch: float = 0.4
    layout: float = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Constants of one family with their spread and where they come from.

    Attributes:
        state: `measured` when fitted to runs of this very family, `assumed` when borrowed or prior.
        borrowed_from: The profile whose constants these are; empty when they are its own.
        measured_names: Constants that the runs could tell apart; the others stand at their prior.
        nearby: The runs themselves, for what the constants do not say; None when borrowed.
    """

    family: str
    constants: Constants = field(default_factory=Constants)
    memory: MemoryConstants = field(default_factory=MemoryConstants)
    spread: Spread = field(default_factory=Spread)
    state: str = "assumed"
    borrowed_from: str = ""
    rows: int = 0
    measured_names: tuple[str, ...] = ()
    source: str = ""
    nearby: Nearby | None = None

    @property
    def lender(self) -> str:
        """Whose constants these are, in words; empty when they are its own."""
        return "everything measured" if self.borrowed_from == EVERYTHING else self.borrowed_from


BORROWED_SPREAD = 1.5
"""How much wider a borrowed calibration's spread is."""
RELATIVES: Mapping[str, tuple[str, ...]] = {
    "nemo": ("megatron",),
    "nemo-early": ("nemo", "megatron"),
    "megatron": ("nemo",),
    "zero-bubble": ("megatron", "nemo"),
    "yafsdp": ("fsdp", "nemo"),
    "paxml": ("fsdp", "nemo"),
    "aleph-alpha": ("megatron", "nemo"),
    "megatron-deepspeed": ("megatron", "nemo"),
    "nanotron-early": ("nanotron", "megatron", "nemo"),
    "nanotron-slow-nodes": ("nanotron", "megatron", "nemo"),
    "nanotron": ("megatron", "nemo"),
    "fsdp": ("nemo", "megatron"),
}
"""Framework families like another, nearest first: whose memory constants it takes without runs."""
OF_ITS_OWN = ("nanotron", "nanotron-early", "nanotron-slow-nodes")
"""Families that no fit to everything speaks for: their host time is unlike the others'."""
EVERYTHING = "all"
"""The profile fitted to everything measured but those."""
OF_ONE_CODE_BASE = ("extra_gradient_bytes", "residual_copies")
"""Memory constants that say nothing of a relative's code."""
_NOTES = ("family", "fitted", "source", "rows", "groups", "versions")
_KEYS = (*_NOTES, "constants", "memory", "spread", "nearby")


def calibration(family: str, generation: str, folder: Path) -> Calibration:
    """The calibration of framework `family` on GPUs of `generation`, from `folder`/training.

    Without a profile of its own it borrows the constants of everything measured, which apply to any
    GPU through its datasheet. A borrowed one says `assumed` and is wider. Memory is the code's: it
    comes from the same framework on any generation first.

    Raises:
        ProfileError: a profile file that does not parse.
    """
    wanted = f"{family}-{generation}"
    for candidate in stand_ins(family, generation):
        path = folder / "training" / f"{candidate}.yaml"
        if path.is_file():
            found = read_calibration(path)
            return found if candidate == wanted else _borrowed(found, wanted, folder)
    return Calibration(family=wanted, source="priors: no profile was found")


def first_calibration(family: str, generation: str, folders: Sequence[Path]) -> Calibration:
    """The family's own calibration of the first folder that has one, else that of the most runs.

    A few runs of one machine, fitted into a folder in front of the shipped one, thus speak for the
    families they are of and leave what everything measured says of the others as it is.

    Raises:
        ProfileError: a profile file that does not parse.
    """
    found = [calibration(family, generation, folder) for folder in folders]
    own = [c for c in found if c.rows and not c.borrowed_from]
    return own[0] if own else max(found, key=lambda c: c.rows)


def stand_ins(family: str, generation: str) -> list[str]:
    """Profiles that may stand for a framework on a GPU generation, its own and then the best first.

    Whole families left out one at a time err by 15 % under the fit to everything else and by 21 %
    under that of the nearest relative, which is one job or two (benchmarks/LOG.md). Relatives come
    last, for folders without a fit to everything.
    """
    near = _generations(generation)
    related = RELATIVES.get(family, ("nemo", "megatron"))
    same = [f"{family}-{g}" for g in near]
    here = [f"{kind}-{generation}" for kind in related]
    there = [f"{kind}-{g}" for kind in related for g in near]
    rest = [*here, *same, *there]
    first = same if family in OF_ITS_OWN else []
    return [f"{family}-{generation}", *first, EVERYTHING, *rest]


def _generations(generation: str) -> list[str]:
    """GPU generations, the nearest first."""
    at = GENERATIONS.index(generation) if generation in GENERATIONS else 0
    return sorted(GENERATIONS, key=lambda g: abs(GENERATIONS.index(g) - at))


def _borrowed(found: Calibration, family: str, folder: Path) -> Calibration:
    return replace(
        found,
        family=family,
        memory=_memory_of(family, folder) or found.memory,
        spread=lent_spread(found.spread),
        state="assumed",
        borrowed_from=found.family,
        measured_names=(),
        nearby=None,
    )


def lent_spread(spread: Spread) -> Spread:
    """How far predictions of a family that borrows constants of this `spread` are off."""
    return Spread(**{f.name: getattr(spread, f.name) * BORROWED_SPREAD for f in fields(Spread)})


def _memory_of(wanted: str, folder: Path) -> MemoryConstants | None:
    """Memory constants of the same code on the nearest GPU generation, else of a relative's."""
    family, _, generation = wanted.rpartition("-")
    for kind in (family, *RELATIVES.get(family, ())):
        for near in _generations(generation):
            path = folder / "training" / f"{kind}-{near}.yaml"
            if path.is_file():
                found = read_calibration(path).memory
                return found if kind == family else lent_memory(found)
    return None


def lent_memory(found: MemoryConstants) -> MemoryConstants:
    """A relative's memory constants: less certain, and without what its code alone keeps."""
    sigma = BORROWED_SPREAD * float(found.error_sigma)
    wider = min(sigma, memory_bounds("error_sigma")[1])
    return replace(found, error_sigma=wider, **dict.fromkeys(OF_ONE_CODE_BASE, 0.0))


@cache
def read_calibration(path: Path) -> Calibration:
    """One profile file.

    Raises:
        ProfileError: an unknown block or constant, or a value outside its physical bounds.
    """
    data = profile_data(path, _KEYS)
    return Calibration(
        **profile_head(path, data),
        constants=record(path, Constants, "constants", data),
        memory=record(path, MemoryConstants, "memory", data),
        spread=record(path, Spread, "spread", data),
        nearby=_nearby(path, data.get("nearby")),
    )


def profile_data(path: Path, keys: Sequence[str]) -> Mapping[str, object]:
    """What a profile file holds, under these keys.

    Raises:
        ProfileError: an unknown key.
    """
    data = read_yaml(path)
    if unknown := sorted(data.keys() - set(keys)):
        hint = nearest(unknown[0], keys)
        raise ProfileError(f"{path.name}: unknown key {shown(unknown[0])}; {hint}")
    return data


def profile_head(path: Path, data: Mapping[str, object]) -> dict[str, Any]:
    """What profiles of training and of serving both say of themselves, as fields of either.

    Raises:
        ProfileError: the number of rows is no count.
    """
    entries = data.get("constants")
    stated = entries if isinstance(entries, dict) else {}
    return {
        "family": str(data.get("family", path.stem)),
        "state": "measured",
        "rows": _row_count(path, data.get("rows", 0)),
        "measured_names": tuple(
            name
            for name, entry in stated.items()
            if isinstance(entry, dict) and entry.get("state") == "measured"
        ),
        "source": str(data.get("source", "")),
    }


def _nearby(path: Path, table: object) -> Nearby | None:
    """The measured runs of a profile.

    Raises:
        ProfileError: what is not such a table.
    """
    if table is None:
        return None
    try:
        return read_nearby(str(table))
    except ValueError as error:
        raise ProfileError(f"{path.name}: nearby: {error}; calibrate again") from error


def record(path: Path, kind: type[Any], block: str, data: Mapping[str, object]) -> Any:
    """A record from a block of `name: number` or `name: {value: number, ...}`.

    Raises:
        ProfileError: an unknown name, or a value that is no number inside its bounds.
    """
    entries = data.get(block) or {}
    if not isinstance(entries, dict):
        raise ProfileError(f"{path.name}: {block} is not a mapping of names to values")
    known = [f.name for f in fields(kind)]
    values = {}
    for name, entry in entries.items():
        if name not in known:
            hint = nearest(name, known)
            raise ProfileError(f"{path.name}: unknown {block} name {shown(name)}; {hint}")
        value = entry.get("value") if isinstance(entry, dict) else entry
        limits = kind.__dataclass_fields__[name].metadata
        values[name] = _number(path, f"{block}.{name}", value, limits)
    return kind(**values)


def _row_count(path: Path, value: object) -> int:
    """How many runs the constants were fitted to."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**9:
        raise ProfileError(f"{path.name}: rows {shown(value)} is not a count of runs")
    return value


def _number(path: Path, name: str, value: object, metadata: Mapping[str, Any]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProfileError(f"{path.name}: {name} {shown(value)} is not a number")
    low, high = metadata.get("low", 0.0), metadata.get("high", 10.0)
    if not low <= value <= high:
        rule = f"is outside its bounds {low:g} to {high:g}"
        raise ProfileError(f"{path.name}: {name} {shown(value)} {rule}")
    return float(value)
