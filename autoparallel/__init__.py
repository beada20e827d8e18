"""Finds the best parallel layout for training or serving a large language model on a cluster.

`import autoparallel` is light: a public name imports its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoparallel.hardware import Cluster
    from autoparallel.layout import Layout
    from autoparallel.model import Model
    from autoparallel.plan import Estimate, Plan, load_plan
    from autoparallel.public import estimate, infer, search
    from autoparallel.request import (
        ServingRequest,
        TrainingRequest,
        serving_request,
        training_request,
    )
    from autoparallel.scoreboard import validate
    from autoparallel.serving_plan import ServingPlan, load_serving_plan

_HOMES = {
    "Cluster": "autoparallel.hardware",
    "Estimate": "autoparallel.plan",
    "Layout": "autoparallel.layout",
    "Model": "autoparallel.model",
    "Plan": "autoparallel.plan",
    "TrainingRequest": "autoparallel.request",
    "ServingPlan": "autoparallel.serving_plan",
    "ServingRequest": "autoparallel.request",
    "estimate": "autoparallel.public",
    "infer": "autoparallel.public",
    "load_plan": "autoparallel.plan",
    "load_serving_plan": "autoparallel.serving_plan",
    "search": "autoparallel.public",
    "serving_request": "autoparallel.request",
    "training_request": "autoparallel.request",
    "validate": "autoparallel.scoreboard",
}

__all__ = [
    "Cluster",
    "Estimate",
    "Layout",
    "Model",
    "Plan",
    "ServingPlan",
    "ServingRequest",
    "TrainingRequest",
    "estimate",
    "infer",
    "load_plan",
    "load_serving_plan",
    "search",
    "serving_request",
    "training_request",
    "validate",
]


def __getattr__(name: str) -> Any:
    """The public object `name`, imported now; `__version__` is looked up now."""
    if name == "__version__":
        return import_module("autoparallel.versions").version_of()
    if name not in _HOMES:
        raise AttributeError(f"module 'autoparallel' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
