"""Small serving settings for tests: real catalog entries with the priors, not a calibration."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from autoparallel import catalog
from autoparallel.inference import Setting, backend, setting
from autoparallel.inference.constants import ServingConstants


@cache
def served(
    model: str, precision: str = "bf16", cluster: str = "dgx-h100", engine: str = "vllm"
) -> Setting:
    """A setting under the priors, so that a new calibration changes no test."""
    found = setting(catalog.model(model), catalog.cluster(cluster), backend(engine), precision)
    return replace(found, constants=ServingConstants())
