from __future__ import annotations

from pathlib import Path

import pytest
from clusters import fake_kubernetes, fake_slurm


@pytest.fixture
def own_dir(tmp_path: Path) -> Path:
    """A user's folder in front of the shipped data, with a small space."""
    folder = tmp_path / "own"
    (folder / "space").mkdir(parents=True)
    (folder / "config.yaml").write_text("defaults: [{space: small}]\n")
    (folder / "space" / "small.yaml").write_text(
        "tensor_model_parallel_size: [1, 2]\nmicro_batch_size: [1]\n"
    )
    return folder


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm of one machine; its state folder."""
    return fake_slurm(tmp_path, monkeypatch)


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Kubernetes of one machine; the folder of its objects."""
    return fake_kubernetes(tmp_path, monkeypatch)
