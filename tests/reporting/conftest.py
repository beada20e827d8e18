from __future__ import annotations

from pathlib import Path

import pytest
from reporting_runs import request_of, saved

from autoparallel.reporting.run import TrainingRun, read_training_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("runs") / "job", request_of())


@pytest.fixture(scope="session")
def run(run_folder) -> TrainingRun:
    return read_training_run(run_folder)
