from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.profiling.seen import IBSTAT, MATRIX, QUERY, Say
from autoparallel.profiling.topology import Seen, cluster_of, cluster_text, look
from autoparallel.profiling.topology.cluster_file import gpu_id
from autoparallel.units import GB, MIB

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str, *, ibstat: bool = False) -> Say:
    files = {QUERY: f"{name}_query.txt", MATRIX: f"{name}_topo.txt"}
    files |= {IBSTAT: "ibstat.txt"} if ibstat else {}

    def say(words: Sequence[str]) -> str:
        file = files.get(tuple(words))
        return (RECORDED / file).read_text() if file else ""

    return say


def ports(root: Path, count: int, rate: str, *, down: tuple[int, ...] = ()) -> Path:
    for i in range(count):
        port = root / f"class/infiniband/mlx5_{i}/ports/1"
        port.mkdir(parents=True)
        (port / "rate").write_text(rate)
        (port / "state").write_text("1: DOWN\n" if i in down else "4: ACTIVE\n")
    return root


def dgx(tmp_path: Path, **changed: tuple[int, ...]) -> Seen:
    return look(recorded("dgx_h100"), ports(tmp_path, 10, "400 Gb/sec (4X NDR)\n", **changed))


def test_a_dgx_h100_is_the_catalogs(tmp_path: Path) -> None:
    found = cluster_of(dgx(tmp_path))
    assert found.nearest == "dgx-h100"
    # The two storage adapters sit beside no GPU.
    assert found.deviations == ("adapters not beside a GPU, left out: mlx5_8, mlx5_9",)
    (tmp_path / "mine.yaml").write_text(cluster_text(found))
    mine, shipped = catalog.cluster(tmp_path / "mine.yaml"), catalog.cluster("dgx-h100")
    assert replace(mine.intra_link, source="") == replace(shipped.intra_link, source="")
    assert replace(mine.inter_link, source="") == replace(shipped.inter_link, source="")
    assert (mine.gpus_per_node, mine.nvlink_domain_gpus, mine.nvls) == (8, 8, True)
    assert "8 active ports" in mine.source


def test_what_is_worse_than_the_catalog_is_said(tmp_path: Path) -> None:
    seen = dgx(tmp_path, down=(2,))
    weak = replace(seen.gpus[5], power_limit_w=500.0, max_clock_hz=1.2e9)
    seen = replace(seen, gpus=(*seen.gpus[:5], weak, *seen.gpus[6:]))
    seen = replace(seen, nvlinks=seen.nvlinks | {(0, 1): 16})
    said = "\n".join(cluster_of(seen).deviations)
    assert "power limit 500 W, h100-sxm-80gb has 700 W" in said
    assert "fewer NVLinks than NV18: GPU0-GPU1 NV16" in said
    assert "adapters that are down: mlx5_2" in said
    assert "inter_link 43.75 GB/s a GPU, dgx-h100 has 50" in said
    assert "1200 to 1980 MHz" in said


def test_bridged_pairs_of_pcie_cards(tmp_path: Path) -> None:
    found = cluster_of(look(recorded("a100_pcie"), tmp_path))
    assert (found.gpu, found.gpus_per_node, found.nvlink_domain_gpus) == ("a100-pcie-80gb", 4, 2)
    assert found.intra_bytes_per_s == 300 * GB
    assert found.sources["inter_link.bandwidth_gb_per_s"].startswith("assumed")
    said = "\n".join(found.deviations)
    assert "power limit 250 W" in said
    assert "no cluster of a100-pcie-80gb in the catalog" in said
    (tmp_path / "mine.yaml").write_text(cluster_text(found))
    assert catalog.cluster(tmp_path / "mine.yaml").gpu.name == "a100-pcie-80gb"


def test_without_nvlink_pcie_joins_the_node(tmp_path: Path) -> None:
    found = cluster_of(replace(look(recorded("a100_pcie"), tmp_path), nvlinks={}))
    assert (found.nvlink_domain_gpus, found.intra_bytes_per_s) == (4, 31.5 * GB)


def test_a_cube_mesh_sums_its_links_and_ibstat_stands_in_for_sys(tmp_path: Path) -> None:
    found = cluster_of(look(recorded("v100_dgx1", ibstat=True), tmp_path))
    assert (found.gpu, found.nvlink_domain_gpus) == ("v100-sxm-32gb", 8)
    assert found.intra_bytes_per_s == 150 * GB
    assert found.inter_bytes_per_s == pytest.approx(3 * 12.5 * GB / 8)
    assert "adapters that are down: mlx5_3" in found.deviations


def test_without_any_tool_it_is_local_cpu(tmp_path: Path) -> None:
    found = cluster_of(look(lambda words: "", tmp_path, cores=6))
    assert (found.gpu, found.gpus_per_node, found.nearest) == ("cpu", 6, "local-cpu")
    assert "nvidia-smi is missing" in found.deviations[0]
    (tmp_path / "mine.yaml").write_text(cluster_text(found))
    assert catalog.cluster(tmp_path / "mine.yaml").gpus_per_node == 6


def test_an_unknown_gpu_is_named_and_can_be_given(tmp_path: Path) -> None:
    seen = look(recorded("a100_pcie"), tmp_path)
    seen = replace(seen, gpus=tuple(replace(g, name="NVIDIA RTX 9090") for g in seen.gpus))
    with pytest.raises(ConfigError, match=r"RTX 9090.*is no GPU of the catalog"):
        cluster_of(seen)
    assert cluster_of(seen, gpu="a100-pcie-80gb").gpus_per_node == 4


@pytest.mark.parametrize("text", ["", "No devices were found\n", "NVIDIA-SMI has failed\n", "0,\n"])
def test_a_driver_that_says_something_else_gives_no_gpu(text: str, tmp_path: Path) -> None:
    assert look(lambda words: text, tmp_path, cores=2).gpus == ()


def test_every_name_is_in_the_catalog() -> None:
    for name in (
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 PCIe",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA B200",
        "NVIDIA GB300",
        "NVIDIA H200",
        "NVIDIA GH200 480GB",
        "NVIDIA L40S",
    ):
        assert catalog.gpu(gpu_id(name)).memory_bytes > 1000 * MIB
    assert gpu_id("NVIDIA H100 80GB HBM3") == "h100-sxm-80gb"
    assert gpu_id("NVIDIA GB200") == "gb200-nvl72"
