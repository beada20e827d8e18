"""Launch files follow the site: mock data without one, the request's tokens with one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoparallel.cli.launch import write_launch_files
from autoparallel.layout import Layout
from autoparallel.request import TrainingRequest, training_request


def _arguments(request: TrainingRequest, folder: Path) -> list[str]:
    write_launch_files(request, Layout.parse("tp8 pp4 sp zero1"), folder)
    return (folder / "launch/megatron-lm/args.txt").read_text().splitlines()


def _value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_without_data_a_short_run_on_mock_data(tmp_path: Path) -> None:
    arguments = _arguments(training_request(model="gpt-175b", num_gpus=64), tmp_path)
    assert _value(arguments, "--train-iters") == "50"
    assert "--mock-data" in arguments


def test_with_data_the_whole_run(tmp_path: Path) -> None:
    request = training_request(model="gpt-175b", num_gpus=64)
    site = replace(request.site, data_path=("1.0", "/data/text"))
    arguments = _arguments(replace(request, site=site), tmp_path)
    assert int(_value(arguments, "--train-iters")) == -(-300e9 // (1536 * 2048))
    assert "--mock-data" not in arguments
