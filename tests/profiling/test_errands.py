"""Errands through the launchers: a head node without torch or GPUs measures its compute nodes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scripts import script
from trials import JOB

from autoparallel.errors import ConfigError, LaunchError
from autoparallel.profiling import sending
from autoparallel.profiling.errand import Errand, sample_line, work_of
from autoparallel.profiling.job import Result
from autoparallel.profiling.kubernetes import KubernetesLauncher
from autoparallel.profiling.kubernetes_manifest import objects
from autoparallel.profiling.launcher import Progress
from autoparallel.profiling.operators import measure
from autoparallel.profiling.parcel import unpack
from autoparallel.profiling.rank_end import STEPS_FILE
from autoparallel.profiling.seen import Seen, look
from autoparallel.profiling.sending import send
from autoparallel.profiling.slurm import SlurmLauncher
from autoparallel.profiling.slurm_script import Place, batch_script
from autoparallel.profiling.subprocess_launcher import SubprocessLauncher
from autoparallel.profiling.topology import cluster_of_nodes, nodes_of
from autoparallel.request import Site

LOOK = Errand(errand="look", processes=2)


def on_slurm(**more: object) -> SlurmLauncher:
    site = Site(partition="batch")
    where = Place(site=site, **{"gpus_per_node": 8, "gpus": False, **more})
    return SlurmLauncher(place=where, poll_s=0.02, patience_s=10.0)


def on_kubernetes() -> KubernetesLauncher:
    site = Site(image="torch:2.13")
    return KubernetesLauncher(place=Place(site=site, gpus_per_node=8, gpus=False), poll_s=0.1)


def test_an_errand_and_a_job_are_told_apart_and_read_back() -> None:
    errand = Errand(errand="kernels", keys=("stream copy 8",), environment={"A": "b"})
    assert work_of(errand.text()) == errand
    assert work_of(JOB.text()) == JOB
    for length in range(0, len(errand.text()) - 1, 7):
        with pytest.raises(ConfigError):
            work_of(errand.text()[:length])
    with pytest.raises(ConfigError, match="schema_version"):
        work_of(errand.text().replace('"schema_version": 1', '"schema_version": 2'))
    assert errand.trial != replace(errand, keys=()).trial


def test_a_node_is_told_whole(tmp_path: Path) -> None:
    seen = look(lambda words: "", tmp_path, cores=3)
    seen = replace(seen, nvlinks={(0, 1): 18})
    assert Seen.parse("", seen.to_json()) == seen


def test_the_parcel_is_all_that_a_node_needs(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(replace(LOOK, processes=1).text())
    worker = unpack(tmp_path / "worker")
    words = [sys.executable, "-m", "autoparallel.profiling.worker", str(tmp_path)]
    done = subprocess.run(
        words, cwd="/", env={"PYTHONPATH": str(worker)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rank-0.json").is_file()


def test_slurm_gives_every_look_a_whole_node(slurm: Path, tmp_path: Path) -> None:
    found = nodes_of(on_slurm(), 2, tmp_path, {})
    assert len(found) == 2
    assert {node.cores for node in found.values()} == {look().cores}
    assert not list(tmp_path.glob("discover-*"))
    lines = batch_script(LOOK, Place(site=Site(), gpus_per_node=8), tmp_path)
    for said in ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8"):
        assert said in lines
    alone = Errand(errand="kernels", keys=("stream copy 8",))
    assert "--gpus-per-node=1" in batch_script(alone, Place(site=Site(), gpus_per_node=8), tmp_path)


def test_kubernetes_gives_every_look_a_whole_node(kubernetes: Path, tmp_path: Path) -> None:
    assert len(nodes_of(on_kubernetes(), 2, tmp_path, {})) == 2
    assert not [path for path in kubernetes.iterdir() if path.name[0] != "."]
    made = objects("look", LOOK, Place(site=Site(image="x"), gpus_per_node=8))
    _, job, _ = made["items"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert job["spec"]["completions"] == 2
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert {"name": "PET_NPROC_PER_NODE", "value": "1"} in container["env"]


@pytest.mark.megatron
@pytest.mark.parametrize("where", ["slurm", "kubernetes"])
def test_samples_come_back_from_a_cluster(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(where)
    launcher = {"slurm": on_slurm, "kubernetes": on_kubernetes}[where]()
    said: list[str] = []
    out = tmp_path / "out"
    found = measure(out, launcher, device="cpu", kinds=("stream",), progress=said.append)
    assert (found.taken, len(said)) == (2, 2)
    assert list(out.iterdir()) == [out / "operators"]


@pytest.mark.megatron
@pytest.mark.ray
@pytest.mark.slow
def test_samples_and_nodes_through_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with script("faults") as faults, faults.marked() as mark:
        launcher = faults.LAUNCHERS["ray"]()
        try:
            assert len(nodes_of(launcher, 1, tmp_path, {})) == 1
            found = measure(tmp_path, launcher, device="cpu", kinds=("collectives",))
            assert found.taken == 36
            with pytest.raises(ConfigError, match="2 is more than the 1 nodes"):
                nodes_of(launcher, 2, tmp_path, {})
        finally:
            launcher.close()
        assert faults.left_over(mark) == []


@pytest.mark.megatron
def test_a_gpu_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        measure(tmp_path, SubprocessLauncher(), device="cuda")


class Told:
    """A launcher that streams samples and ends as it is told; `running` never ends."""

    name = "told"

    def __init__(self, outcome: str, samples: int = 2) -> None:
        self.outcome, self.samples = outcome, samples

    def submit(self, job: Errand, folder: Path) -> str:
        lines = [sample_line(f"stream copy {i}", 0.5) for i in range(self.samples)]
        (folder / STEPS_FILE).write_text("\n".join(lines) + '\n{"key": "stream co')
        return str(folder)

    def poll(self, ticket: str) -> Progress:
        return Progress(state="running" if self.outcome == "running" else "done")

    def collect(self, ticket: str) -> Result:
        return Result(trial="", outcome="crash", message="it fell over")

    def cancel(self, ticket: str) -> None: ...

    def close(self) -> None: ...


def test_samples_of_an_errand_that_fails_are_kept(tmp_path: Path) -> None:
    found: dict[str, float] = {}
    with pytest.raises(LaunchError, match="it fell over"):
        send(Told("crash"), LOOK, tmp_path, found.setdefault)
    assert found == {"stream copy 0": 0.5, "stream copy 1": 0.5}
    assert list(tmp_path.iterdir()) == [tmp_path / LOOK.trial]


def test_an_errand_without_news_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "STALL_S", 0.05)
    with pytest.raises(LaunchError, match="ended before its first"):
        send(Told("running", samples=0), LOOK, tmp_path)


def test_the_file_is_of_the_weakest_node_and_says_what_others_have(tmp_path: Path) -> None:
    few, many = (look(lambda words: "", tmp_path, cores=n) for n in (4, 8))
    found = cluster_of_nodes({"one": many, "two": few, "three": few})
    assert found.gpus_per_node == 4
    assert "one: gpus_per_node 8, not 4; the file is of two" in found.deviations
    assert not any(note.startswith("three") for note in found.deviations)
