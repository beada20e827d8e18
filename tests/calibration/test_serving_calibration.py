"""Serving constants come back from figures made with them, and from the file they are in."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from autoparallel.calibration import serving as module
from autoparallel.calibration.serving import (
    PRIOR_WIDTH,
    ServingFit,
    fit_serving,
    predicted_with,
    prior_width,
    slopes,
    with_spread,
)
from autoparallel.calibration.serving_cases import predicted, understood_serving
from autoparallel.calibration.serving_file import ServingProfile, rounded, write_serving
from autoparallel.errors import ProfileError
from autoparallel.inference.calibrated import (
    BORROWED_SPREAD,
    ServingCalibration,
    ServingSpread,
    chosen,
    read_serving,
)
from autoparallel.inference.constants import (
    CONSTANT_NAMES,
    ENGINE_NAMES,
    GENERATION_FACTORS,
    ServingConstants,
    bounds,
    expected,
)
from autoparallel.measured.serving_rows import ServingRun

PRIOR = ServingConstants()


def readings():
    runs = [
        ServingRun(
            framework_version="vllm 0.12.0",
            model="meta-llama/Llama-3.1-8B-Instruct",
            gpu="h100-sxm-80gb",
            tp=tp,
            isl=isl,
            osl=128,
            batch_or_concurrency=str(b),
            metric=metric,
            value=1.0,
        )
        for tp in (1, 4)
        for isl in (500, 4000)
        for b in (1, 16, 64)
        for metric in ("ttft_ms", "tpot_ms")
    ]
    return understood_serving(runs)[0]


def measured(rows, values):
    return [
        replace(r, run=replace(r.run, value=float(v))) for r, v in zip(rows, values, strict=True)
    ]


def test_constants_come_back_from_figures_made_with_them(monkeypatch):
    names = ("gemm_efficiency", "memory_bandwidth")
    monkeypatch.setattr(module, "FITTED", names)
    rows = readings()
    truth = replace(PRIOR, gemm_efficiency=0.5, memory_bandwidth=0.6)
    made = measured(rows, predicted(rows, lambda s: truth))
    fit = fit_serving(made, PRIOR, 2.0, lambda c, s: c)
    for name in names:
        assert getattr(fit.constants, name) == pytest.approx(getattr(truth, name), rel=0.05)
        assert 0 < fit.deviations[name] < PRIOR_WIDTH


def test_what_no_row_depends_on_stays_at_its_prior(monkeypatch):
    monkeypatch.setattr(module, "FITTED", ("gemm_efficiency", "fp4_efficiency"))
    rows = readings()
    made = measured(rows, 0.8 * predicted(rows, lambda s: PRIOR))
    fit = fit_serving(made, PRIOR, 0.5, lambda c, s: c)
    assert fit.constants.fp4_efficiency == pytest.approx(PRIOR.fp4_efficiency, rel=1e-3)
    assert fit.deviations["fp4_efficiency"] == pytest.approx(
        prior_width("fp4_efficiency", 0.5), rel=0.01
    )


def test_slopes_of_all_constants_at_once_are_those_of_one_after_the_other():
    def curve(points):
        return np.stack([points[..., 0] ** 2, points[..., 0] * points[..., 1]], axis=-1)

    found = slopes(curve, np.array([1.5, 2.0]))
    np.testing.assert_allclose(found, [[3.0, 0.0], [2.0, 1.5]], rtol=1e-3, atol=1e-9)


def test_many_sets_of_constants_predict_what_each_predicts_alone():
    runs = [
        ServingRun(
            framework_version="TensorRT-LLM 1.0",
            model="Qwen3-30B-A3B",
            gpu="b200-sxm-180gb",
            precision="nvfp4",
            tp=1,
            isl=1000,
            osl=osl,
            batch_or_concurrency="max(infinite rate)",
            metric="throughput_tok_s_total",
            value=1.0,
        )
        for osl in (500, 2000)
    ]
    rows = [*readings(), *understood_serving(runs)[0]]
    shares = (0.6, 0.8, 0.9)
    column = np.array(shares)[:, None]
    together = predicted(rows, lambda s: replace(PRIOR, kv_bandwidth=column), sets=(3,))
    alone = [predicted(rows, lambda s, x=x: replace(PRIOR, kv_bandwidth=x)) for x in shares]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_priors_lie_inside_their_bounds_and_so_do_other_generations():
    for name in CONSTANT_NAMES:
        low, high = bounds(name)
        assert low < getattr(PRIOR, name) < high
        for generation in GENERATION_FACTORS:
            assert low <= getattr(expected(PRIOR, "sglang", generation), name) <= high


def calibration(family, **constants):
    return ServingCalibration(
        family=family, constants=replace(PRIOR, **constants), state="measured", rows=10
    )


def test_a_family_without_runs_borrows_its_engine_and_for_the_rest_the_fit_to_everything():
    known = {
        c.family: c
        for c in (
            calibration("all", gemm_efficiency=0.7, step_s=3e-3),
            calibration("tensorrt-llm-blackwell", gemm_efficiency=0.6, step_s=4e-3),
            calibration("vllm-hopper", gemm_efficiency=0.8, step_s=2e-3),
        )
    }
    found = chosen(known, "vllm", "blackwell")
    assert (found.constants.gemm_efficiency, found.constants.step_s) == (0.7, 2e-3)
    assert found.state == "assumed"
    assert found.borrowed_from == "all and vllm-hopper"
    assert found.lender == "everything measured and vllm-hopper"
    assert found.spread.tpot == pytest.approx(BORROWED_SPREAD * ServingSpread().tpot)
    assert chosen(known, "vllm", "hopper") is known["vllm-hopper"]


def test_a_borrowed_family_is_less_sure_than_whoever_lends_to_it():
    unsure = replace(calibration("vllm-hopper"), spread=ServingSpread(ttft=0.9, tpot=0.1))
    known = {"all": calibration("all"), "vllm-hopper": unsure}
    found = chosen(known, "vllm", "blackwell").spread
    assert found.ttft == pytest.approx(BORROWED_SPREAD * 0.9)
    assert found.tpot == pytest.approx(BORROWED_SPREAD * ServingSpread().tpot)


def test_without_any_relative_the_fit_to_everything_is_scaled_to_the_generation():
    known = {"all": calibration("all", gemm_efficiency=0.8)}
    for generation, factor in (("blackwell", 1.0), ("ada", 0.67)):
        found = chosen(known, "sglang", generation).constants
        assert found.gemm_efficiency == pytest.approx(0.8 * factor)
    assert asdict(chosen({}, "sglang", "hopper").constants) == asdict(PRIOR)


def test_the_constants_of_the_engine_are_not_those_of_its_kernels():
    assert set(ENGINE_NAMES) < set(CONSTANT_NAMES)
    assert "gemm_efficiency" not in ENGINE_NAMES


def test_a_profile_reads_back_as_it_was_written(tmp_path):
    found = rounded(
        replace(
            calibration("vllm-hopper", gemm_efficiency=0.712345, step_s=1.23456e-3),
            measured_names=("gemm_efficiency",),
            gpus=("h100-sxm-80gb", "h200-sxm-141gb"),
            source='a "quoted" source: ${x}',
        )
    )
    fit = ServingFit(constants=found.constants, deviations={"gemm_efficiency": 0.05})
    path = write_serving(
        tmp_path, ServingProfile(calibration=found, fit=fit, models=("llama-3.1-8b",))
    )
    back = read_serving(path)
    assert asdict(replace(back, source="")) == asdict(replace(found, source=""))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("constants: {gemm_efficiency: 7}", "outside its bounds"),
        ("constants: {gem_efficiency: 0.7}", "did you mean 'gemm_efficiency'"),
        ("wings: 2", "unknown key 'wings'"),
        ("gpus: h100-sxm-80gb", "gpus: 'h100-sxm-80gb' is not a list of names"),
    ],
)
def test_a_profile_that_is_wrong_is_refused_by_name(tmp_path, text, says):
    path = tmp_path / "vllm-hopper.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ProfileError, match="vllm-hopper") as caught:
        read_serving(path)
    assert says in str(caught.value)


def test_the_spread_covers_nine_of_ten_left_out_figures():
    rows = readings()
    known = {"vllm-hopper": calibration("vllm-hopper")}
    ours = predicted_with(known, rows)
    rng = np.random.default_rng(0)
    made = measured(rows, ours * np.exp(rng.normal(0, 0.3, len(rows))))
    found = with_spread(known, made, ours)["vllm-hopper"]
    assert 0.15 < found.spread.tpot < 0.6


def test_figures_that_no_gpu_could_reach_say_nothing_of_the_spread():
    rows = readings()
    known = {"vllm-hopper": calibration("vllm-hopper")}
    ours = predicted_with(known, rows)
    made = measured(rows, ours * 1.1)
    fair = with_spread(known, made, ours)["vllm-hopper"].spread
    odd = [
        replace(r, run=replace(r.run, framework_version="vllm 0.13.0", value=r.run.value / 100))
        for r in made
    ]
    both = with_spread(known, made + odd, np.concatenate([ours, ours]))["vllm-hopper"].spread
    assert both == fair


def test_the_front_end_of_early_tensorrt_llm_is_full_at_half_the_rate():
    def loop(release):
        run = replace(
            readings()[0].run,
            framework_version=release,
            tp=8,
            osl=512,
            batch_or_concurrency="256",
            metric="tpot_ms",
        )
        return float(predicted(understood_serving([run])[0], lambda s: PRIOR)[0])

    assert loop("trtllm 1.0.0rc3") > 1.5 * loop("trtllm 1.2.0")
    assert loop("trtllm 1.2.0") == loop("trtllm 1.10.0")


def test_only_early_tensorrt_llm_is_slower_on_grace():
    def first_token(release, gpu):
        run = replace(readings()[0].run, framework_version=release, gpu=gpu, metric="ttft_ms")
        return float(predicted(understood_serving([run])[0], lambda s: PRIOR)[0])

    grace, x86 = "gb200-nvl72", "b200-sxm-180gb"
    assert first_token("trtllm 1.0.0", grace) > 1.1 * first_token("trtllm 1.0.0", x86)
    assert first_token("trtllm 1.2.0", grace) < 1.01 * first_token("trtllm 1.2.0", x86)


def test_what_isolated_kernels_say_is_held_closer_to_its_prior():
    assert prior_width("all_reduce", 0.5) < prior_width("prefill_layer_s", 0.5) == 0.5
    rows = readings()
    fast = replace(PRIOR, memory_bandwidth=0.93, gemm_efficiency=0.88)
    figures = predicted(rows, lambda s: fast)
    told = [
        replace(r, run=replace(r.run, value=float(v)))
        for r, v in zip(rows, figures, strict=True)
        if r.run.metric == "tpot_ms" and r.run.concurrency == 1
    ]
    found = fit_serving(told, PRIOR, PRIOR_WIDTH, lambda c, s: c).constants
    assert PRIOR.gemm_efficiency * 0.9 < found.gemm_efficiency < PRIOR.gemm_efficiency * 1.1
