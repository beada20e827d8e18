"""Calibrated serving constants of a backend on a GPU generation, read from `profiles/serving/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from autoparallel.errors import ProfileError
from autoparallel.inference.constants import (
    ENGINE_NAMES,
    ServingConstants,
    expected,
)
from autoparallel.profiles import GENERATIONS, profile_data, profile_head, record

FOLDER = "serving"
EVERYTHING = "all"
"""Name of the profile fitted to the runs of all backends and generations."""
BORROWED_SPREAD = 1.5
"""How much wider the spread of borrowed constants is."""
_KEYS = ("family", "fitted", "source", "rows", "models", "gpus", "versions", "constants", "spread")


def _deviation(prior: float) -> Any:
    return field(default=prior, metadata={"low": 0.0, "high": 3.0})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSpread:
    """Standard deviations of the log of predicted over measured figures of left-out models."""

    ttft: float = _deviation(0.5)
    tpot: float = _deviation(0.2)
    throughput: float = _deviation(0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCalibration:
    """Constants of one family with their spread and where they come from.

    Attributes:
        family: Backend and GPU generation, `vllm-hopper`.
        state: `measured` when fitted to runs of this very family, `assumed` when borrowed or prior.
        borrowed_from: Whose constants these are; empty when they are its own.
        measured_names: Constants that the runs determine; the others stand near their prior.
        gpus: GPUs the runs were made on; empty where the profile does not say.
    """

    family: str
    constants: ServingConstants = field(default_factory=ServingConstants)
    spread: ServingSpread = field(default_factory=ServingSpread)
    state: str = "assumed"
    borrowed_from: str = ""
    rows: int = 0
    measured_names: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    source: str = ""

    @property
    def lender(self) -> str:
        """Whose constants these are, in words; empty when they are its own."""
        names = self.borrowed_from.split(" and ")
        return " and ".join("everything measured" if n == EVERYTHING else n for n in names)


def serving_calibration(
    backend: str, gpu: str, generation: str, folders: Sequence[Path]
) -> ServingCalibration:
    """The calibration of `backend` on a GPU, or a borrowed one.

    Args:
        backend: Name of the engine.
        gpu: Name of the GPU.
        generation: Of the GPU.
        folders: Where profiles are, in order of precedence; each has a folder `serving`.

    Raises:
        ProfileError: a profile file that does not parse.
    """
    known: dict[str, ServingCalibration] = {}
    for folder in reversed(folders):
        known |= known_calibrations(folder)
    return for_gpu(chosen(known, backend, generation), backend, gpu)


def for_gpu(found: ServingCalibration, backend: str, gpu: str) -> ServingCalibration:
    """`found` for one GPU of its generation: as it is where it has runs there, else borrowed."""
    if found.state != "measured" or not found.gpus or gpu in found.gpus:
        return found
    lent = _borrowed(found, f"{backend} on {gpu}", (found,))
    return replace(lent, borrowed_from=f"{found.family} ({', '.join(found.gpus)})")


@cache
def known_calibrations(folder: Path) -> Mapping[str, ServingCalibration]:
    """Every profile of `folder`/serving, by family.

    Raises:
        ProfileError: a profile file that does not parse.
    """
    return {p.stem: read_serving(p) for p in sorted((folder / FOLDER).glob("*.yaml"))}


def chosen(
    known: Mapping[str, ServingCalibration], backend: str, generation: str
) -> ServingCalibration:
    """The calibration of `backend` on GPUs of `generation` among `known`, or a borrowed one.

    Without its own it takes the constants of the engine's own code from the same backend on the
    nearest generation, and all others from the fit to all runs, scaled by what is known of the
    generation. A borrowed one says `assumed` and is wider.
    """
    family = f"{backend}-{generation}"
    if family in known:
        return known[family]
    base = known.get(EVERYTHING, ServingCalibration(family=EVERYTHING))
    constants = expected(base.constants, backend, generation)
    engine = _same_backend(known, backend, generation)
    if engine:
        own = {name: getattr(engine.constants, name) for name in ENGINE_NAMES}
        constants = replace(constants, **own)
    return _borrowed(replace(base, constants=constants), family, (base, engine or base))


def _same_backend(
    known: Mapping[str, ServingCalibration], backend: str, generation: str
) -> ServingCalibration | None:
    at = GENERATIONS.index(generation) if generation in GENERATIONS else 0
    near = sorted(GENERATIONS, key=lambda g: abs(GENERATIONS.index(g) - at))
    return next((known[f"{backend}-{g}"] for g in near if f"{backend}-{g}" in known), None)


def _borrowed(
    found: ServingCalibration, family: str, lenders: Sequence[ServingCalibration]
) -> ServingCalibration:
    """`found` as the calibration of `family`: assumed, and less sure than any of its lenders."""
    widest = {
        f.name: max(getattr(c.spread, f.name) for c in (found, *lenders))
        for f in fields(ServingSpread)
    }
    return replace(
        found,
        family=family,
        spread=ServingSpread(**{k: min(v * BORROWED_SPREAD, 3.0) for k, v in widest.items()}),
        state="assumed",
        borrowed_from=" and ".join(dict.fromkeys(c.family for c in lenders)),
        measured_names=(),
        gpus=(),
        source=found.source or "priors: no profile was found",
    )


@cache
def read_serving(path: Path) -> ServingCalibration:
    """One profile file.

    Raises:
        ProfileError: an unknown block or constant, or a value outside its physical bounds.
    """
    data = profile_data(path, _KEYS)
    return ServingCalibration(
        **profile_head(path, data),
        constants=record(path, ServingConstants, "constants", data),
        spread=record(path, ServingSpread, "spread", data),
        gpus=_gpus(path, data.get("gpus")),
    )


def _gpus(path: Path, value: object) -> tuple[str, ...]:
    """Names of GPUs, as a profile lists them."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ProfileError(f"{path.name}: gpus: {value!r} is not a list of names; correct it")
    return tuple(value)
