"""What the formulas read of a cluster, and peaks by precision."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from cases import SMALL_CLUSTER, SMALL_GPU

from autoparallel import catalog
from autoparallel.hardware import REACHED_SHARE, Machine, machine
from autoparallel.layout import PRECISIONS

CLUSTERS = catalog.names("cluster")


def gpu_with(**peaks: float):
    return replace(SMALL_CLUSTER, gpu=replace(SMALL_GPU, peak_flops_per_s=peaks))


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_cluster_gives_the_formulas_usable_numbers(name: str, precision: str) -> None:
    found = machine(catalog.cluster(name), precision)
    for f in fields(Machine):
        value = getattr(found, f.name)
        assert isinstance(value, float), f.name
        may_be_none = f.name.endswith(("latency_s", "measured", "pairwise"))
        assert value >= 0 if may_be_none else value > 0, f.name
    assert found.peak_flops_per_s >= found.bf16_flops_per_s


def test_products_are_measured_against_the_best_one_known() -> None:
    best = replace(SMALL_GPU, peak_flops_per_s={"bf16": 1e15}, measured_matmul_flops_per_s=7e14)
    assert machine(replace(SMALL_CLUSTER, gpu=best), "bf16").reached_share == 0.7
    unknown = replace(best, measured_matmul_flops_per_s=0.0)
    assert machine(replace(SMALL_CLUSTER, gpu=unknown), "bf16").reached_share == REACHED_SHARE
    more = machine(replace(SMALL_CLUSTER, gpu=best.with_arithmetic(2.0)), "bf16")
    assert (more.bf16_flops_per_s, more.reached_share) == (2e15, 0.7)


def test_some_clusters_have_no_switches_inside() -> None:
    direct = {name for name in CLUSTERS if machine(catalog.cluster(name), "bf16").pairwise}
    assert direct == {"alps", "mi300x-platform"}


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_network_gets_slower_outwards(name: str) -> None:
    cluster = catalog.cluster(name)
    found = machine(cluster, "bf16")
    assert found.inter_bytes_per_s <= found.intra_bytes_per_s <= found.memory_bandwidth_bytes_per_s
    assert found.domain_gpus >= found.node_gpus or found.node_gpus % found.domain_gpus == 0
    assert found.intra_bytes_per_s == cluster.intra_link.bandwidth_bytes_per_s
    assert found.inter_latency_s == cluster.inter_link.latency_s


@pytest.mark.parametrize(
    ("precision", "peak"),
    [
        ("bf16", 2.0),
        ("fp16", 2.5),
        ("fp8", 4.0),
        ("fp8-tensorwise", 4.0),
        ("fp8-blockwise", 4.0),
        ("mxfp8", 4.5),
        ("nvfp4", 8.0),
    ],
)
def test_a_recipe_runs_at_the_peak_of_its_format(precision: str, peak: float) -> None:
    cluster = gpu_with(bf16=2.0, fp16=2.5, fp8=4.0, mxfp8=4.5, nvfp4=8.0)
    found = machine(cluster, precision)
    assert found.peak_flops_per_s == peak
    assert found.bf16_flops_per_s == 2.0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpu_of_one_format_runs_everything_in_it(precision: str) -> None:
    found = machine(gpu_with(fp16=1.25), precision)
    assert found.peak_flops_per_s == found.bf16_flops_per_s == 1.25


def test_a_node_is_not_a_domain() -> None:
    rack = machine(catalog.cluster("gb200-nvl72"), "bf16")
    assert (rack.node_gpus, rack.domain_gpus) == (4, 72)
