"""The functions of the package's own name: plain keyword arguments in, the saved records out."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from autoparallel import planning, serving_planning
from autoparallel.errors import ConfigError, nearest
from autoparallel.layout import Layout
from autoparallel.model import Model
from autoparallel.plan import Estimate, Plan
from autoparallel.request import TrainingRequest, serving_request, training_request
from autoparallel.serving_plan import ServingPlan


def search(*, model: str | Path, gpus: int, top: int = planning.TOP, **flags: Any) -> Plan:
    """The best layouts of a model on a cluster, best first.

    Args:
        model: Catalog name, or the path of a model file or a Hugging Face `config.json`.
        gpus: Size of the job.
        top: Length of the short list.
        flags: As on the command line: `cluster`, `gpu`, `framework`, `precision`,
            `global_batch_size`, `seq_length`, `tokens`, `space`, `objective`, `baseline`,
            `allow_numerics`, `overrides`, `config_dir`, `profiles_dir`.

    Raises:
        ConfigError: anything unknown, out of range or contradictory.
    """
    return planning.search(_request(model, gpus, flags), top=top)


def estimate(layout: Layout | str, *, model: str | Path, gpus: int, **flags: Any) -> Estimate:
    """What one layout costs, whether it is legal, and its place among all candidates.

    Args:
        layout: A layout, or its words such as `tp8 pp8 mbs1 sp zero1`.
        model: As for `search`, and so are the others.
        gpus: Size of the job.
        flags: As for `search`.

    Raises:
        ConfigError: anything unknown, out of range or contradictory.
    """
    request = _request(model, gpus, flags)
    asked = planning.written(layout, request) if isinstance(layout, str) else layout
    return planning.estimate(request, asked)


def infer(
    *, model: str | Path | Model, gpus: int | str, top: int = 10, **flags: Any
) -> ServingPlan:
    """The best ways to serve a model on a cluster within latency limits, best first.

    Args:
        model: As for `search`.
        gpus: How many there are, or `auto` for the fewest that carry `request_rate`.
        top: Length of the short list.
        flags: As on the command line: `input_tokens`, `output_tokens`, `cluster`, `ttft_ms`,
            `tpot_ms`, `percentile`, `objective`, `backend`, `request_rate`, `concurrency`, `trace`
            and the other arguments of `serving_request`.

    Raises:
        ConfigError: anything unknown, out of range or contradictory.
    """
    request = serving_request(model=model, num_gpus=gpus, **flags)
    return serving_planning.solve(request, top=top).plan


_FLAGS = sorted(signature(training_request).parameters.keys() - {"model", "num_gpus"})


def _request(model: str | Path, gpus: int, flags: dict[str, Any]) -> TrainingRequest:
    if unknown := sorted(flags.keys() - set(_FLAGS)):
        raise ConfigError(f"{unknown[0]}: is not a flag; {nearest(unknown[0], _FLAGS)}")
    return planning.checked(training_request(model=model, num_gpus=gpus, **flags))
