from __future__ import annotations

from pathlib import Path

import pytest
from reporting_runs import request_of, saved

from autoparallel.reporting.report import Report, training_report
from autoparallel.reporting.run import TrainingRun, read_training_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("runs") / "job", request_of())


@pytest.fixture(scope="session")
def run(run_folder) -> TrainingRun:
    return read_training_run(run_folder)


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory) -> Path:
    """The same job on twice the GPUs, in a folder of the same name."""
    return saved(tmp_path_factory.mktemp("other") / "job", request_of(num_gpus=128))


@pytest.fixture(scope="session")
def report(run) -> Report:
    """With a baseline, so that every kind of figure is in it."""
    return training_report(run, "tp8 pp8 mbs1 sp zero1 recompute=full")
