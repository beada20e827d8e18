"""What is asked of engines and GPUs of which no run is known: plausible, named, and wider."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest

from autoparallel import catalog
from autoparallel.inference import BACKENDS, Batch, Instance, Load, backend, closed_loop, setting
from autoparallel.inference.calibrated import read_serving
from autoparallel.inference.engine_memory import weights_bytes
from autoparallel.inference.kv_cache import kv_bytes
from autoparallel.inference.steps import mixed_step
from autoparallel.measured.cases import cluster_of_gpu

GPUS = (
    "a100-sxm-80gb",
    "l40s-48gb",
    "h100-sxm-80gb",
    "h200-sxm-141gb",
    "b200-sxm-180gb",
    "b300-sxm-288gb",
    "gb200-nvl72",
    "gb300-nvl72",
    "rtx-pro-6000-96gb",
    "mi300x",
)
LADDER = ("llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b")
CLIENTS = np.array([1.0, 8.0, 64.0])
LOAD = Load(input_tokens=1000.0, output_tokens=500.0, concurrency=CLIENTS)
EIGHT = Instance(tensor_model_parallel_size=8.0)


def case(engine, gpu, model="llama-3.1-70b", precision="bf16"):
    return setting(catalog.model(model), cluster_of_gpu(gpu, None), backend(engine), precision)


everywhere = pytest.mark.parametrize("gpu", GPUS)
by_any = pytest.mark.parametrize("engine", sorted(BACKENDS))


@everywhere
@by_any
def test_no_token_comes_before_the_weights_and_the_cache_were_read(engine, gpu):
    for precision, kv in (("bf16", 2.0), ("fp8", 1.0), ("nvfp4", 1.0)):
        here, split = case(engine, gpu, precision=precision), replace(EIGHT, kv_element_bytes=kv)
        read = weights_bytes(here, split) - 2.0 * here.shape.V * here.shape.h / 8
        read = read + CLIENTS * kv_bytes(here, split, 1000.0)
        floor = read / here.machine.memory_bandwidth_bytes_per_s
        assert np.all(closed_loop(here, split, LOAD).tpot_s > floor)


@everywhere
@by_any
def test_a_larger_model_is_slower(engine, gpu):
    found = [closed_loop(case(engine, gpu, m), EIGHT, LOAD) for m in LADDER]
    for small, large in pairwise(found):
        assert np.all(small.tpot_s < large.tpot_s)
        assert np.all(small.e2e_s <= large.e2e_s * (1 + 1e-9))
        assert small.ttft_s[0] < large.ttft_s[0]


@everywhere
@by_any
def test_fp8_is_not_slower_but_for_the_scaling_of_small_inputs(engine, gpu):
    wide, narrow = case(engine, gpu), case(engine, gpu, precision="fp8")
    if "fp8" not in wide.cluster.gpu.peak_flops_per_s:
        pytest.skip("no fp8")
    half = replace(EIGHT, kv_element_bytes=1.0)
    slow, fast = closed_loop(wide, EIGHT, LOAD), closed_loop(narrow, half, LOAD)
    assert np.all(fast.tpot_s <= slow.tpot_s * 1.08)
    assert np.all(fast.ttft_s <= slow.ttft_s * 1.02)


@by_any
@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("h100-sxm-80gb", "h200-sxm-141gb"),
        ("b200-sxm-180gb", "b300-sxm-288gb"),
        ("a100-sxm-80gb", "h100-sxm-80gb"),
        ("h200-sxm-141gb", "b200-sxm-180gb"),
        ("l40s-48gb", "h100-sxm-80gb"),
    ],
)
def test_a_better_gpu_is_not_slower_but_for_its_host(engine, less, more):
    slow, fast = (closed_loop(case(engine, g), EIGHT, LOAD) for g in (less, more))
    assert np.all(fast.tpot_s <= slow.tpot_s * 1.001)
    assert np.all(fast.ttft_s <= slow.ttft_s * 1.1)


@everywhere
@by_any
def test_what_no_run_is_known_of_is_assumed_and_wider_than_its_lenders(engine, gpu):
    found = case(engine, gpu).calibration
    if not found.borrowed_from:
        assert found.state == "measured"
        return
    assert found.state == "assumed"
    assert not found.measured_names
    for name in found.borrowed_from.split(" (")[0].split(" and "):
        lender = read_serving(catalog.data_dir() / "profiles" / "serving" / f"{name}.yaml")
        for f in fields(found.spread):
            assert getattr(found.spread, f.name) > getattr(lender.spread, f.name)


@pytest.mark.parametrize("gpu", ["b300-sxm-288gb", "gb300-nvl72", "gh200-96gb"])
def test_a_gpu_without_runs_in_a_measured_generation_is_assumed(gpu):
    found = case("tensorrt-llm", gpu).calibration
    assert found.state == "assumed"
    assert found.family == f"tensorrt-llm on {gpu}"
    generation = "hopper" if gpu == "gh200-96gb" else "blackwell"
    assert found.borrowed_from.startswith(f"tensorrt-llm-{generation} (")
    assert gpu not in found.borrowed_from
    measured = case("tensorrt-llm", "h100-sxm-80gb" if generation == "hopper" else "gb200-nvl72")
    assert measured.calibration.state == "measured"


def test_grace_slows_the_host_of_engines_that_are_slow_there():
    prompt = Batch(prompt_tokens=500.0, prompt_context=250.0)
    for engine, slower in (("vllm", True), ("tensorrt-llm", False)):
        grace, x86 = case(engine, "gb200-nvl72"), case(engine, "b200-sxm-180gb")
        assert (float(grace.host_slowdown) > 1) is slower
        assert x86.host_slowdown == 1.0
        own = replace(grace, backend=replace(grace.backend, slow_on_grace=True))
        slow, here = (mixed_step(s, EIGHT, prompt).total for s in (own, grace))
        assert (slow > here) is not slower
