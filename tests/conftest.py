from __future__ import annotations

from pathlib import Path

import pytest


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
