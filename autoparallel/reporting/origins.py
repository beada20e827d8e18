"""Where the numbers come from: constants with their state, catalog values with their source."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from autoparallel import catalog
from autoparallel.constants import Constants, MemoryConstants
from autoparallel.errors import ConfigError
from autoparallel.reporting.run import TrainingRun
from autoparallel.strict_yaml import read_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A calibrated constant.

    Attributes:
        low, high: 5th and 95th percentile given the runs, where they were fitted.
        bounds: Physical bounds.
        state: `measured` when the runs determine it, else `assumed`.
    """

    name: str
    meaning: str
    value: float
    low: float | None
    high: float | None
    bounds: tuple[float, float]
    state: str

    def place(self, value: float) -> float:
        """Where a value lies between the bounds, in percent."""
        low, high = self.bounds
        return 100 * (value - low) / (high - low)


def constants(run: TrainingRun) -> tuple[Constant, ...]:
    """The constants of time, then those of memory."""
    found = run.where.calibration
    stated = _stated(run)
    records = ((found.constants, Constants), (found.memory, MemoryConstants))
    return tuple(
        _constant(f, getattr(record, f.name), stated.get(f.name, {}), found.state)
        for record, kind in records
        for f in fields(kind)
    )


def _constant(f: Any, value: Any, entry: dict[str, Any], state: str) -> Constant:
    own = entry.get("state", "assumed")
    return Constant(
        name=f.name,
        meaning=f.metadata["meaning"],
        value=float(np.asarray(value).reshape(-1)[0]),
        low=entry.get("low"),
        high=entry.get("high"),
        bounds=(f.metadata["low"], f.metadata["high"]),
        state=own if state == "measured" else "assumed",
    )


def _stated(run: TrainingRun) -> dict[str, dict[str, Any]]:
    """What the profile file says of each constant; nothing where there is no such file."""
    found, own = run.where.calibration, run.request.profiles_dir
    name = f"{found.borrowed_from or found.family}.yaml"
    folders = [Path(own)] if own else []
    for folder in (*folders, run.where.folder):
        path = folder / "training" / name
        if path.is_file():
            data = read_yaml(path)
            blocks: list[Any] = [data.get("constants"), data.get("memory")]
            return {
                key: entry
                for block in blocks
                if isinstance(block, dict)
                for key, entry in block.items()
                if isinstance(entry, dict)
            }
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A number of the catalog."""

    entry: str
    field: str
    value: str
    source: str


def catalog_values(run: TrainingRun) -> tuple[Known, ...]:
    """Numbers of the GPU and the cluster, and of the model, with where they were published."""
    request = run.request
    named = (
        ("cluster", request.cluster.name, request.cluster.source),
        ("gpu", request.cluster.gpu.name, request.cluster.gpu.source),
        ("model", request.model.name, request.model.source),
    )
    return tuple(
        known
        for group, name, source in named
        for known in _entry(group, name, source, request.config_path)
    )


def _entry(group: str, name: str, source: str, config_dir: Path | None) -> list[Known]:
    try:
        values = catalog.sources(group, name, config_dir)
    except ConfigError:  # a file of the user's own that is not in the catalog
        return [
            Known(entry=f"{group} {name}", field="all", value="", source=source or "not stated")
        ]
    return [
        Known(
            entry=f"{group} {name}",
            field=field,
            value=f"{value:g}" if isinstance(value, float) else str(value),
            source=where or "not stated",
        )
        for field, (value, where) in values.items()
    ]
