from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.exporting import megatron_lm
from autoparallel.layout import Layout
from autoparallel.profiling.from_logs import of_arguments, of_printed, read_runs
from autoparallel.profiling.job import Job

RECORDED = Path(__file__).parent / "logs" / "recorded"
MODEL = catalog.model("gpt-tiny")


def job(layout: str, gpus: int = 4) -> Job:
    return Job(
        model=MODEL,
        layout=Layout.parse(layout),
        num_gpus=gpus,
        global_batch_size=16,
        seq_length=64,
    )


JOBS = [job(x) for x in ("tp2", "tp2 sp", "pp2", "pp2 recompute=full", "tp2 mbs2", "zero0")]


def exported(of: Job) -> tuple[str, ...]:
    sizes = (of.num_gpus, of.global_batch_size, of.seq_length)
    return megatron_lm.arguments(of.model, of.layout, *sizes)


def launched(folder: Path, of: Job, log: str = "megatron_good", *, changed: str = "") -> None:
    """A run started with exported files: its arguments, another length, its log below."""
    folder.mkdir(parents=True)
    text = megatron_lm.text(exported(of)).replace("--train-iters\n50", "--train-iters\n500")
    (folder / "args.txt").write_text(text.replace(*changed.split("->")) if changed else text)
    (folder / "logs").mkdir()
    (folder / "logs" / "node-0.out").write_bytes((RECORDED / f"{log}.log").read_bytes())


def printed(of: Job) -> str:
    """What Megatron-LM prints of its arguments, with defaults it fills in."""
    values = of_arguments(exported(of)) | {"world_size": str(of.num_gpus)}
    if values["recompute_granularity"] == "None":
        values["recompute_modules"] = "['core_attn']"
    lines = [f"  {k} {'.' * (48 - len(k))} {v}" for k, v in sorted(values.items())]
    return "------------------------ arguments ------------------------\n" + "\n".join(lines) + "\n"


def test_runs_are_matched_by_their_exported_arguments(tmp_path: Path) -> None:
    for i, of in enumerate(JOBS):
        launched(tmp_path / str(i), of, "megatron_oom" if i == 2 else "megatron_good")
    found = read_runs(tmp_path, JOBS, exported)
    assert {r.job.layout for r in found if r.job} == {of.layout for of in JOBS}
    outcomes = {str(r.job.layout): r.result.outcome for r in found if r.job and r.result}
    assert outcomes.pop(str(JOBS[2].layout)) == "out_of_memory"
    assert set(outcomes.values()) == {"ok"}


def test_runs_are_matched_by_the_arguments_that_megatron_prints(tmp_path: Path) -> None:
    log = (RECORDED / "megatron_good.log").read_text()
    for i, of in enumerate(JOBS):
        (tmp_path / f"{i}.log").write_text(printed(of) + log)
    found = read_runs(tmp_path, JOBS, exported)
    assert [r.job for r in found] == JOBS
    assert all(r.result and len(r.result.step_s) == 4 for r in found)
    assert of_printed(printed(JOBS[3]).splitlines())["recompute_granularity"] == "full"


def test_what_is_of_no_job_says_why(tmp_path: Path) -> None:
    launched(tmp_path / "a", JOBS[0], changed="--micro-batch-size\n1->--micro-batch-size\n4")
    (tmp_path / "b.log").write_text(printed(replace(JOBS[0], num_gpus=8)))
    (tmp_path / "c.log").write_text("hello\n")
    by_name = {r.logs[0].name: r for r in read_runs(tmp_path, JOBS, exported)}
    assert all(r.job is None for r in by_name.values())
    assert "micro_batch_size 4, not" in by_name["node-0.out"].why
    assert "another number of GPUs than 4" in by_name["b.log"].why
    assert "no arguments printed" in by_name["c.log"].why


def test_logs_of_one_run_are_read_as_one(tmp_path: Path) -> None:
    launched(tmp_path / "a", JOBS[0])
    lines = (RECORDED / "megatron_good.log").read_text().splitlines(keepends=True)
    half = len(lines) // 2
    (tmp_path / "a" / "logs" / "node-0.out").write_text("".join(lines[:half]))
    (tmp_path / "a" / "logs" / "node-1.out").write_text("".join(lines[half:]))
    (found,) = read_runs(tmp_path, JOBS, exported)
    assert found.result
    assert len(found.result.step_s) == 4


@pytest.mark.parametrize("make", ["none", "file", "empty"])
def test_a_folder_that_cannot_be_used(tmp_path: Path, make: str) -> None:
    path = tmp_path / "logs"
    if make == "file":
        path.write_text("x")
    if make == "empty":
        path.mkdir()
    with pytest.raises(ConfigError, match="--from-logs"):
        read_runs(path, JOBS, exported)
