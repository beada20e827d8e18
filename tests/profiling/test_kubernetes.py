from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout
from autoparallel.profiling.command import command_words, with_command
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.kubernetes import KubernetesLauncher
from autoparallel.profiling.kubernetes_manifest import objects
from autoparallel.profiling.launcher import run_trial
from autoparallel.profiling.slurm_script import Place
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
    text: dict[str, object] = {"image": "torch:2.13", "namespace": "team"}
    return Place(site=Site(**(text | site)), gpus_per_node=1, gpus=False, python="fake-python")


def run(folder: Path, ranks: str, timeout_s: float = 90.0, queue_s: float = 90.0) -> Result:
    job = replace(JOB, timeout_s=timeout_s, environment={"FAKE_RANKS": ranks})
    on = KubernetesLauncher(place=place(), poll_s=0.1)
    return run_trial(on, job, folder, queue_s=queue_s, poll_s=0.02)


def objects_left(home: Path) -> list[str]:
    return [path.name for path in home.iterdir() if path.is_dir() and path.name[0] != "."]


def test_ranks_of_two_pods_give_one_result(kubernetes: Path, tmp_path: Path) -> None:
    (kubernetes / "start_s").write_text("0.2")
    found = run(tmp_path / "trial", "ok")
    assert (found.outcome, found.step_s, found.launcher) == ("ok", (0.25, 0.25), "kubernetes")
    assert (found.peak_memory_bytes, len(found.ranks)) == (1001, 2)
    assert not objects_left(kubernetes)


@pytest.mark.parametrize(
    ("ranks", "outcome", "said"),
    [
        ("hang,crash", "crash", "rank 1: told to"),
        ("hang,vanish", "crash", "pod 1: exit code 3"),
        ("hang,oom", "out_of_memory", "OOMKilled"),
    ],
)
def test_the_first_pod_that_fails_ends_all(
    kubernetes: Path, tmp_path: Path, ranks: str, outcome: str, said: str
) -> None:
    found = run(tmp_path / "trial", ranks)
    assert found.outcome == outcome
    assert said in found.message
    assert not objects_left(kubernetes)


def test_a_hang_ends_at_the_deadline(kubernetes: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "trial", "hang", timeout_s=0.2).outcome == "timeout"
    assert not objects_left(kubernetes)


def test_a_beaten_trial_ends_with_the_steps_it_streamed(kubernetes: Path, tmp_path: Path) -> None:
    job = replace(JOB, environment={"FAKE_RANKS": "hang"})
    on = KubernetesLauncher(place=place(), poll_s=0.1)
    found = run_trial(on, job, tmp_path / "trial", watch=lambda p: bool(p.step_s), poll_s=0.02)
    assert (found.outcome, found.step_s, found.stopped_early) == ("ok", (0.25,), True)
    assert not objects_left(kubernetes)


def test_an_image_that_cannot_be_pulled(kubernetes: Path, tmp_path: Path) -> None:
    (kubernetes / "no_image").write_text("1")
    found = run(tmp_path / "trial", "ok")
    assert found.outcome == "invalid"
    assert "ImagePullBackOff" in found.message


def test_an_api_server_that_does_not_answer_changes_nothing(
    kubernetes: Path, tmp_path: Path
) -> None:
    on = KubernetesLauncher(place=place(), poll_s=0.0)
    (tmp_path / "trial").mkdir()
    (kubernetes / "start_s").write_text("5")
    ticket = on.submit(replace(JOB, environment={"FAKE_RANKS": "ok"}), tmp_path / "trial")
    (kubernetes / "silent").write_text("1")
    assert on.poll(ticket).state == "waiting"
    (kubernetes / "silent").unlink()
    on.close()
    on.cancel(ticket)
    assert not objects_left(kubernetes)


def test_what_the_cluster_refuses_is_said_and_nothing_is_left(
    kubernetes: Path, tmp_path: Path
) -> None:
    on = KubernetesLauncher(place=place(image="INVALID"))
    with pytest.raises(ConfigError, match="invalid image"):
        on.submit(JOB, tmp_path)


def test_the_users_command_is_read_by_its_log(kubernetes: Path, tmp_path: Path) -> None:
    log = HERE / "logs" / "recorded" / "megatron_good.log"
    words = command_words(f"{sys.executable} {HERE / 'fake_pretrain.py'} {log} @{{args_file}}")
    job = with_command(JOB, words, lambda job: ("--tensor-model-parallel-size", "2"))
    on = KubernetesLauncher(place=place(), poll_s=0.02)
    found = run_trial(on, job, tmp_path / "trial", poll_s=0.02)
    assert (found.outcome, len(found.step_s)) == ("ok", 4)


def test_the_manifest_says_what_the_site_and_the_job_say() -> None:
    site = Site(
        image="nvcr.io/nvidia/pytorch:25.04-py3",
        namespace="team",
        queue="gpu-queue",
        mounts=("/data:/data", "claim:/results"),
        environment={"NCCL_DEBUG": "WARN"},
    )
    made = objects("trial", JOB, Place(site=site, gpus_per_node=1))
    config, job, service = made["items"]
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert (job["spec"]["completions"], job["spec"]["backoffLimit"]) == (2, 0)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu-queue"
    assert job["spec"]["suspend"] is True
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    assert {"name": "NCCL_DEBUG", "value": "WARN"} in container["env"]
    assert {"name": "site-0", "hostPath": {"path": "/data"}} in pod["volumes"]
    assert {
        "name": "site-1",
        "persistentVolumeClaim": {"claimName": "claim"},
    } in pod["volumes"]
    assert service["spec"]["clusterIP"] == "None"
    assert "PET_MASTER_ADDR=trial-0.trial" in config["data"]["start.sh"]
    assert len(json.dumps(config)) < 2**20  # what a ConfigMap holds
    one = objects("trial", JOB, Place(site=site, gpus_per_node=8))["items"]
    assert [item["kind"] for item in one] == ["ConfigMap", "Job"]


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ({"image": ""}, "site image"),
        ({"mounts": ("relative",)}, "is not SOURCE:/path"),
        ({"mounts": ("../up:/data",)}, "is neither an absolute path nor"),
        ({"queue": "Not A Queue"}, "is not a name"),
    ],
)
def test_a_site_that_kubernetes_would_refuse(site: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        objects("trial", JOB, place(**site))
