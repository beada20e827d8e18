from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.logs import TrainingLog, read_lines, read_log, result_of
from autoparallel.profiling.logs.lines import MAX_LINE_BYTES, stream_lines

RECORDED = Path(__file__).parent / "recorded"
GIB, MIB = 1024**3, 1024**2
JOB = Job(
    model=catalog.model("gpt-tiny"),
    layout=Layout.parse("tp2"),
    num_gpus=4,
    global_batch_size=16,
    seq_length=1024,
)


def log(name: str) -> TrainingLog:
    return read_log(RECORDED / f"{name}.log")


def result(name: str, exit_code: int | None = None, job: Job = JOB) -> Result:
    return result_of(log(name), job, exit_code)


def of_bytes(data: bytes) -> TrainingLog:
    return read_lines(stream_lines(io.BytesIO(data)))


def test_megatron_steps_without_warm_up_and_peak_of_the_fullest_rank() -> None:
    found = result("megatron_good")
    assert (found.outcome, found.message, found.deviations) == ("ok", "", ())
    assert found.warmup_step_s == pytest.approx((1.1476,))
    assert found.step_s == pytest.approx((0.2139, 0.2104, 0.2111, 0.2098))
    assert found.iteration_s == pytest.approx(0.21075)
    assert found.tokens_per_s_per_gpu == pytest.approx(16 * 1024 / 0.21075 / 4)
    assert found.losses[0] == pytest.approx(10.83221)
    # Two ranks wrote on one line.
    assert found.peak_memory_bytes == pytest.approx(2613.5 * MIB)
    assert found.memory_kind == "allocated"
    assert [(r.rank, r.peak_reserved_bytes) for r in found.ranks] == [
        (1, 2608 * MIB),
        (0, 2650 * MIB),
    ]
    assert Result.parse(found.text()) == found


@pytest.mark.parametrize(
    ("name", "exit_code", "outcome", "said", "steps"),
    [
        ("megatron_oom", 1, "out_of_memory", "CUDA out of memory", 0),
        ("megatron_oom", None, "out_of_memory", "CUDA out of memory", 0),
        ("megatron_nan", 0, "invalid", "not a number at iteration 2", 4),
        ("megatron_nan_stop", 1, "invalid", "found NaN in local forward loss", 1),
        ("megatron_bad_flag", 2, "invalid", "unrecognized arguments", 0),
        ("megatron_hang", -9, "crash", "signal 9", 1),
        ("megatron_hang", 137, "crash", "signal 9", 1),
        ("megatron_hang", 3, "crash", "exit code 3", 1),
        ("megatron_truncated", None, "ok", "", 3),
        ("slurm_time_limit", None, "timeout", "DUE TO TIME LIMIT", 2),
    ],
)
def test_how_a_run_ended(
    name: str, exit_code: int | None, outcome: str, said: str, steps: int
) -> None:
    found = result(name, exit_code)
    assert (found.outcome, len(found.step_s)) == (outcome, steps)
    assert said in found.message
    assert Result.parse(found.text()) == found


def test_a_truncated_number_is_not_a_measurement() -> None:
    found = result("megatron_truncated")
    assert found.step_s == pytest.approx((0.2139, 0.2104, 0.2111))
    assert found.deviations == ("the log ends at iteration 4 of 5",)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000), name=st.sampled_from(["megatron_good", "torchtitan", "nemo2"]))
def test_what_a_cut_log_says_the_whole_log_says_too(cut: int, name: str) -> None:
    data = (RECORDED / f"{name}.log").read_bytes()
    assert set(of_bytes(data[:cut]).steps) <= set(of_bytes(data).steps)


@pytest.mark.parametrize("name", ["megatron_good", "nemo2", "torchtitan"])
def test_carriage_returns_colours_and_prefixes_change_nothing(name: str) -> None:
    data = (RECORDED / f"{name}.log").read_bytes()
    dressed = b"".join(
        b"\x1b[32m0: " + line + b"\x1b[0m\r\n" for line in data.splitlines(keepends=False)
    )
    assert of_bytes(dressed).steps == of_bytes(data).steps


def test_averages_over_ten_iterations_and_skipped_updates() -> None:
    found = result("megatron_fp16_every_10")
    assert found.step_s == pytest.approx((0.8227, 0.8237, 0.8247, 0.8257))
    assert found.warmup_step_s == pytest.approx((1.1476,))
    assert found.deviations == ("times are means over 10 iterations",)


def test_skipped_updates_are_not_timed() -> None:
    lines = (RECORDED / "megatron_good.log").read_text()
    third = lines.index("iteration        3/")
    skipped = lines[:third] + lines[third:].replace("iterations:   0", "iterations:   1", 1)
    assert len(result_of(of_bytes(skipped.encode()), JOB).step_s) == 3


def test_bridge_prints_megatrons_line() -> None:
    found = result("bridge", 0, replace(JOB, global_batch_size=512))
    assert found.step_s == pytest.approx((4.1082,))
    assert found.peak_memory_bytes == pytest.approx(12003.60400390625 * MIB)


def test_nemo_trainer_line_and_progress_bar() -> None:
    assert result("nemo2", 0).step_s == pytest.approx((0.3146, 0.3163, 0.3215, 0.3153))
    assert result("nemo1_bar").step_s == pytest.approx((2.36, 2.34, 2.35))
    assert log("nemo1_bar").steps[-1].iteration == 4


def test_torchtitan_times_follow_from_its_rate_and_ranks_are_not_doubled() -> None:
    found = result("torchtitan", 0)
    tokens = 16 * 1024
    assert found.step_s == pytest.approx([tokens / (4 * r) for r in (10050, 10007, 10031)])
    assert found.peak_memory_bytes == pytest.approx(67.5 * GIB)
    assert found.memory_kind == "reserved"
    assert log("torchtitan").finished


def test_a_log_of_another_batch_is_not_this_job() -> None:
    found = result("megatron_good", 0, replace(JOB, global_batch_size=32))
    assert found.outcome == "invalid"
    assert "global batch size 16 in the log, 32 in the job" in found.message


def test_huge_lines_and_binary_data_are_passed_over() -> None:
    data = (RECORDED / "megatron_good.log").read_bytes()
    noise = b"\x00\xff" * (3 * MAX_LINE_BYTES) + b"\n"
    assert of_bytes(noise + data + noise).steps == of_bytes(data).steps
    assert max(len(text) for text, _ in stream_lines(io.BytesIO(noise * 3))) <= MAX_LINE_BYTES


def test_a_log_without_any_known_line() -> None:
    found = result_of(of_bytes(b"hello\n"), JOB, 0)
    assert found.outcome == "invalid"
    assert "no iteration time" in found.message
    assert result_of(of_bytes(b""), JOB).outcome == "crash"


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.log"):
        with pytest.raises(ConfigError, match="is not an existing regular file"):
            read_log(path)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), at=st.integers(0, 3000))
def test_any_bytes_anywhere_give_a_whole_result(data: bytes, at: int) -> None:
    text = (RECORDED / "megatron_good.log").read_bytes()
    found = result_of(of_bytes(text[:at] + data + text[at:]), JOB)
    assert Result.parse(found.text()) == found
