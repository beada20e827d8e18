from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout
from autoparallel.profiling.command import command_words, with_command
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.launcher import run_trial
from autoparallel.profiling.slurm import SlurmLauncher
from autoparallel.profiling.slurm_script import Place, batch_script, rank_script, seconds_of
from autoparallel.request import Site

HERE = Path(__file__).parent
JOB = Job(
    model=catalog.model("gpt-tiny"),
    layout=Layout.parse("tp2"),
    num_gpus=2,
    global_batch_size=16,
    seq_length=1024,
    timeout_s=20.0,
)


def place(**site: object) -> Place:
    text: dict[str, object] = {"partition": "batch", "environment": {"SITE_SAYS": "it's; here"}}
    return Place(
        site=Site(**(text | site)),
        gpus_per_node=1,
        gpus=False,
        python="fake-python",
    )


def launcher(patience_s: float = 30.0) -> SlurmLauncher:
    return SlurmLauncher(place=place(), poll_s=0.02, patience_s=patience_s)


def run(folder: Path, ranks: str, timeout_s: float = 90.0, queue_s: float = 90.0) -> Result:
    job = replace(JOB, timeout_s=timeout_s, environment={"FAKE_RANKS": ranks})
    return run_trial(launcher(), job, folder, queue_s=queue_s, poll_s=0.02)


def test_ranks_on_two_nodes_give_one_result(slurm: Path, tmp_path: Path) -> None:
    (slurm / "start_s").write_text("0.2")
    found = run(tmp_path / "trial", "ok")
    assert (found.outcome, found.step_s, found.launcher) == ("ok", (0.25, 0.25), "slurm")
    assert (found.peak_memory_bytes, len(found.ranks)) == (1001, 2)


@pytest.mark.parametrize(
    ("ranks", "outcome", "said"),
    [
        ("hang,out_of_memory", "out_of_memory", "rank 1: told to"),
        ("hang,crash", "crash", "rank 1: told to"),
        ("hang,vanish", "crash", "Slurm: FAILED"),
        ("hang,oom", "out_of_memory", "Slurm: OUT_OF_MEMORY"),
    ],
)
def test_the_first_rank_that_fails_ends_all(
    slurm: Path, tmp_path: Path, ranks: str, outcome: str, said: str
) -> None:
    found = run(tmp_path / "trial", ranks)
    assert found.outcome == outcome
    assert said in found.message
    assert not left_over(tmp_path)


def left_over(folder: Path) -> list[str]:
    """Processes that still work on a trial of this folder."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = stat.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{folder}/trial" in words:
            found.append(words)
    return found


def test_a_hang_ends_at_the_deadline(slurm: Path, tmp_path: Path) -> None:
    found = run(tmp_path / "trial", "hang", timeout_s=0.2)
    assert found.outcome == "timeout"
    assert "0.2 s after its ranks started" in found.message


def test_a_beaten_trial_ends_with_the_steps_it_streamed(slurm: Path, tmp_path: Path) -> None:
    job = replace(JOB, environment={"FAKE_RANKS": "hang"})
    on = launcher()
    found = run_trial(on, job, tmp_path / "trial", watch=lambda p: bool(p.step_s), poll_s=0.02)
    assert (found.outcome, found.step_s, found.stopped_early) == ("ok", (0.25,), True)
    deadline = time.monotonic() + 30
    while left_over(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left_over(tmp_path)


def test_a_job_that_never_leaves_the_queue(slurm: Path, tmp_path: Path) -> None:
    (slurm / "start_s").write_text("3")
    found = run(tmp_path / "trial", "ok", queue_s=0.3)
    assert (found.outcome, found.step_s) == ("timeout", ())
    assert "no room" in found.message


def test_slurms_own_time_limit(slurm: Path, tmp_path: Path) -> None:
    (slurm / "limit_s").write_text("0.5")
    found = run(tmp_path / "trial", "hang")
    assert found.outcome == "timeout"
    assert "Slurm: TIMEOUT" in found.message


def test_a_busy_controller_that_took_the_job_is_not_given_it_twice(
    slurm: Path, tmp_path: Path
) -> None:
    (slurm / "busy").write_text("sbatch: error: Socket timed out on send/recv operation")
    (slurm / "start_s").write_text("0.2")
    assert run(tmp_path / "trial", "ok").outcome == "ok"
    assert len(list(slurm.glob("*.json"))) == 1


def test_a_cluster_without_accounts_says_it_by_the_script_itself(
    slurm: Path, tmp_path: Path
) -> None:
    (slurm / "no_accounts").write_text("1")
    assert run(tmp_path / "trial", "ok").outcome == "ok"


def test_a_silent_controller_changes_nothing(slurm: Path, tmp_path: Path) -> None:
    on, job = launcher(), replace(JOB, environment={"FAKE_RANKS": "hang"})
    (tmp_path / "trial").mkdir()
    ticket = on.submit(job, tmp_path / "trial")
    (slurm / "silent").write_text("1")
    for _ in range(3):
        assert on.poll(ticket).state == "waiting"
        time.sleep(0.03)
    (slurm / "silent").unlink()
    on.close()
    on.cancel(ticket)
    assert on.poll(ticket).state == "done"


def test_a_refused_job_says_what_slurm_says(slurm: Path, tmp_path: Path) -> None:
    on = SlurmLauncher(place=place(partition="nowhere"), poll_s=0.02)
    with pytest.raises(ConfigError, match="invalid partition specified: nowhere"):
        on.submit(JOB, tmp_path)


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sbatch: cannot be run"):
        launcher().submit(JOB, tmp_path)


def test_the_users_command_runs_once_a_node_and_is_read_by_its_log(
    slurm: Path, tmp_path: Path
) -> None:
    log = HERE / "logs" / "recorded" / "megatron_good.log"
    words = command_words(f"{sys.executable} {HERE / 'fake_pretrain.py'} {log} @{{args_file}}")
    job = with_command(JOB, words, lambda job: ("--tensor-model-parallel-size", "2"))
    found = run_trial(launcher(), job, tmp_path / "trial", poll_s=0.02)
    assert (found.outcome, len(found.step_s)) == ("ok", 4)


def test_the_script_asks_for_what_the_site_and_the_job_say(tmp_path: Path) -> None:
    site = Site(
        image="nvcr.io#nvidia/pytorch:25.04-py3",
        mounts=("/data:/data",),
        partition="gpu",
        account="team",
        qos="short",
        time_limit="00:20:00",
        environment={"NCCL_DEBUG": "a 'b'; $(reboot)"},
    )
    text = batch_script(JOB, Place(site=site, gpus_per_node=2), tmp_path)
    for line in (
        "--partition=gpu",
        "--account=team",
        "--qos=short",
        "--nodes=1",
        "--gpus-per-node=2",
        "--time=00:16:00",
        f"--container-mounts={tmp_path}:{tmp_path},/data:/data",
        "--kill-on-bad-exit=1",
    ):
        assert line in text
    assert "--container-image='nvcr.io#nvidia/pytorch:25.04-py3'" in text
    said = subprocess.run(
        ["bash", "-c", text.partition("export PYTHONUNBUFFERED")[0] + 'echo "$NCCL_DEBUG"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "a 'b'; $(reboot)"
    assert "autoparallel.profiling.worker" in rank_script(JOB, place(), tmp_path)


@pytest.mark.parametrize("name", ["partition", "account", "qos"])
def test_a_site_cannot_add_options(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not one plain word"):
        batch_script(JOB, place(**{name: "x\n#SBATCH --wrap=reboot"}), tmp_path)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("30", 1800), ("30:15", 1815), ("04:00:00", 14400), ("1-12", 129600), ("1-00:30", 88200)],
)
def test_slurms_time_formats(limit: str, seconds: float) -> None:
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize("limit", ["soon", "1:2:3:4", "-1", "1-", ""])
def test_other_time_formats_are_refused(limit: str) -> None:
    with pytest.raises(ConfigError, match="is not a time as Slurm writes it"):
        seconds_of(limit)
