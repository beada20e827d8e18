"""Serving plans in the gate."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from autoparallel.regression import Lock, checked_lock
from autoparallel.regression.kinds import SERVING
from autoparallel.regression.lock import load_lock
from autoparallel.regression.pin import pinned_lock
from autoparallel.regression.serving import (
    ServingToday,
    serving_asked,
    serving_resolved,
    serving_today,
)
from autoparallel.request import serving_request

JOB = {"model": "llama-3.1-8b", "num_gpus": 2, "backend": "vllm", "disaggregated": "off",
       "input_tokens": 500, "output_tokens": 100, "tpot_ms": 30.0}  # fmt: skip


@cache
def today(*overrides: str) -> ServingToday:
    return serving_today(serving_request(**JOB, overrides=overrides))


@cache
def lock() -> Lock:
    now = today()
    ask = serving_asked(now.request, Path(), {})
    return pinned_lock(SERVING, ask, now, now.entries[0].layout, versions={})


def test_what_was_asked_is_asked_again():
    again = serving_resolved(lock().request, Path(), {})
    first = today().request
    assert again.to_mapping() | {"assumptions": []} == first.to_mapping() | {"assumptions": []}


def test_reads_back_and_holds(tmp_path):
    lock().write(tmp_path / "a.lock.yaml")
    again = load_lock(tmp_path / "a.lock.yaml")
    assert again.to_mapping() == lock().to_mapping()
    found = checked_lock(again, today(), path="a")
    assert found.passed
    assert [f.rule for f in found.findings] == [
        *("legal", "fits", "ttft_ms", "tpot_ms", "tokens_per_s_per_gpu", "memory_bytes", "optimum")
    ]


def test_slower_memory_makes_tokens_slower_for_that_reason():
    found = checked_lock(lock(), today("gpu.memory_bandwidth_tb_per_s=2.6"), path="a")
    failed = [f.rule for f in found.findings if f.failed]
    assert "tpot_ms" in failed or "tokens_per_s_per_gpu" in failed
    assert found.causes[0].name == "gpu.memory_bandwidth_tb_per_s"


def test_more_throughput_is_not_a_regression():
    found = checked_lock(lock(), today("gpu.memory_bandwidth_tb_per_s=4"), path="a")
    assert not any(f.failed for f in found.findings if f.rule != "optimum")


def test_a_deployment_that_breaks_its_limit_is_named():
    found = checked_lock(lock(), today("gpu.memory_bandwidth_tb_per_s=0.2"), path="a")
    assert not found.passed


@pytest.mark.parametrize("name", ["model.num_layers", "gpu.memory_gib", "vllm.step_overhead_s"])
def test_numbers_are_kept(name):
    if name.startswith("vllm."):
        assert any(key.startswith("vllm.") for key in lock().used)
    else:
        assert name in lock().used
