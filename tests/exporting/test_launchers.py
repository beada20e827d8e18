"""Launch scripts and manifests: they parse, quote anything, and start every node."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs import job, model

from autoparallel.errors import ConfigError
from autoparallel.exporting.launchers import LAUNCHERS
from autoparallel.exporting.targets import PREFIX, TARGETS, Exported, exported
from autoparallel.request import Site, site_record

SITE = Site(
    name="ours",
    image="registry/training:25.04",
    mounts=("/data:/data:ro", "/scratch:/scratch"),
    partition="gpu",
    account="team-a",
    time_limit="1-02:03:04",
    namespace="train",
    queue="big",
    environment={"NCCL_DEBUG": "WARN"},
)
HOSTILE = "a b'c\"d$(touch pwned)`touch pwned`;&|*\\"
JOB = job(model("gpt-175b"), "tp8 pp4 mbs1 sp zero1")
OF = {
    "megatron-lm": JOB,
    "megatron-bridge": JOB,
    "torchtitan": job(model("llama-3.1-405b"), "tp8 pp1 mbs1 sp zero3"),
    "fsdp2": job(model("llama-3.1-405b"), "tp8 pp1 mbs1 sp zero3"),
    "deepspeed": job(model("llama-3.1-405b"), "tp1 pp1 mbs1 zero3"),
}


def files_of(launcher: str, site: Site, to: str = "megatron-lm") -> Exported:
    return exported(OF[to], to, launcher, site, 8)


def written(found: Exported, folder: Path) -> Path:
    for name, text in found.files.items():
        (folder / name).write_text(text)
    return folder


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("to", TARGETS)
def test_every_pair_writes_whole_files(to: str, launcher: str, tmp_path: Path) -> None:
    site = Site(image="registry/x:1", environment={"A": HOSTILE})
    found = files_of(launcher, site, to)
    assert {"run.sh", "profile.sh"} <= found.files.keys()
    assert any(name.startswith(PREFIX) for name in found.files)
    for name, text in found.files.items():
        if text.startswith("#!"):
            path = tmp_path / name
            path.write_text(text)
            subprocess.run(["bash", "-n", str(path)], check=True)
        elif name.endswith(".yaml"):
            assert [document for document in yaml.safe_load_all(text) if document]
        elif name.endswith(".py"):
            compile(text, name, "exec")


@pytest.mark.parametrize("to", TARGETS)
def test_a_node_starts_torchrun_with_its_own_files(to: str, tmp_path: Path) -> None:
    found = files_of("torchrun", Site(environment={"A": HOSTILE}, megatron_dir="/m x"), to)
    folder = tmp_path / "a folder"
    folder.mkdir()
    written(found, folder)
    program(tmp_path, "torchrun", 'printf "%s\\n" "$A" "$@"')
    shown = subprocess.run(
        ["bash", str(folder / "profile.sh")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "NODE_RANK": "1", "MASTER_ADDR": "n0"},
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.splitlines()
    assert shown[0] == HOSTILE
    options = dict(zip(shown[1:11:2], shown[2:11:2], strict=True))
    assert options["--node-rank"] == "1"
    assert int(options["--nnodes"]) * int(options["--nproc-per-node"]) == OF[to].num_gpus
    own = [word for word in shown[11:] if word.startswith(str(folder))]
    assert all(Path(word).is_file() for word in own)
    assert own or shown[11] == "/m x/pretrain_gpt.py"
    assert not (tmp_path / "pwned").exists()


def slurm_run(folder: Path, script: str = "run.sh") -> subprocess.CompletedProcess[str]:
    """`job.sbatch` as Slurm runs it, with a `srun` that is every node in turn."""
    program(folder.parent, "scontrol", 'printf "node0\\nnode1\\n"')
    program(
        folder.parent,
        "srun",
        'printf "srun %s\\n" "$@"\nwhile [[ $1 == --* ]]; do shift; done\n'
        'for i in 0 1; do SLURM_NODEID=$i "$@"; done',
    )
    program(folder.parent, "torchrun", 'echo "torchrun $@"')
    return subprocess.run(
        ["bash", str(folder / "job.sbatch"), script],
        env={
            "PATH": f"{folder.parent}:/usr/bin:/bin",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_NODELIST": "node[0-1]",
            "SLURM_JOB_ID": "123",
            "SLURM_NNODES": "2",
            "MEGATRON_LM": "/m",
        },
        cwd=folder.parent,
        capture_output=True,
        check=False,
        text=True,
    )


def test_slurm_starts_every_node_in_the_container(tmp_path: Path) -> None:
    folder = tmp_path / "launch here"
    folder.mkdir()
    found = written(files_of("slurm", SITE), folder)
    text = (found / "job.sbatch").read_text()
    for line in (
        "--nodes=32",
        "--gpus-per-node=8",
        "--partition=gpu",
        "--account=team-a",
        "--time=1-02:03:04",
    ):
        assert f"#SBATCH {line}\n" in text
    ran = slurm_run(folder)
    assert ran.returncode == 0, ran.stderr
    given = [line.removeprefix("srun ") for line in ran.stdout.splitlines()]
    assert "--container-image=registry/training:25.04" in given
    mounts = f"--container-mounts=/data:/data:ro,/scratch:/scratch,{folder}:{folder}"
    assert mounts in given
    starts = [line for line in given if line.startswith("torchrun")]
    assert [f"--nnodes 2 --node-rank {i} " in line for i, line in enumerate(starts)] == [True] * 2
    assert all("--master-addr node0 --master-port 20123" in line for line in starts)
    missing = slurm_run(folder, "nothing.sh")
    assert missing.returncode == 2
    assert "no nothing.sh" in missing.stderr


def test_slurm_quotes_the_hostile(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    nasty = HOSTILE.replace(":", "")
    site = Site(image=nasty, mounts=(f"/{nasty}:/in",), environment={"A": HOSTILE})
    written(files_of("slurm", site), folder)
    ran = slurm_run(folder)
    assert f"srun --container-image={nasty}" in ran.stdout.splitlines()
    assert f"srun --container-mounts=/{nasty}:/in,{folder}:{folder}" in ran.stdout.splitlines()
    assert not list(tmp_path.rglob("pwned"))


def test_the_name_of_a_slurm_job_is_one_word() -> None:
    odd = replace(JOB, model=replace(JOB.model, name="my model\t3.1"))
    script = exported(odd, "megatron-lm", "slurm", SITE, 8).files["job.sbatch"]
    assert "#SBATCH --job-name=my-model-3.1-" in script


def documents(launcher_file: str = "job.yaml", site: Site = SITE) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(files_of("kubernetes", site).files[launcher_file]))


def test_kubernetes_is_an_indexed_job_with_a_name_for_its_first_pod() -> None:
    config, service, job_ = documents()
    spec = job_["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 32, 32)
    assert spec["activeDeadlineSeconds"] == ((24 + 2) * 60 + 3) * 60 + 4
    assert job_["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "big"}
    assert {d["metadata"]["namespace"] for d in (config, service, job_)} == {"train"}
    pod = spec["template"]["spec"]
    node = pod["containers"][0]
    environment = {e["name"]: e.get("value") for e in node["env"]}
    name = job_["metadata"]["name"]
    assert environment["MASTER_ADDR"] == f"{name}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert node["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert node["command"] == ["bash", "/launch/run.sh"]
    assert config["data"]["run.sh"].startswith("#!")
    volumes = {v["name"]: v for v in pod["volumes"]}
    places = {m["mountPath"]: volumes[m["name"]] for m in node["volumeMounts"]}
    assert places["/launch"]["configMap"]["name"] == config["metadata"]["name"]
    assert places["/data"]["hostPath"] == {"path": "/data"}
    assert "/dev/shm" in places
    profile = documents("profile.yaml")[2]
    assert profile["metadata"]["name"] != name
    command = profile["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command == ["bash", "/launch/profile.sh"]


def test_files_inside_a_manifest_stand_line_by_line() -> None:
    found = files_of("kubernetes", SITE).files
    lines = [line.strip() for line in found["job.yaml"].splitlines()]
    config, *_ = documents()
    for name, text in config["data"].items():
        assert text == found[name]
        start = lines.index(f"{name}: |") + 1
        own = [line.strip() for line in text.splitlines()]
        assert lines[start : start + len(own)] == own


def test_kubernetes_takes_volume_claims_and_any_text() -> None:
    site = Site(image="x y: {z}", mounts=("team-data:/data",), environment={"A": HOSTILE})
    config, _, job_ = documents(site=site)
    pod = job_["spec"]["template"]["spec"]
    assert pod["volumes"][2]["persistentVolumeClaim"] == {"claimName": "team-data"}
    assert pod["containers"][0]["image"] == "x y: {z}"
    assert "pwned" in config["data"]["run.sh"]


def test_ray_files_start_one_actor_a_node(tmp_path: Path) -> None:
    found = files_of("ray", Site(image="registry/x:1"))
    environment = yaml.safe_load(found.files["runtime_env.yaml"])
    assert environment["image_uri"] == "registry/x:1"
    written(found, tmp_path)
    program(tmp_path, "ray", 'printf "%s\\n" "$@"')
    shown = subprocess.run(
        ["bash", str(tmp_path / "submit.sh"), "profile.sh"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout.splitlines()
    assert shown[-5:] == ["python", "ray_nodes.py", "profile.sh", "32", "8"]
    assert shown[:4] == ["job", "submit", "--working-dir", str(tmp_path)]


@pytest.mark.ray
def test_the_ray_program_runs_the_script_and_returns_its_code(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    import sys

    (tmp_path / "ray_nodes.py").write_text(files_of("ray", Site()).files["ray_nodes.py"])
    body = f'echo "$NNODES $NODE_RANK $MASTER_ADDR $MASTER_PORT" > {tmp_path}/seen; exit 3'
    (tmp_path / "run.sh").write_text(body)
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "ray_nodes.py"), "run.sh", "1", "0"],
        cwd=tmp_path,
        env={**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 3, ran.stderr
    nodes, rank, address, port = (tmp_path / "seen").read_text().split()
    assert (nodes, rank) == ("1", "0")
    assert address.count(".") == 3
    assert 0 < int(port) < 65536


@pytest.mark.parametrize(
    ("launcher", "site", "named"),
    [
        ("slrum", Site(), "--launcher: 'slrum'"),
        ("slurm", Site(partition="a b"), "site.partition: 'a b'"),
        ("slurm", Site(account="x\n#SBATCH --nodes=1"), "site.account"),
        ("slurm", Site(mounts=("/a:/b",)), "site.mounts: '/a:/b' needs an image"),
        ("slurm", Site(image="x", mounts=("/a",)), "site.mounts: '/a'"),
        ("slurm", Site(image="x\ny"), "site.image"),
        ("kubernetes", Site(), "site.image"),
        ("kubernetes", Site(image="x", mounts=("UPPER:/b",)), "site.mounts: 'UPPER'"),
        ("kubernetes", Site(image="x", time_limit="soon"), "site.time_limit: 'soon'"),
        ("ray", Site(mounts=("/a:/b",)), "site.mounts: '/a:/b'"),
        ("torchrun", Site(environment={"A": "x\ny"}), "A: 'x\\\\ny'"),
    ],
)
def test_what_a_launcher_cannot_say_is_refused(launcher: str, site: Site, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        files_of(launcher, site)


def test_settings_without_a_place_are_named() -> None:
    assert files_of("torchrun", SITE).unused == (
        "image",
        "mounts",
        "partition",
        "account",
        "time_limit",
        "namespace",
        "queue",
    )
    assert files_of("slurm", SITE).unused == ("namespace", "queue")


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_the_shipped_sites_launch(name: str) -> None:
    assert files_of(name, site_record(name)).files


def test_part_of_a_node_is_refused() -> None:
    odd = job(model("gpt-tiny"), "tp1 pp1 mbs1 zero1", gpus=12)
    with pytest.raises(ConfigError, match=r"num_gpus: 12 is not whole nodes of 8 GPUs.*use 8"):
        exported(odd, "megatron-lm", "torchrun", Site(), 8)
