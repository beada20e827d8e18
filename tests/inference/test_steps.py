"""Laws of a serving step: what it is made of, and what makes it faster or slower."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from settings_served import served

from autoparallel.inference import Batch, Instance, StepTime, mixed_step
from autoparallel.inference.constants import ServingConstants
from autoparallel.inference.kernels import all_reduce_s, gemm_s, streamed_s
from autoparallel.inference.steps import distinct_experts, padding_rows


def mixed_step_s(case, instance, batch):
    return mixed_step(case, instance, batch).total


def decode_step_s(case, instance, batch, context_tokens):
    return mixed_step_s(case, instance, Batch(decoding=batch, context_tokens=context_tokens))


def prefill_step_s(case, instance, prompt_tokens, prefix_tokens=0.0):
    attended = prefix_tokens + prompt_tokens / 2
    prompt = Batch(prompt_tokens=prompt_tokens, prompt_context=attended)
    return mixed_step_s(case, instance, prompt)


MODELS = [("llama-3.1-70b", "bf16"), ("deepseek-v3", "fp8"), ("gpt-oss-20b", "mxfp4")]
COLUMNS = Instance(
    tensor_model_parallel_size=np.array([1.0, 2.0, 4.0, 8.0, 1.0]),
    pipeline_model_parallel_size=np.array([1.0, 1.0, 2.0, 1.0, 1.0]),
    attention_data_parallel_size=np.array([1.0, 1.0, 1.0, 1.0, 8.0]),
    expert_model_parallel_size=np.array([1.0, 1.0, 4.0, 8.0, 8.0]),
    kv_element_bytes=np.array([2.0, 1.0, 2.0, 1.0, 1.0]),
)
BATCH = Batch(
    decoding=np.array([1.0, 7.0, 64.0, 300.0, 64.0]),
    context_tokens=np.array([100.0, 4000.0, 900.0, 10.0, 70.0]),
    prompt_tokens=np.array([0.0, 1024.0, 8192.0, 3.0, 0.0]),
    prompt_context=np.array([0.0, 512.0, 9000.0, 1.0, 0.0]),
)


def row(record, i):
    return replace(
        record,
        **{f.name: float(v[i]) for f in fields(record) if np.ndim(v := getattr(record, f.name))},
    )


@pytest.mark.parametrize(("model", "precision"), MODELS)
def test_a_column_is_its_rows_one_by_one(model, precision):
    case = served(model, precision)
    together = mixed_step(case, COLUMNS, BATCH)
    for i in range(5):
        alone = mixed_step(case, row(COLUMNS, i), row(BATCH, i))
        for f in fields(StepTime):
            column = np.broadcast_to(getattr(together, f.name), (5,))
            assert column[i] == pytest.approx(float(getattr(alone, f.name)), rel=1e-12)


@pytest.mark.parametrize(("model", "precision"), MODELS)
def test_parts_are_finite_not_negative_and_add_up(model, precision):
    step = mixed_step(served(model, precision), COLUMNS, BATCH)
    parts = [np.broadcast_to(getattr(step, f.name), (5,)) for f in fields(StepTime)]
    assert np.all(np.isfinite(parts))
    assert np.all(np.array(parts) >= 0)
    np.testing.assert_allclose(np.sum(parts, axis=0), step.total)


@pytest.mark.parametrize(("model", "precision"), MODELS)
def test_one_gpu_communicates_with_nobody(model, precision):
    step = mixed_step(
        served(model, precision), Instance(), Batch(decoding=8.0, context_tokens=99.0)
    )
    assert step.tp_comm_s == step.ep_comm_s == step.pp_comm_s == 0


@pytest.mark.parametrize("faster", ["memory_bandwidth_bytes_per_s", "bf16_flops_per_s"])
@pytest.mark.parametrize(("model", "precision"), MODELS)
def test_a_better_machine_is_never_slower(model, precision, faster):
    case = served(model, precision)
    better = replace(case.machine, **{faster: 1.5 * getattr(case.machine, faster)})
    improved = replace(case, machine=better)
    assert np.all(
        mixed_step_s(improved, COLUMNS, BATCH) <= mixed_step_s(case, COLUMNS, BATCH) * (1 + 1e-12)
    )


def test_more_sequences_and_longer_contexts_never_make_a_step_faster():
    case, tp2 = served("llama-3.1-8b"), Instance(tensor_model_parallel_size=2.0)
    batches = np.arange(1.0, 400.0)
    assert np.all(np.diff(decode_step_s(case, tp2, batches, 1000.0)) > 0)
    assert np.all(np.diff(decode_step_s(case, tp2, 16.0, 100 * batches)) > 0)


def test_a_lone_token_costs_reading_the_weights():
    case = served("llama-3.1-70b")
    seconds = decode_step_s(case, Instance(tensor_model_parallel_size=8.0), 1.0, 1.0)
    ideal = 2 * 70.5e9 / 8 / case.machine.memory_bandwidth_bytes_per_s
    assert 1.2 * ideal < seconds < 2.5 * ideal


def test_a_long_prompt_costs_its_arithmetic():
    case = served("llama-3.1-70b")
    seconds = prefill_step_s(case, Instance(tensor_model_parallel_size=8.0), 8192.0)
    ideal = 2 * 70.5e9 * 8192 / 8 / case.machine.bf16_flops_per_s
    assert 1.2 * ideal < seconds < 3 * ideal


def test_a_cached_prefix_saves_its_arithmetic_but_is_still_attended_to():
    case, one = served("llama-3.1-8b"), Instance()
    whole = prefill_step_s(case, one, 8000.0)
    rest = prefill_step_s(case, one, 4000.0, 4000.0)
    assert prefill_step_s(case, one, 4000.0) < rest < whole


def test_narrower_weights_are_read_faster():
    times = [
        decode_step_s(served("llama-3.1-70b", p, "dgx-b200"), Instance(), 1.0, 1.0)
        for p in ("bf16", "fp8", "nvfp4")
    ]
    assert times == sorted(times, reverse=True)


def test_a_format_the_gpu_lacks_saves_bytes_but_not_arithmetic():
    hopper = served("gpt-oss-20b", "mxfp4")
    assert hopper.gemm_flops_per_s("mxfp4") < hopper.gemm_flops_per_s("bf16")
    blackwell = served("gpt-oss-20b", "mxfp4", "dgx-b200")
    assert blackwell.gemm_flops_per_s("mxfp4") == blackwell.gemm_flops_per_s("fp8")


def test_distinct_experts_go_from_the_chosen_ones_to_all():
    assert distinct_experts(128.0, 8.0, 1.0) == pytest.approx(8.0)
    assert distinct_experts(128.0, 8.0, 1e6) == pytest.approx(128.0)
    assert distinct_experts(16.0, 16.0, 1.0) == pytest.approx(16.0)
    counts = distinct_experts(256.0, 8.0, np.arange(1.0, 500.0))
    assert np.all(np.diff(counts) > 0)


def test_a_small_batch_reads_few_experts():
    case = served("qwen3-30b-a3b")
    one = mixed_step(case, Instance(), Batch(decoding=1.0, context_tokens=1.0)).experts_s
    many = mixed_step(case, Instance(), Batch(decoding=256.0, context_tokens=1.0)).experts_s
    assert 3 * one < many < 30 * one


def test_an_all_reduce_takes_the_faster_of_the_two_kernels_and_nothing_alone():
    case = served("llama-3.1-8b")
    assert all_reduce_s(case, 1e6, 1.0) == 0
    small = all_reduce_s(case, 16384.0, 8.0) / case.constants.all_reduce
    nccl = case.operators.collectives.seconds("all_reduce", 16384.0, 8.0)
    assert small < nccl / 2


@pytest.mark.parametrize(
    ("engine", "ranks", "most"),
    [("tensorrt-llm", 2.0, 16e6), ("tensorrt-llm", 8.0, 8e6), ("sglang", 4.0, 8 * 2**20)],
)
def test_beyond_the_own_kernels_of_an_engine_nccl_reduces(engine, ranks, most):
    case = served("llama-3.1-8b", engine=engine)
    sizes = np.array([most, most * 1.001])
    nccl = case.operators.collectives.seconds("all_reduce", sizes, ranks)
    own, more = all_reduce_s(case, sizes, ranks) / case.constants.all_reduce / nccl
    assert own < 0.95
    assert more == pytest.approx(1.0)


def test_leaving_the_fast_domain_costs():
    case = served("llama-3.1-405b")
    assert all_reduce_s(case, 1e7, 16.0) > 1.5 * all_reduce_s(case, 1e7, 8.0)


def test_a_gemm_is_bound_by_bytes_when_skinny_and_by_arithmetic_when_square():
    case, n = served("llama-3.1-8b"), 16384.0
    skinny = gemm_s(case, "bf16", 1.0, n, n)
    assert skinny == pytest.approx(streamed_s(case, 2 * n * n), rel=0.02)
    rate = 2 * n**3 / gemm_s(case, "bf16", n, n, n)
    assert rate == pytest.approx(case.gemm_flops_per_s("bf16"), rel=0.05)


def test_faster_memory_and_faster_cores_are_used_to_a_smaller_share():
    slow, fast = served("llama-3.1-8b"), served("llama-3.1-8b", cluster="dgx-b200")
    fast = replace(fast, constants=slow.constants)
    shares = [
        1e9 / streamed_s(c, 1e9) / c.machine.memory_bandwidth_bytes_per_s for c in (slow, fast)
    ]
    assert shares[1] < shares[0] < slow.constants.memory_bandwidth
    peaks = fast.cluster.gpu.peak_flops_per_s
    reached = [fast.gemm_flops_per_s(p) / peaks[p] for p in ("bf16", "fp8", "nvfp4")]
    assert reached[2] < reached[1] < reached[0] < slow.constants.gemm_efficiency


def test_the_prior_rates_are_those_of_isolated_products():
    """Shares of the peak, `benchmarks/measured/microbench.csv` (nvfp4: aiconfigurator's tables)."""
    found = {
        ("dgx-a100-80gb", "bf16"): 0.80,
        ("dgx-h100", "bf16"): 0.78,
        ("dgx-h100", "fp8"): 0.62,
        ("dgx-b200", "bf16"): 0.67,
        ("dgx-b200", "fp8"): 0.54,
        ("dgx-b200", "nvfp4"): 0.37,
    }
    for (cluster, precision), share in found.items():
        case = replace(served("llama-3.1-8b", cluster=cluster), constants=ServingConstants())
        peak = case.cluster.gpu.peak_flops_per_s[precision]
        assert case.gemm_flops_per_s(precision) / peak == pytest.approx(share, rel=0.08)


def test_a_product_of_narrow_weights_starts_later_and_short_sums_are_slow():
    case = served("llama-3.1-8b")
    late = replace(case, constants=replace(case.constants, narrow_s=case.constants.narrow_s + 1e-3))
    for precision, later in (("bf16", 0.0), ("fp8", 1e-3)):
        more = gemm_s(late, precision, 8.0, 4096.0, 4096.0)
        less = gemm_s(case, precision, 8.0, 4096.0, 4096.0)
        assert more - less == pytest.approx(later, abs=1e-12)
    whole = gemm_s(case, "fp8", 8192.0, 8192.0, 8192.0)
    parts = gemm_s(case, "fp8", 8192.0, 8192.0, 128.0, matrices=64.0)
    assert parts > 2.0 * whole


def test_tiles_of_few_tokens_hold_few_empty_rows():
    rows = np.array([0.0, 1.0, 32.0, 1e6])
    padding = padding_rows(rows, 32.0)
    assert padding[0] == 0
    assert padding[2] == pytest.approx(16.0)
    assert padding[3] == pytest.approx(32.0, rel=1e-3)
    assert np.all(padding <= rows)


def test_launches_of_a_prompt_step_hide_behind_the_gpu_but_never_all_of_the_longer_part():
    for model, precision in MODELS:
        case = served(model, precision)
        for each_s in (5e-6, 600e-6):
            host = replace(case.constants, prefill_moe_s=each_s, prefill_layer_s=each_s)
            slow = replace(case, constants=host)
            few = mixed_step(slow, Instance(), Batch(prompt_tokens=1.0))
            many = mixed_step(slow, Instance(), Batch(prompt_tokens=8192.0))
            launches = host.prefill_step_s + each_s * (case.shape.L + case.shape.L_moe)
            for step in (few, many):
                device = step.total - step.host_s
                assert step.total >= max(launches, device) * (1 - 1e-9)
                assert step.total <= launches + device + host.step_s + host.prompt_s + 1e-4
            assert many.host_s < few.host_s or each_s == 5e-6


def test_launches_cost_nothing_without_prompts():
    case = served("deepseek-v3", "fp8")
    slow = replace(case, constants=replace(case.constants, prefill_layer_s=1e-3))
    quiet = Batch(decoding=8.0, context_tokens=100.0)
    assert mixed_step_s(slow, Instance(), quiet) == mixed_step_s(case, Instance(), quiet)


def test_padding_costs_what_the_same_tokens_cost_without_their_cache():
    case = served("llama-3.1-8b")
    batch = Batch(decoding=300.0, context_tokens=1000.0)
    padded = mixed_step(case, Instance(), replace(batch, padding=84.0))
    more = mixed_step(case, Instance(), replace(batch, decoding=384.0))
    bare = mixed_step(case, Instance(), batch)
    assert padded.gemm_s == pytest.approx(float(more.gemm_s))
    assert padded.attention_s == bare.attention_s
    assert bare.total < padded.total < more.total


def test_copies_pad_up_to_the_next_captured_graph():
    coarse = Instance(coarse_graphs=1.0)
    assert [float(coarse.padding(b)) for b in (1.0, 385.0, 512.0, 9000.0)] == [0, 127, 0, 0]
    assert float(replace(coarse, attention_data_parallel_size=4.0).padding(1538.0)) == 4 * 127
    assert float(Instance().padding(385.0)) == 0


def test_experts_split_by_their_matrices_get_every_token_on_every_gpu():
    case = served("deepseek-v3", "fp8")
    whole = Instance(attention_data_parallel_size=16.0, expert_model_parallel_size=16.0)
    split = replace(whole, expert_model_parallel_size=1.0)
    batch = Batch(decoding=4096.0, context_tokens=100.0)
    assert mixed_step(case, split, batch).ep_comm_s > mixed_step(case, whole, batch).ep_comm_s


def test_a_slower_link_stretches_the_wire_and_not_the_start():
    case = served("llama-3.1-70b")
    slow = replace(
        case, machine=replace(case.machine, intra_bytes_per_s=case.machine.intra_bytes_per_s / 8)
    )
    assert all_reduce_s(slow, 1024.0, 4.0) == pytest.approx(float(all_reduce_s(case, 1024.0, 4.0)))
    assert all_reduce_s(slow, 2.0**28, 4.0) == pytest.approx(
        8 * float(all_reduce_s(case, 2.0**28, 4.0)), rel=0.05
    )
