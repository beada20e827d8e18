"""`profile --from-logs`: what was launched elsewhere joins the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoparallel.cli import program
from autoparallel.cli.outcome import exit_code_of

RECORDED = Path(__file__).parents[1] / "profiling" / "logs" / "recorded"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    words = ("search", "--model", "gpt-tiny", "--cluster", "dgx-h100", "--gpus", "4")
    assert autoparallel(*words, "--quiet", "--out", str(tmp_path / "run")) == 0
    return tmp_path / "run"


def autoparallel(*words: str) -> int:
    import typer

    return exit_code_of(typer.main.get_command(program()), words)


def test_logs_of_exported_layouts_join_the_plan(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    for rank, log in ((1, "megatron_good"), (2, "megatron_oom")):
        assert autoparallel("export", str(run), "--rank", str(rank), "--out", str(logs / log)) == 0
        text = (RECORDED / f"{log}.log").read_bytes()
        (logs / log / "launch" / "megatron-lm" / "slurm-7.out").write_bytes(text)
    first = json.loads((run / "plan.json").read_text())["plan"]
    capsys.readouterr()
    assert autoparallel("profile", str(run), "--from-logs", str(logs), "--json") == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    measured = {entry["layout"]: entry["measured"] for entry in plan if entry["measured"]}
    found = measured[first[0]["layout"]]
    assert (found["outcome"], found["impl"]) == ("ok", "te")
    assert 0.2 < found["iteration_s"] < 0.22
    assert measured[first[1]["layout"]]["outcome"] == "out_of_memory"
    assert len((run / "trials" / "journal.jsonl").read_text().splitlines()) == 2
    assert autoparallel("profile", str(run), "--from-logs", str(logs), "--quiet") == 0
    assert len((run / "trials" / "journal.jsonl").read_text().splitlines()) == 2


def test_logs_of_something_else_are_exit_4(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_bytes((RECORDED / "megatron_good.log").read_bytes())
    before = (run / "plan.json").read_bytes()
    assert autoparallel("profile", str(run), "--from-logs", str(tmp_path / "logs")) == 4
    assert "0 of 1 run in" in capsys.readouterr().err
    assert autoparallel("profile", str(run), "--from-logs", str(tmp_path / "none")) == 2
    assert (run / "plan.json").read_bytes() == before
