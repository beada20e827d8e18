"""Run directories for the tests of reports."""

from __future__ import annotations

from pathlib import Path

from autoparallel.candidates_file import write_kept
from autoparallel.planning import searched
from autoparallel.request import TrainingRequest, training_request


def request_of(**flags: object) -> TrainingRequest:
    """A job of 64 GPUs that is searched in a blink and has a pipeline."""
    small = (
        "space.tensor_model_parallel_size=[2,4,8]",
        "space.pipeline_model_parallel_size=[1,4,8]",
        "space.micro_batch_size=[1]",
    )
    given = {"model": "gpt-175b", "num_gpus": 64, "global_batch_size": 64, "overrides": small}
    return training_request(**{**given, **flags})


def saved(folder: Path, request: TrainingRequest) -> Path:
    """A run directory as `search` writes it."""
    plan, result, _ = searched(request)
    plan.write(folder)
    request.write_yaml(folder / "request.yaml")
    write_kept(folder, result)
    return folder
