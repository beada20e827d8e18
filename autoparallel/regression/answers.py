"""A request of either kind, asked by name and answered today."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoparallel.regression.kinds import SERVING, TRAINING, Kind, Today
from autoparallel.regression.serving import serving_asked, serving_resolved, serving_today
from autoparallel.regression.training import asked as training_asked
from autoparallel.regression.training import resolved, training_today
from autoparallel.request import ServingRequest, TrainingRequest


def kind_of_request(saved: Mapping[str, Any]) -> Kind:
    """The kind of plan that a saved request asks for."""
    return SERVING if saved.get("kind") == SERVING.name else TRAINING


def asked(
    saved: Mapping[str, Any], folder: Path, named: Mapping[str, str | None]
) -> dict[str, Any]:
    """What a saved request asked, by name, for a lock in `folder`.

    Args:
        saved: The `request` block of a plan.
        folder: Where the lock will be; paths are kept relative to it.
        named: Files of `model` and `cluster` when these are not catalog entries.

    Raises:
        ConfigError: names that today's catalog lacks, or that stand for other numbers.
    """
    if kind_of_request(saved) is SERVING:
        return serving_asked(ServingRequest.from_mapping(saved, "request"), folder, named)
    return training_asked(TrainingRequest.from_mapping(saved, "request"), folder, named)


def answered(
    kind: Kind, ask: Mapping[str, Any], folder: Path, folders: Mapping[str, Path | None]
) -> Today:
    """Today's answer to what a lock in `folder` asks.

    Args:
        kind: Of the lock.
        ask: Its `request` block.
        folder: Where it is.
        folders: `config_dir` and `profiles_dir` to take in place of the lock's own.

    Raises:
        ConfigError: a name that the catalog no longer has, or a value it no longer takes.
    """
    if kind is SERVING:
        return serving_today(serving_resolved(ask, folder, folders))
    return training_today(resolved(ask, folder, folders))
