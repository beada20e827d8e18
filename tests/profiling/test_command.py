from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout
from autoparallel.profiling.command import CommandLauncher, argv, command_words, with_command
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.launcher import run_trial

HERE = Path(__file__).parent
RECORDED = HERE / "logs" / "recorded"
JOB = Job(
    model=catalog.model("gpt-tiny"),
    layout=Layout.parse("tp2"),
    num_gpus=4,
    global_batch_size=16,
    seq_length=1024,
    timeout_s=20.0,
)


def exported(job: Job) -> tuple[str, ...]:
    return ("--tensor-model-parallel-size", str(job.layout.tensor_model_parallel_size))


def run(tmp_path: Path, log: str, ends: str, timeout_s: float = 20.0, extra: str = "") -> Result:
    script, recording = HERE / "fake_pretrain.py", RECORDED / f"{log}.log"
    words = command_words(
        f"{sys.executable} {script} {recording} --ends {ends} {extra} @{{args_file}}"
    )
    job = with_command(replace(JOB, timeout_s=timeout_s), words, exported, {"SITE_SAYS": "hello"})
    return run_trial(CommandLauncher(grace_s=0.2), job, tmp_path / "trial", poll_s=0.02)


@pytest.mark.parametrize(
    ("log", "ends", "outcome", "said", "steps"),
    [
        ("megatron_good", "exit:0", "ok", "", 4),
        ("megatron_oom", "exit:1", "out_of_memory", "CUDA out of memory", 0),
        ("megatron_nan", "exit:0", "invalid", "not a number", 4),
        ("megatron_truncated", "kill", "crash", "signal 9", 3),
    ],
)
def test_a_command_ends_as_its_log_and_its_exit_code_say(
    tmp_path: Path, log: str, ends: str, outcome: str, said: str, steps: int
) -> None:
    found = run(tmp_path, log, ends)
    assert (found.outcome, len(found.step_s), found.launcher) == (outcome, steps, "command")
    assert said in found.message
    assert found.log_tail


def test_a_command_that_hangs_ends_at_its_deadline_with_everything_it_started(
    tmp_path: Path,
) -> None:
    seen = tmp_path / "seen"
    found = run(tmp_path, "megatron_hang", "hang", timeout_s=0.7, extra=f"--seen {seen}")
    assert found.outcome == "timeout"
    assert found.step_s == pytest.approx((0.2139,))
    child, site, per_node = seen.read_text().split()
    assert (site, per_node) == ("hello", "4")
    assert gone(int(child))  # it had a session of its own, as torchrun's workers have


def gone(pid: int, patience_s: float = 5.0) -> bool:
    """Whether a process has ended; what nobody has reaped yet counts as ended."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_arguments_take_the_place_of_their_word_and_of_no_other(tmp_path: Path) -> None:
    job = replace(JOB, command=("run", "{num_gpus}", "@{args_file}", "a b;$(x)", "--f={args_file}"))
    job = replace(job, arguments=("--x", "{num_gpus}"))
    file = tmp_path / "args.txt"
    assert argv(job, tmp_path, 8) == ["run", "4", "--x", "{num_gpus}", "a b;$(x)", f"--f={file}"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "is empty"),
        ("torchrun 'x", "cannot be split"),
        ("torchrun pretrain_gpt.py", "does not say where the layout's arguments go"),
        ("torchrun {arg_file}", "did you mean 'args_file'"),
    ],
)
def test_a_command_that_cannot_be_used_is_refused(command: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        command_words(command)


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    job = with_command(JOB, command_words("no-such-program @{args_file}"), exported)
    with pytest.raises(ConfigError, match="no-such-program"):
        run_trial(CommandLauncher(), job, tmp_path)
