"""What a node's tools say of its GPUs."""

from __future__ import annotations

from pathlib import Path

from autoparallel.profiling.seen import QUERY, gpu_count

RECORDED = Path(__file__).parent / "topology/recorded"


def test_gpus_are_those_that_the_driver_lists(tmp_path: Path) -> None:
    listed = (RECORDED / "dgx_h100_query.txt").read_text()
    assert gpu_count(lambda words: listed if words == QUERY else "", tmp_path) == 8


def test_without_the_drivers_tool_they_are_its_device_files(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert gpu_count(lambda words: "", tmp_path) == 2
    assert gpu_count(lambda words: "", tmp_path / "nowhere") == 0
