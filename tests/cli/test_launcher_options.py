"""Where trials and errands run, and how many at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from autoparallel.cli import launchers, main
from autoparallel.cli.launchers import concurrent
from autoparallel.errors import ConfigError
from autoparallel.profiling.launcher import ClusterGoneError
from autoparallel.profiling.ray_launcher import RayLauncher


def started(name: str, gpus: int = 0) -> object:
    if name != "ray":
        return SimpleNamespace(name=name)
    launcher = RayLauncher.__new__(RayLauncher)
    launcher.gpus = lambda: gpus  # type: ignore[method-assign]
    return launcher


@pytest.mark.parametrize(
    ("name", "cuda", "ranks", "found"),
    [
        ("ray", True, 8, 4),
        ("ray", True, 48, 1),
        ("ray", False, 2, 1),
        ("slurm", True, 8, 2),
        ("kubernetes", True, 1, 16),
        ("slurm", False, 2, 1),
        ("subprocess", True, 1, 1),
        ("command", True, 8, 1),
    ],
)
def test_as_many_as_the_gpus_hold_and_one_on_a_cpu(name, cuda, ranks, found):
    launcher = started(name, gpus=32)
    assert concurrent(None, launcher, cuda=cuda, gpus=16, ranks=ranks) == found
    if name in ("ray", "slurm", "kubernetes"):
        assert concurrent(5, launcher, cuda=cuda, gpus=16, ranks=ranks) == 5


@pytest.mark.parametrize(("name", "cuda"), [("subprocess", True), ("command", False)])
def test_what_would_share_gpus_is_refused(name, cuda):
    with pytest.raises(ConfigError, match="--concurrent: 2 would put several trials"):
        concurrent(2, started(name), cuda=cuda, gpus=8, ranks=1)


def exit_code(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(words)
    return int(stop.value.code or 0)


def test_discover_through_slurm_writes_the_file(slurm: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "mine.yaml"
    words = ("discover", "--launcher", "slurm", "--gpus-per-node", "0", "--nodes", "2")
    assert exit_code(*words, "--out", str(out)) == 0, capsys.readouterr().err
    assert "gpu: cpu" in out.read_text()
    assert not list(tmp_path.glob("discover-*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("discover", "--launcher", "slurn"), "did you mean 'slurm'"),
        (("discover", "--nodes", "2"), "--nodes: 2 is more than this machine"),
        (("discover", "--launcher", "slurm", "--ray-address", "auto"), "--ray-address"),
        (("discover", "--site", "moon"), "moon"),
        (("measure-ops", "--device", "tpu"), "--device"),
        (("measure-ops", "--only", "gem"), "did you mean 'gemm'"),
    ],
)
def test_bad_input_is_exit_2(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_code(*words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_cluster_that_goes_away_ends_an_errand_at_once(monkeypatch, capsys):
    closed: list[bool] = []
    fake = SimpleNamespace(name="ray", close=lambda: closed.append(True))
    monkeypatch.setattr(launchers, "launcher", lambda *words, **more: fake)

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("autoparallel.cli.outcome.os._exit", leave)
    more = {"site": "", "gpus_per_node": 8, "ray_address": "auto", "device": "auto"}
    with (
        pytest.raises(SystemExit, match="4"),
        launchers.errand_launcher("ray", config_dir=None, **more),
    ):
        raise ClusterGoneError("--launcher: the Ray cluster went away; run again to go on")
    assert "went away" in capsys.readouterr().err
    assert closed
