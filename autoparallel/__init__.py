"""Finds the best parallel layout for training or serving a large language model on a cluster.

`import autoparallel` is light: a public name imports its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoparallel.hardware import Cluster
    from autoparallel.layout import Layout
    from autoparallel.model import Model
    from autoparallel.plan import Plan, load_plan
    from autoparallel.request import TrainingRequest, training_request

_HOMES = {
    "Cluster": "autoparallel.hardware",
    "Layout": "autoparallel.layout",
    "Model": "autoparallel.model",
    "Plan": "autoparallel.plan",
    "TrainingRequest": "autoparallel.request",
    "load_plan": "autoparallel.plan",
    "training_request": "autoparallel.request",
}

__all__ = ["Cluster", "Layout", "Model", "Plan", "TrainingRequest", "load_plan", "training_request"]

try:
    __version__ = version("autoparallel-planner")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """The public object `name`, imported now."""
    if name not in _HOMES:
        raise AttributeError(f"module 'autoparallel' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
