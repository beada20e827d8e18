"""From a step to a run: the best checkpoint interval, and days, dollars and energy that scale."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import DENSE, SMALL_CLUSTER, SMALL_GPU
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel import catalog
from autoparallel.cost.goodput import (
    CHECKPOINT_BYTES_PER_PARAMETER,
    RESTART_S,
    Run,
    power_w,
    run,
)
from autoparallel.hardware import Cluster
from autoparallel.model import parameters
from autoparallel.units import DAY_S

JOB: dict[str, Any] = {"tokens": 1e11, "tokens_per_s": 1e6, "busy": 0.9}


def whole(num_gpus: int = 1024, cluster: Cluster = SMALL_CLUSTER, **changes: Any) -> Run:
    return run(DENSE, cluster, num_gpus, **{**JOB, **changes})


def goodput_at(interval_s: float, cluster: Cluster, num_gpus: int) -> float:
    """Share of useful time when saving every `interval_s`: saving, lost work, restarts."""
    nodes = num_gpus / cluster.gpus_per_node
    save_s = float(parameters(DENSE.shape(1))) * CHECKPOINT_BYTES_PER_PARAMETER
    save_s /= nodes * cluster.checkpoint_bandwidth_bytes_per_s_per_node
    failures_per_s = nodes * cluster.failures_per_node_day / DAY_S
    return 1 / (1 + save_s / interval_s + failures_per_s * (interval_s / 2 + RESTART_S))


@given(
    st.integers(1, 2000),
    st.floats(1e-4, 0.1),
    st.floats(1e8, 1e11),
    st.floats(0.1, 10.0).filter(lambda f: abs(f - 1) > 0.01),
)
@settings(deadline=None)
def test_no_other_checkpoint_interval_is_better(
    nodes: int, failures: float, bandwidth: float, factor: float
) -> None:
    cluster = replace(
        SMALL_CLUSTER,
        failures_per_node_day=failures,
        checkpoint_bandwidth_bytes_per_s_per_node=bandwidth,
    )
    found = whole(8 * nodes, cluster)
    at = found.checkpoint_interval_s
    np.testing.assert_allclose(found.goodput, goodput_at(at, cluster, 8 * nodes), rtol=1e-9)
    for other in (factor, 0.97, 1.03):
        assert goodput_at(at * other, cluster, 8 * nodes) < found.goodput


def test_goodput_falls_with_the_number_of_nodes() -> None:
    found = [whole(8 * 4**i).goodput for i in range(8)]
    assert all(a > b for a, b in itertools.pairwise(found))
    assert 0 < found[-1] < 0.9 < found[0] < 1


def test_goodput_falls_with_failures_and_slow_storage() -> None:
    fragile = replace(SMALL_CLUSTER, failures_per_node_day=0.05)
    slow = replace(SMALL_CLUSTER, checkpoint_bandwidth_bytes_per_s_per_node=1e8)
    assert whole(cluster=fragile).goodput < whole().goodput
    assert whole(cluster=slow).goodput < whole().goodput
    assert whole(cluster=slow).checkpoint_interval_s > whole().checkpoint_interval_s


def test_without_failures_all_time_is_useful() -> None:
    sound = whole(cluster=replace(SMALL_CLUSTER, failures_per_node_day=0.0))
    assert sound.goodput > 0.999
    assert sound.failures < 1e-3
    np.testing.assert_allclose(sound.days, 1e11 / 1e6 / DAY_S, rtol=1e-3)


@given(st.floats(0.1, 100.0))
@settings(deadline=None)
def test_everything_scales_with_tokens_and_inversely_with_speed(factor: float) -> None:
    base = whole()
    for other, ratio in (
        (whole(tokens=1e11 * factor), factor),
        (whole(tokens_per_s=1e6 * factor), 1 / factor),
    ):
        assert other.goodput == base.goodput
        for name in ("days", "failures", "cost_usd", "energy_kwh", "co2_kg"):
            np.testing.assert_allclose(getattr(other, name), getattr(base, name) * ratio)


def test_price_grid_and_cooling_scale_their_own_figure() -> None:
    base = whole()
    np.testing.assert_allclose(base.cost_usd, 2.0 * 1024 * base.days * 24)
    np.testing.assert_allclose(
        whole(cluster=replace(SMALL_CLUSTER, usd_per_gpu_hour=6.0)).cost_usd, 3 * base.cost_usd
    )
    cooled = whole(cluster=replace(SMALL_CLUSTER, pue=2.4))
    np.testing.assert_allclose(cooled.energy_kwh, 2 * base.energy_kwh)
    np.testing.assert_allclose(base.co2_kg, 0.4 * base.energy_kwh)
    average_w = base.energy_kwh * 3.6e6 / (base.days * DAY_S) / 1024 / 1.2
    np.testing.assert_allclose(average_w, power_w(SMALL_CLUSTER, 0.9))


def test_what_the_catalog_does_not_know_is_none() -> None:
    unknown = replace(SMALL_CLUSTER, usd_per_gpu_hour=None, grid_kg_co2_per_kwh=None)
    found = whole(cluster=unknown)
    assert (found.cost_usd, found.co2_kg) == (None, None)
    assert found.energy_kwh == whole().energy_kwh
    free = whole(cluster=replace(SMALL_CLUSTER, usd_per_gpu_hour=0.0, grid_kg_co2_per_kwh=0.0))
    assert (free.cost_usd, free.co2_kg) == (0, 0)


@given(st.floats(0, 1))
def test_power_lies_between_idle_and_full(busy: float) -> None:
    np.testing.assert_allclose(power_w(SMALL_CLUSTER, busy), 100 + busy * 600)
    unknown = replace(SMALL_CLUSTER, gpu=replace(SMALL_GPU, idle_w=0.0))
    assert 0 < power_w(unknown, busy) <= 700 * (1 + 1e-12)


def test_less_than_a_node_is_a_node() -> None:
    assert whole(1).goodput == whole(8).goodput
    assert whole(1).energy_kwh < whole(8).energy_kwh


def test_gpt_175b_on_300_billion_tokens() -> None:
    """34 days on 1024 A100 at 140 TFLOP/s: arXiv 2104.04473 section 5.1 (8 T P / n X)."""
    tokens, parameters_, gpus, rate = 300e9, 175e9, 1024, 140e12
    cluster = replace(catalog.cluster("dgx-a100-80gb"), failures_per_node_day=0.0)
    speed = gpus * rate / (8 * parameters_)
    found = run(catalog.model("gpt-175b"), cluster, gpus, tokens, speed, 1.0)
    assert found.days == pytest.approx(34, rel=0.01)
    real = run(
        catalog.model("gpt-175b"), catalog.cluster("dgx-a100-80gb"), gpus, tokens, speed, 1.0
    )
    assert real.days == pytest.approx(found.days / real.goodput, rel=1e-3)
    assert 5 < real.failures < 50
