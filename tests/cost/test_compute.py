"""Time of operators: roofs, shares of the model's work, and what makes it longer or shorter."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from cases import (
    DENSE,
    MOE,
    assert_never_less,
    case,
    columns_of,
    dense,
    moe,
    taken,
    with_constants,
    with_knobs,
    with_machine,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.cost.case import Case
from autoparallel.cost.compute import (
    Operators,
    attention_core_s,
    dense_layer,
    gemm_s,
    head,
    moe_layer,
    padded_vocabulary,
    sequence_shards,
    tokens,
    torch_softmax,
)
from autoparallel.cost.context import rearranged_s, ring_ranks
from autoparallel.model import flops_per_token
from autoparallel.units import Num

PARTS = tuple(f.name for f in fields(Operators))
PERFECT = {
    "gemm_efficiency": 1.0,
    "gemm_ramp_waves": 0.0,
    "fp8_efficiency": 1.0,
    "attention_efficiency": 1.0,
    "expert_ramp_waves": 0.0,
    "expert_imbalance": 1.0,
    "memory_traffic": 1.0,
}


def layers(of: Case) -> list[Operators]:
    """Every operator record of a case."""
    found = [dense_layer(of), head(of)]
    return [*found, moe_layer(of)] if np.any(of.model.E) else found


@pytest.mark.parametrize("of", [dense(), moe()], ids=["dense", "moe"])
def test_every_part_is_finite_and_none_is_negative(of: Case) -> None:
    for operators in layers(of):
        for name, column in columns_of(operators, of.knobs.size).items():
            assert np.isfinite(column).all(), name
            assert (column >= 0).all(), name
        assert_never_less(operators.forward_s, operators.gemm_forward_s)
        assert_never_less(operators.backward_s, operators.forward_s)


@pytest.mark.parametrize("of", [dense(), moe()], ids=["dense", "moe"])
def test_forward_and_backward_are_sums_of_their_parts(of: Case) -> None:
    for x in layers(of):
        kinds = ("gemm", "attention", "memory")
        for way in ("forward", "backward"):
            total = sum(getattr(x, f"{kind}_{way}_s") for kind in kinds)
            np.testing.assert_allclose(getattr(x, f"{way}_s"), total, rtol=1e-12)


@pytest.mark.parametrize("flash", [0.0, 1.0])
def test_backward_is_at_least_two_forwards(flash: float) -> None:
    """A gradient for either input; attention that kept no scores computes them again."""
    for x in (dense_layer(case(flash_attention=flash)), head(case())):
        ratio = np.asarray(x.gemm_backward_s) / np.asarray(x.gemm_forward_s)
        assert np.all((ratio > 1.5) & (ratio < 3.5))
        assert 1.8 < np.median(ratio) < 2.3
    of = case(flash_attention=flash)
    forward, backward = (
        at - copied for at, copied in zip(attention_core_s(of), rearranged_s(of), strict=True)
    )
    assert_never_less(backward, (2.4 if flash else 1.5) * forward)
    assert_never_less(3.5 * forward, backward)


@pytest.mark.parametrize("of", [dense(), moe()], ids=["dense", "moe"])
@pytest.mark.parametrize(
    "faster",
    [
        {"peak_flops_per_s": 2.0, "bf16_flops_per_s": 2.0},
        {"memory_bandwidth_bytes_per_s": 2.0},
        {"peak_flops_per_s": 1.3, "bf16_flops_per_s": 1.3, "memory_bandwidth_bytes_per_s": 1.3},
    ],
    ids=["peak", "hbm", "both"],
)
def test_a_faster_gpu_is_never_slower(of: Case, faster: dict[str, float]) -> None:
    for slow, fast in zip(layers(of), layers(with_machine(of, **faster)), strict=True):
        for name in PARTS:
            assert_never_less(getattr(slow, name), getattr(fast, name))
        assert np.any(fast.forward_s < slow.forward_s)


def kernels_s(of: Case) -> Num:
    """Attention of a layer's forward without what context parallelism copies."""
    return attention_core_s(of)[0] - rearranged_s(of)[0]


@pytest.mark.parametrize("knob", ["mbs", "s"])
@pytest.mark.parametrize("of", [dense(), moe()], ids=["dense", "moe"])
def test_more_tokens_are_never_faster(of: Case, knob: str) -> None:
    bigger = (
        with_knobs(of, mbs=of.knobs.mbs * 2)
        if knob == "mbs"
        else replace(of, model=replace(of.model, s=of.model.s * 2))
    )
    for few, many in zip(layers(of), layers(bigger), strict=True):
        for name in PARTS:
            assert_never_less(getattr(many, name), getattr(few, name))
    attention = kernels_s(bigger) / kernels_s(of)
    once, twice = (
        case.look_up(lambda o, s: o.attention.length_factor(s), case.model.s / ring_ranks(case))
        for case in (of, bigger)
    )
    work = 2.0 if knob == "mbs" else 4.0
    np.testing.assert_allclose(attention, work * once / twice)
    assert_never_less(twice, once)
    assert np.any(once < twice) == (knob == "s")  # longer sequences are worked on more efficiently


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_gemm_is_never_above_its_roofs(m: int, n: int, k: int, narrow: bool) -> None:
    of = with_constants(dense(), fp8_efficiency=1.0)
    m, n, k = 128 * m, 128 * n, 64 * k
    peak = of.machine.peak_flops_per_s if narrow else of.machine.bf16_flops_per_s
    seconds = gemm_s(m, n, k, of, narrow=narrow)
    assert_never_less(seconds, 2.0 * m * n * k / peak)
    assert_never_less(seconds, 2.0 * m * n / of.machine.memory_bandwidth_bytes_per_s)
    assert_never_less(gemm_s(2 * m, n, k, of, narrow=narrow), seconds)
    assert_never_less(gemm_s(m, n, 2 * k, of, narrow=narrow), seconds)


def test_large_gemms_are_more_efficient_than_small_ones() -> None:
    of = dense()
    sizes = 128.0 * 2.0 ** np.arange(8)
    per_flop = [gemm_s(m, 4096.0, 4096.0, of) / m for m in sizes]
    for small, large in itertools.pairwise(per_flop):
        assert_never_less(small, large)
    assert np.all(per_flop[-1] < 0.8 * per_flop[0])


@pytest.mark.parametrize("model", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("seq", [2048, 8192])
def test_a_perfect_gpu_still_does_the_model_s_flops(model: object, seq: int) -> None:
    """All ranks together, over all layers and the head, at the peak: no less than 6 N D."""
    of = case(["tp1 pp1 mbs1", "tp4 pp1 mbs2 sp", "tp2 cp2 mbs1"], model=model, seq=seq)  # type: ignore[arg-type]
    of = with_constants(of, **PERFECT)
    m, k = of.model, of.knobs
    dense_s, head_s = dense_layer(of), head(of)
    total = (m.L - m.L_moe) * (dense_s.forward_s + dense_s.backward_s)
    if m.L_moe:
        moe_s = moe_layer(of)
        total = total + m.L_moe * (moe_s.forward_s + moe_s.backward_s)
    total = total + head_s.forward_s + head_s.backward_s
    at_peak = flops_per_token(m) * k.mbs * m.s / of.machine.bf16_flops_per_s
    assert_never_less(total * k.tp * k.cp, at_peak)
    assert np.all(total * k.tp * k.cp < 3 * at_peak)


@pytest.mark.parametrize("split", ["tp", "cp"])
def test_splitting_a_layer_never_makes_a_rank_slower(split: str) -> None:
    of = case([f"{split}{n} mbs1 sp" for n in (1, 2, 4, 8)])
    forward = dense_layer(of).forward_s
    assert np.all(np.diff(forward) < 0)
    assert_never_less(forward * np.array([1, 2, 4, 8]), forward[0])


def test_flash_attention_is_never_slower_than_unfused() -> None:
    for seq in (512, 2048, 16384):
        fused, plain = (case(seq=seq, flash_attention=flag) for flag in (1.0, 0.0))
        for a, b in zip(attention_core_s(plain), attention_core_s(fused), strict=True):
            assert_never_less(a, b)
            assert np.all(a > b)


def test_a_sliding_window_saves_attention_and_nothing_else() -> None:
    of = case(seq=8192)
    windowed = replace(of, model=replace(of.model, window=1024.0, window_fraction=0.5))
    whole, less = dense_layer(of), dense_layer(windowed)
    np.testing.assert_allclose(kernels_s(windowed) / kernels_s(of), 0.625)
    np.testing.assert_allclose(less.gemm_forward_s, whole.gemm_forward_s)
    covering = replace(of, model=replace(of.model, window=1e9, window_fraction=1.0))
    np.testing.assert_allclose(dense_layer(covering).attention_forward_s, whole.attention_forward_s)


def test_fp8_speeds_gemms_up_and_leaves_attention_and_head() -> None:
    half, eight = case(["tp2 mbs2 sp"]), case(["tp2 mbs2 sp prec=fp8"])
    a, b = dense_layer(half), dense_layer(eight)
    assert np.all(b.gemm_forward_s < 0.75 * a.gemm_forward_s)
    np.testing.assert_allclose(b.attention_forward_s, a.attention_forward_s)
    np.testing.assert_allclose(head(eight).gemm_forward_s, head(half).gemm_forward_s)


def test_sequence_parallelism_shares_norms() -> None:
    with_sp, without = case(["tp8 mbs1 sp"]), case(["tp8 mbs1"])
    assert sequence_shards(with_sp).tolist() == [8]
    assert sequence_shards(without).tolist() == [1]
    assert dense_layer(with_sp).memory_forward_s < dense_layer(without).memory_forward_s
    np.testing.assert_allclose(
        dense_layer(with_sp).gemm_forward_s, dense_layer(without).gemm_forward_s
    )


def test_experts_split_over_ranks_keep_the_work_of_a_rank() -> None:
    """Every rank works on its tokens' share: more expert ranks, fewer and fuller experts."""
    of = case([f"tp1 pp1 ep{n} mbs2" for n in (1, 2, 4, 8)], model=MOE, seq=8192)
    gemm = moe_layer(of).gemm_forward_s
    assert np.all(np.diff(gemm) <= gemm[0] * 1e-9)
    assert np.all(gemm > 0.5 * gemm[0])


@given(st.integers(1, 300_000), st.sampled_from([1, 2, 4, 8, 16]))
@settings(deadline=None)
def test_padded_vocabulary(vocabulary: int, tp: int) -> None:
    of = case([f"tp{tp} mbs1"])
    padded = padded_vocabulary(replace(of, model=replace(of.model, V=float(vocabulary))))[0]
    assert padded % (128 * tp) == 0
    assert vocabulary <= padded < vocabulary + 128 * tp


def test_tokens_of_a_rank() -> None:
    assert tokens(case(["cp4 mbs2", "mbs1"], seq=4096)).tolist() == [2048, 4096]


def test_rows_do_not_know_each_other() -> None:
    of = dense()
    index = np.random.default_rng(3).permutation(of.knobs.size)
    for name in PARTS:
        whole = columns_of(dense_layer(of), of.knobs.size)[name]
        moved = columns_of(dense_layer(taken(of, index)), of.knobs.size)[name]
        np.testing.assert_array_equal(moved, whole[index], err_msg=name)


def test_torch_s_softmax_stands_in_where_heads_times_sequences_are_no_multiple_of_4() -> None:
    of = case(["tp4 pp1 mbs1", "tp4 pp1 mbs2", "tp8 pp1 mbs1", "tp8 pp1 mbs4"])
    unfused = replace(of, traits=replace(of.traits, flash_attention=0.0))
    heads = of.model.a / of.knobs.tp * of.knobs.mbs
    assert np.array_equal(torch_softmax(unfused), np.mod(heads, 4) != 0)
    assert not torch_softmax(of).any()


def test_a_longer_ramp_slows_small_experts_most_and_nothing_else() -> None:
    words, slow = ["tp1 pp1 ep8 mbs1", "tp1 pp1 ep8 mbs8"], {"expert_ramp_waves": 4.0}
    moe, dense_ = case(words, model=MOE), case(["tp1 pp1 mbs1"])
    quick_s = moe_layer(with_constants(moe, expert_ramp_waves=0.0)).gemm_forward_s
    slow_s = moe_layer(with_constants(moe, **slow)).gemm_forward_s
    few, many = slow_s / quick_s
    assert few > many > 1.0
    before = dense_layer(with_constants(dense_, expert_ramp_waves=0.0)).gemm_forward_s
    assert np.all(dense_layer(with_constants(dense_, **slow)).gemm_forward_s == before)
