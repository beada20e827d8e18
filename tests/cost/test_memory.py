"""Memory of a rank: laws, published formulas and figures, and measured peaks."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.constants import Constants, MemoryConstants
from autoparallel.cost.activations import layer_activations, saved_layer_bytes
from autoparallel.cost.case import Case
from autoparallel.cost.memory import (
    PARTS,
    STAGES,
    Memory,
    fits_probability,
    memory,
    memory_of_stage,
    peak,
)
from autoparallel.cost.memory_buffers import logits_bytes
from autoparallel.cost.memory_states import static_bytes
from autoparallel.cost.partition import RankParameters, rank_parameters
from autoparallel.framework import Traits
from autoparallel.hardware import Machine
from autoparallel.layout import Layout, knobs
from autoparallel.model import Shape
from autoparallel.units import GIB

MACHINE = Machine(
    peak_flops_per_s=1e15,
    bf16_flops_per_s=1e15,
    memory_bandwidth_bytes_per_s=3e12,
    memory_bytes=80 * GIB,
    sms=132.0,
    domain_gpus=8.0,
    node_gpus=8.0,
    intra_bytes_per_s=450e9,
    intra_latency_s=1e-6,
    inter_bytes_per_s=50e9,
    inter_latency_s=5e-6,
)
LLAMA_8B = Shape(
    s=8192.0, L=32.0, h=4096.0, a=32.0, g=8.0, d_qk=128.0, d_v=128.0, f=14336.0, k=3.0, V=128256.0
)
MOE = replace(LLAMA_8B, s=4096.0, E=8.0, K=2.0, f_e=14336.0, L_moe=32.0)
MLA = replace(LLAMA_8B, g=32.0, d_qk=192.0, r_q=1536.0, r_kv=512.0, d_rope=64.0)


def gpt(L: float, h: float, a: float, s: float = 2048.0, V: float = 51200.0) -> Shape:
    """A GPT-3 of arXiv 2205.05198: multi-head attention, plain MLP of 4 h, biases and dropout."""
    d = h / a
    return Shape(
        s=s, L=L, h=h, a=a, g=a, d_qk=d, d_v=d, f=4 * h, k=2.0, V=V, tied=1.0, norm=2.0, bias=1.0
    )


def case(
    layout: str, model: Shape = LLAMA_8B, gpus: int = 64, batch: int = 256, **traits: float
) -> Case:
    return Case(
        model=model,
        machine=MACHINE,
        knobs=knobs([Layout.parse(layout)], [gpus], [batch]),
        traits=Traits(**traits),
        constants=Constants(),
        operators=(),
    )


def total(layout: str, model: Shape = LLAMA_8B, **options: float) -> float:
    return float(np.ravel(memory(case(layout, model, **options)).total_bytes)[0])  # type: ignore[arg-type]


def part(name: str, layout: str, model: Shape = LLAMA_8B, **options: float) -> float:
    return float(np.ravel(getattr(memory(case(layout, model, **options)), name))[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layout", ["tp1 pp1 mbs1 zero1", "tp4 pp4 mbs2 sp zero0", "tp1 pp1 mbs1 zero3"]
)
@pytest.mark.parametrize("model", [LLAMA_8B, MOE, MLA, gpt(48, 6144, 64)])
def test_parts_sum_and_are_not_negative(layout: str, model: Shape) -> None:
    found = memory(case(layout, model))
    parts = [np.ravel(getattr(found, name))[0] for name in PARTS]
    assert all(np.isfinite(p) and p >= 0 for p in parts)
    assert np.ravel(found.total_bytes)[0] == pytest.approx(sum(parts))
    outside = sum(parts[-3:])
    assert np.ravel(found.allocated_bytes)[0] == pytest.approx(sum(parts) - outside)
    assert np.all(found.allocated_bytes <= found.reserved_bytes)


def test_fullest_stage_is_the_maximum() -> None:
    a_case = case("tp2 pp4 mbs1 sp zero1")
    stages = [float(np.ravel(memory_of_stage(a_case, s).total_bytes)[0]) for s in STAGES]
    assert total("tp2 pp4 mbs1 sp zero1") == pytest.approx(max(stages))


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("tp2 pp1 mbs1 zero1", "tp1 pp1 mbs1 zero1"),
        ("tp8 pp1 mbs1 zero1", "tp4 pp1 mbs1 zero1"),
        ("tp1 pp2 mbs1 zero1", "tp1 pp1 mbs1 zero1"),
        ("tp1 pp8 mbs1 zero1", "tp1 pp4 mbs1 zero1"),
    ],
)
def test_weights_fall_with_tensor_and_pipeline_parallelism(less: str, more: str) -> None:
    assert part("weights_bytes", less) < part("weights_bytes", more)


def test_zero_stages_hold_less_and_less() -> None:
    static = [
        sum(
            part(name, f"tp1 pp1 mbs1 zero{stage}")
            for name in ("weights_bytes", "gradients_bytes", "optimizer_bytes")
        )
        for stage in range(4)
    ]
    assert static == sorted(static, reverse=True)
    assert static[3] < static[2] < static[1] < static[0]


def test_a_shard_group_holds_more_than_all_replicas() -> None:
    assert total("tp1 pp1 mbs1 zero3 shard=8") > total("tp1 pp1 mbs1 zero3")


def test_optimizer_offload_takes_its_share() -> None:
    whole = part("optimizer_bytes", "tp1 pp1 mbs1 zero1")
    assert part("optimizer_bytes", "tp1 pp1 mbs1 zero1 offload=opt0.25") == pytest.approx(
        0.75 * whole
    )


@pytest.mark.parametrize("model", [LLAMA_8B, MOE, MLA, gpt(48, 6144, 64)])
@pytest.mark.parametrize(
    "recompute",
    [
        "core_attn",
        "layernorm",
        "moe_act",
        "mlp",
        "moe",
        "shared_experts",
        "mla_up_proj",
        "core_attn+mlp+layernorm",
        "full/block/4",
        "full/uniform/1",
    ],
)
def test_recomputation_never_keeps_more(recompute: str, model: Shape) -> None:
    plain = case("tp2 pp2 mbs1 sp zero1", model, flash_attention=0.0)
    spared = case(f"tp2 pp2 mbs1 sp zero1 recompute={recompute}", model, flash_attention=0.0)
    assert np.all(saved_layer_bytes(spared) <= np.asarray(saved_layer_bytes(plain)) * (1 + 1e-12))


def test_more_recomputed_layers_keep_less() -> None:
    kept = [
        float(np.ravel(saved_layer_bytes(case(f"tp1 pp4 mbs1 zero1 recompute=full/block/{n}")))[0])
        for n in (1, 2, 4, 8)
    ]
    assert kept == sorted(kept, reverse=True)


def test_more_micro_batches_in_flight_never_hold_less() -> None:
    held = [total("tp1 pp8 mbs1 zero1", batch=8 * m) for m in (1, 2, 4, 8, 16)]
    assert held == sorted(held)
    assert held[-1] == held[-2]
    assert total("tp1 pp8 mbs1 zero1 sched=zb2p") > total("tp1 pp8 mbs1 zero1 sched=zb1p")


def test_sequence_parallelism_of_one_rank_changes_nothing() -> None:
    assert total("tp1 pp1 mbs1 sp zero1") == total("tp1 pp1 mbs1 zero1")
    assert total("tp4 pp1 mbs1 sp zero1") < total("tp4 pp1 mbs1 zero1")


def test_flash_attention_never_holds_more() -> None:
    assert total("tp2 pp1 mbs1 zero1") < total("tp2 pp1 mbs1 zero1", flash_attention=0.0)


def test_context_parallelism_divides_activations() -> None:
    whole = part("activations_bytes", "tp1 pp1 cp1 mbs1 zero1")
    assert part("activations_bytes", "tp1 pp1 cp4 mbs1 zero1") == pytest.approx(whole / 4)


def test_experts_are_split_over_expert_parallel_ranks() -> None:
    assert part("weights_bytes", "tp1 pp1 ep8 mbs1 zero1", MOE) < part(
        "weights_bytes", "tp1 pp1 ep1 mbs1 zero1", MOE
    )


@settings(max_examples=40, deadline=None)
@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.sampled_from([1, 2, 4]),
    mbs=st.sampled_from([1, 2]),
    zero=st.integers(0, 3),
    sp=st.booleans(),
    model=st.sampled_from([LLAMA_8B, MOE, MLA]),
)
def test_scalar_is_its_column_row(
    tp: int, pp: int, mbs: int, zero: int, sp: bool, model: Shape
) -> None:
    word = " sp" if sp else ""
    layouts = [
        f"tp{tp} pp{pp} mbs{mbs}{word} zero{zero}",
        "tp1 pp1 mbs1 zero1",
        "tp8 pp4 mbs2 sp zero1",
    ]
    table = knobs([Layout.parse(x) for x in layouts], [64] * 3, [256] * 3)
    together = memory(replace(case(layouts[0], model), knobs=table))
    for row, layout in enumerate(layouts):
        alone = memory(case(layout, model))
        for f in fields(Memory):
            column = np.broadcast_to(getattr(together, f.name), 3)
            assert column[row] == pytest.approx(np.ravel(getattr(alone, f.name))[0])


# --- published formulas -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "L", "h", "a", "t", "b"),
    [
        ("22B", 48, 6144, 64, 8, 4),
        ("175B", 96, 12288, 96, 8, 1),
        ("530B", 105, 20480, 128, 8, 1),
        ("1T", 128, 25600, 160, 8, 1),
    ],
)
def test_activations_of_korthikanti_2205_05198_table_2(
    name: str, L: int, h: int, a: int, t: int, b: int
) -> None:
    """Table 2 of arXiv 2205.05198, bytes a layer, for its four models (its Table 3)."""
    s, model = 2048, gpt(L, h, a)
    sbh, scores = s * b * h, 5 * a * s / h

    def kept(layout: str) -> float:
        return float(np.ravel(saved_layer_bytes(case(layout, model, 512, flash_attention=0.0)))[0])

    assert kept(f"tp1 pp1 mbs{b} zero0") == pytest.approx(sbh * (34 + scores), rel=1e-9)
    assert kept(f"tp{t} pp1 mbs{b} zero0") == pytest.approx(
        sbh * (10 + 24 / t + scores / t), rel=1e-9
    )
    assert kept(f"tp{t} pp1 mbs{b} sp zero0") == pytest.approx(sbh / t * (34 + scores), rel=1e-9)
    assert kept(f"tp{t} pp1 mbs{b} sp zero0 recompute=core_attn") == pytest.approx(
        sbh * 34 / t, rel=1e-9
    )
    assert kept(f"tp{t} pp1 mbs{b} zero0 recompute=full/uniform/1") == pytest.approx(2 * sbh)


def test_selective_recomputation_saves_what_2205_05198_says() -> None:
    """Section 5: core attention is 70 % of the activations of GPT-3 and 65 % of MT-NLG's."""
    for shape, saved in ((gpt(96, 12288, 96), 0.70), (gpt(105, 20480, 128), 0.65)):
        x = layer_activations(case("tp8 pp1 mbs1 sp zero0", shape, flash_attention=0.0))
        assert float(np.ravel(x.scores / x.total)[0]) == pytest.approx(saved, abs=0.01)


@pytest.mark.parametrize("d", [1, 2, 8, 64])
def test_bytes_a_parameter_of_megatron_theoretical_memory(d: int) -> None:
    """NVIDIA/Megatron-LM theoretical_memory_usage.py: 18, and 6 + 12/d when distributed."""
    one = RankParameters(dense=1.0, expert=0.0)
    plain = static_bytes(case("tp1 pp1 mbs1 zero0", gpus=d), one)
    sharded = static_bytes(case("tp1 pp1 mbs1 zero1", gpus=d), one)
    assert float(np.ravel(sum(plain))[0]) == pytest.approx(18)
    assert float(np.ravel(sum(sharded))[0]) == pytest.approx(6 + 12 / d)
    half = static_bytes(case("tp1 pp1 mbs1 zero1 grad=bf16", gpus=d), one)
    assert float(np.ravel(sum(half))[0]) == pytest.approx(4 + 12 / d)


def test_zero_stages_of_1910_02054() -> None:
    """Figure 1: 7.5B parameters on 64 GPUs take 120, 31.4, 16.6 and 1.9 GB."""
    one = RankParameters(dense=7.5e9, expert=0.0)
    for stage, gigabytes in enumerate((120.0, 31.4, 16.6, 1.9)):
        found = static_bytes(case(f"tp1 pp1 mbs1 zero{stage} grad=bf16"), one)
        assert float(np.ravel(sum(found))[0]) / 1e9 == pytest.approx(gigabytes, abs=0.05)


# --- measured peaks -----------------------------------------------------------------------------

LLAMA_70B_SLICE = Shape(
    s=4096.0, L=12.0, h=8192.0, a=64.0, g=8.0, d_qk=128.0, d_v=128.0, f=28672.0, k=3.0, V=128256.0
)


@pytest.mark.parametrize(
    ("layout", "batch", "gib"),
    [
        ("tp1 pp2 mbs1 zero1", 16, 66.55),
        ("tp2 pp1 mbs1 sp zero1", 16, 60.68),
        ("tp4 pp1 mbs1 sp zero1", 8, 39.07),
        ("tp8 pp1 mbs1 sp zero1", 4, 28.29),
    ],
)
def test_allocated_peak_of_llama_70b_slices_on_b200(layout: str, batch: int, gib: float) -> None:
    """12 layers on 8 B200, `max_memory_allocated`: MooreThreads/SimuMax, Megatron-LM runs."""
    found = memory(case(layout, LLAMA_70B_SLICE, gpus=8, batch=batch)).allocated_bytes
    assert float(np.ravel(found)[0]) / GIB == pytest.approx(gib, rel=0.03)


# --- does it fit --------------------------------------------------------------------------------


def test_fits_probability_is_a_half_at_capacity_and_falls_with_memory() -> None:
    constants = MemoryConstants()
    held = memory(case("tp4 pp1 mbs1 sp zero1"))
    at = float(np.ravel(fits_probability(held, held.total_bytes, constants))[0])
    assert at == pytest.approx(0.5)
    roomy = [
        float(np.ravel(fits_probability(held, g * GIB, constants))[0]) for g in range(10, 200, 5)
    ]
    assert roomy == sorted(roomy)
    assert roomy[0] < 0.01
    assert roomy[-1] > 0.99
    wide = replace(constants, error_sigma=0.3)
    near = held.total_bytes * 1.1
    assert np.all(fits_probability(held, near, wide) < fits_probability(held, near, constants))


def test_parameters_gathered_in_fp8_leave_no_half_precision_weight() -> None:
    sharded, whole = "tp2 pp1 mbs1 sp zero1 prec=fp8", "tp2 pp1 mbs1 sp zero0 prec=fp8"

    def weights(layout: str, copies: float) -> float:
        return float(np.ravel(memory(case(layout, fp8_weight_bytes=copies)).weights_bytes)[0])

    assert weights(sharded, 2.0) == 2 * weights(sharded, 0.0)
    assert weights(whole, 2.0) == weights(whole, 0.0)


def test_without_dropout_no_masks_are_kept() -> None:
    model = gpt(24.0, 2048.0, 16.0)
    assert np.all(layer_activations(case("tp1 pp1 mbs1", model)).masks > 0)
    assert np.all(layer_activations(case("tp1 pp1 mbs1", model, dropout=0.0)).masks == 0)


# --- what a framework keeps ---------------------------------------------------------------------


def kept(layout: str, model: Shape = LLAMA_8B, **traits: float) -> float:
    return float(np.ravel(layer_activations(case(layout, model, **traits)).total)[0])


def test_plain_torch_keeps_the_activated_gate_and_the_packed_keys_and_values() -> None:
    """nanotron's layer: 20 h + 8 f bytes a token, four more than h and one more f than fused."""
    model = replace(LLAMA_8B, g=32.0)
    tokens = 8192.0 / 4
    layout = "tp4 pp1 mbs1 sp zero0"
    assert kept(layout, model) == pytest.approx(tokens * (16 * model.h + 6 * model.f))
    plain = kept(layout, model, stores_gate=1.0, packed_qkv=1.0)
    assert plain == pytest.approx(tokens * (20 * model.h + 8 * model.f))
    grouped = kept(layout, stores_gate=1.0, packed_qkv=1.0)
    assert grouped == pytest.approx(kept(layout, stores_gate=1.0))


def test_residual_copies_are_shared_by_sequence_parallel_ranks_only() -> None:
    size = 2 * 8192.0 * LLAMA_8B.h
    for layout, ranks in (("tp4 pp1 mbs1 zero0", 1), ("tp4 pp1 mbs1 sp zero0", 4)):
        plain = case(layout)
        copied = replace(plain, memory=replace(plain.memory, residual_copies=3.0))
        more = layer_activations(copied).total - layer_activations(plain).total
        assert np.ravel(more)[0] == pytest.approx(3 * size / ranks)


def test_an_unfused_rms_norm_keeps_more_than_an_unfused_layer_norm() -> None:
    rms, layer = LLAMA_8B, replace(LLAMA_8B, norm=2.0)
    extra = [kept("tp1", m, fused_kernels=0.0) - kept("tp1", m) for m in (rms, layer)]
    assert extra[0] - extra[1] == pytest.approx(4 * 2 * 8192.0 * LLAMA_8B.h)


@pytest.mark.parametrize(("tp", "copies"), [(1, 0), (2, 2), (8, 2)])
def test_joined_logits_are_whole_on_every_rank(tp: int, copies: int) -> None:
    one = float(np.ravel(logits_bytes(case("tp1 pp1 mbs1 zero1", logits_sharded=0.0)))[0])
    many = float(np.ravel(logits_bytes(case(f"tp{tp} pp1 mbs1 zero1", logits_sharded=0.0)))[0])
    padding = np.ceil(LLAMA_8B.V / (128 * tp)) * 128 * tp
    assert many - one == pytest.approx(
        (padding - LLAMA_8B.V) * 8192 * 6 + copies * 2 * 8192 * padding
    )


def test_gradients_copied_into_buckets_need_replicas() -> None:
    one = RankParameters(dense=1.0, expert=0.0)

    def gradients(gpus: int) -> float:
        found = static_bytes(case("tp1 pp1 mbs1 zero0", gpus=gpus, bucket_copy_bytes=2.0), one)
        return float(np.ravel(found[1])[0])

    assert gradients(1) == 4
    assert gradients(8) == 6


def test_sixteen_bit_remainders_replace_masters_in_bf16_alone() -> None:
    one = RankParameters(dense=1.0, expert=0.0)
    for precision, states in (("bf16", 10.0), ("fp8", 12.0)):
        a_case = case(f"tp1 pp1 mbs1 zero0 prec={precision}", remainders=1.0)
        assert float(np.ravel(static_bytes(a_case, one)[2])[0]) == states


def test_half_precision_gradients_count_where_activations_are_small() -> None:
    """They grow while the activations of their micro-batch are given up, and are gone after it."""

    def more(layout: str) -> float:
        return total(layout, half_gradient_bytes=2.0) - total(layout)

    halves = 2 * float(np.ravel(rank_parameters(case("tp1"), 32.0, 2.0).total)[0])
    assert more("tp1 pp1 mbs8 zero1") == 0
    assert 0 < more("tp1 pp1 mbs1 zero1 recompute=full/uniform/1") < 1.2 * halves


def holding(layout: str, gpus: int = 64, batch: int = 256, **traits: float) -> Memory:
    a_case = case(layout, gpus=gpus, batch=batch, **{"streams_hold": 1.0} | traits)
    return memory(replace(a_case, memory=MemoryConstants(held_tensors=40.0)))


def test_streams_hold_full_length_tensors_up_to_their_limit_and_give_them_back() -> None:
    tensor = 2 * 8192.0 * LLAMA_8B.h * 7 / 8
    found = holding("tp8 pp1 mbs1 sp zero1", gather_buffers=0.0)
    assert float(np.ravel(found.held_bytes)[0]) == pytest.approx(40 * tensor)
    assert float(np.ravel(holding("tp8 pp1 mbs1 sp zero1").held_bytes)[0]) == 0
    assert float(np.ravel(holding("tp8 pp1 mbs1 zero1", gather_buffers=0.0).held_bytes)[0]) == 0
    waited = holding("tp8 pp1 mbs1 sp zero1", gather_buffers=0.0, streams_hold=0.0)
    assert float(np.ravel(waited.held_bytes)[0]) == 0
    full = holding("tp8 pp1 mbs16 sp zero1", gather_buffers=0.0)
    assert float(np.ravel(full.held_bytes)[0]) == 0
    assert float(np.ravel(full.total_bytes)[0]) > 0.85 * MACHINE.memory_bytes
    alone = replace(found, held_bytes=0.0)
    chances = [fits_probability(m, 12 * GIB, MemoryConstants()) for m in (found, alone)]
    assert chances[0] == chances[1]


def test_a_row_holds_by_its_own_framework() -> None:
    waits = np.array([0.0, 1.0])
    a_case = case("tp8 pp1 mbs1 sp zero1", gather_buffers=0.0)
    a_case = replace(a_case, traits=replace(a_case.traits, streams_hold=waits))
    nothing, much = memory(a_case).held_bytes
    assert nothing == 0 < much


def test_forwards_in_a_row_hold_their_outputs_though_inputs_have_a_buffer() -> None:
    held = [
        float(np.ravel(holding(f"tp8 pp{p} mbs1 sp zero1", gpus=256).held_bytes)[0])
        for p in (1, 2, 4, 8)
    ]
    assert held[:2] == [0, 0]
    assert 0 < held[2] <= held[3]


def test_freed_scores_stay_cached_beside_the_logits_alone() -> None:
    scores = 8192.0**2 * LLAMA_8B.a / 2

    def cached(layout: str, **traits: float) -> float:
        found = memory_of_stage(case(layout, flash_attention=0.0, **traits), "first")
        at = replace(MemoryConstants(), fragmentation=0.0)
        alone = memory_of_stage(
            replace(case(layout, flash_attention=0.0, **traits), memory=at), "first"
        )
        assert np.all(found.fragmentation_bytes >= alone.fragmentation_bytes)
        return float(np.ravel(alone.fragmentation_bytes)[0])

    assert cached("tp2 pp1 mbs1 zero1") == pytest.approx(4 * scores)
    assert cached("tp2 pp1 mbs1 zero1", fused_kernels=0.0) == pytest.approx(8 * scores)
    assert cached("tp2 pp2 mbs1 zero1") == 0


def test_layer_of_deepseek_v3_by_tensor() -> None:
    """128 heads of 192 and 128, latents of 1536, 512 and 64, 8 of 256 experts of 2048."""
    dense = replace(LLAMA_8B, s=4096.0, L=61.0, h=7168.0, f=18432.0, V=129280.0)
    latent = replace(dense, a=128.0, g=128.0, d_qk=192.0, r_q=1536.0, r_kv=512.0, d_rope=64.0)
    model = replace(latent, E=256.0, K=8.0, f_e=2048.0, f_s=2048.0, L_moe=61.0)
    x = layer_activations(case("tp1 pp1 ep64 mbs1 zero1", model))
    arriving = 4096 * 8 * 1.1
    for tensor, size in (
        (x.qkv, 2 * 4096 * 128 * (192 + 192 + 128)),
        (x.latent, 2 * 2 * 4096 * (1536 + 512 + 64)),
        (x.attention_output, 2 * 4096 * 128 * 128),
        (x.expert_inner, 2 * arriving * 2 * 2048),
        (x.expert_activated, 2 * arriving * 2048),
        (x.expert_tokens, 2 * arriving * 7168 + 8 * 4096 * 256),
        (x.shared_inner, 2 * 4096 * 3 * 2048),
        (x.mlp_inner, 0),
    ):
        assert float(np.ravel(tensor)[0]) == pytest.approx(size)


@pytest.mark.parametrize("buffers", [0.0, 2.0])
@pytest.mark.parametrize("held", [0.0, 3.0, 40.0])
@pytest.mark.parametrize(
    "layout",
    [
        "tp1 pp1 mbs1 zero3",
        "tp2 pp2 mbs4 sp zero1 recompute=full/uniform/1",
        "tp4 pp4 vpp2 mbs2 sp zero2",
        "tp8 pp8 mbs8 sp zero1 offload=opt1",
    ],
)
def test_the_peak_is_the_memory_of_the_fullest_stage(
    layout: str, held: float, buffers: float
) -> None:
    a_case = case(layout, gather_buffers=buffers, streams_hold=1.0)
    a_case = replace(a_case, memory=MemoryConstants(held_tensors=held))
    used, found = memory(a_case), peak(a_case)
    for f in fields(found):
        np.testing.assert_allclose(getattr(found, f.name), getattr(used, f.name), rtol=1e-12)
    pp = int(np.max(a_case.knobs.pp))
    stages = [memory_of_stage(a_case, s) for s in (STAGES[:1], STAGES[::2], STAGES)[min(pp, 3) - 1]]
    assert float(np.max(used.total_bytes)) == max(float(np.max(s.total_bytes)) for s in stages)


def test_what_streams_hold_is_late_only_between_micro_batches_without_buffers() -> None:
    """Runs of one micro-batch fit that fail with two: what was gathered does not come back."""

    def late(gpus: int, buffers: float) -> float:
        traits = {"gather_buffers": buffers, "streams_hold": 1.0}
        a_case = case("tp4 pp1 mbs1 sp zero0", gpus=gpus, batch=16, **traits)
        a_case = replace(a_case, memory=MemoryConstants(held_tensors=40.0))
        return float(np.ravel(memory(a_case).late_bytes)[0])

    assert late(64, 0.0) == 0
    assert late(32, 0.0) == pytest.approx(40 * 2 * 8192 * LLAMA_8B.h * 3 / 4)
    assert late(32, 2.0) == 0


def test_what_is_late_is_no_part_of_the_total_but_of_what_must_fit() -> None:
    traits = {"gather_buffers": 0.0, "streams_hold": 1.0}
    a_case = case("tp4 pp1 mbs1 sp zero0", gpus=32, batch=16, **traits)
    constants = MemoryConstants(held_tensors=40.0)
    used = memory(replace(a_case, memory=constants))
    parts = [np.asarray(getattr(used, name)) for name in PARTS]
    assert np.sum(parts) == pytest.approx(float(np.ravel(used.total_bytes)[0]))
    capacity = float(np.ravel(used.needed_bytes + used.late_bytes + used.context_bytes)[0])
    assert np.ravel(fits_probability(used, capacity, constants))[0] == pytest.approx(0.5)


def test_the_logits_of_the_micro_batch_before_live_on_where_a_framework_keeps_them() -> None:
    def logits(batch: int, kept: float) -> float:
        a_case = case("tp4 pp1 mbs1 zero1", batch=batch, earlier_logits_copies=kept)
        return float(np.ravel(logits_bytes(a_case))[0])

    padded = np.ceil(LLAMA_8B.V / 512) * 512
    assert logits(16, 1.0) == logits(16, 0.0)
    assert logits(32, 1.0) - logits(32, 0.0) == pytest.approx(4 * 8192 * padded / 4)
