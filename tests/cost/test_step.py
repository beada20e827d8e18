"""The step: parts that sum, parts that vanish, and what can never make it faster."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from cases import (
    DENSE,
    DENSE_LAYOUTS,
    MOE,
    MOE_LAYOUTS,
    assert_never_less,
    case,
    columns_of,
    dense,
    moe,
    scalar,
    taken,
    with_constants,
    with_knobs,
    with_machine,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoparallel import catalog
from autoparallel.cost.case import Case
from autoparallel.cost.layer import fsdp_s, layer_time
from autoparallel.cost.step import (
    StepTime,
    gradient_s,
    interval_s,
    part_shares,
    running,
    step_time,
)
from autoparallel.cost.unique import per_combination
from autoparallel.model import Model, flops_per_token
from autoparallel.operators import operators_for
from autoparallel.profiles import Spread

PARTS = tuple(f.name for f in fields(StepTime))
CASES = {"dense": dense(), "moe": moe()}
BOTH = pytest.mark.parametrize("of", CASES.values(), ids=CASES)
PERFECT = {
    "gemm_efficiency": 1.0,
    "gemm_ramp_waves": 0.0,
    "fp8_efficiency": 1.0,
    "attention_efficiency": 1.0,
    "expert_ramp_waves": 0.0,
    "expert_imbalance": 1.0,
}


def seconds(of: Case) -> NDArray[np.float64]:
    return np.broadcast_to(np.asarray(step_time(of).iteration_s, dtype=float), (of.knobs.size,))


def parts(of: Case) -> dict[str, NDArray[np.float64]]:
    return columns_of(step_time(of), of.knobs.size)


def longer(of: Case, factor: float = 2.0) -> Case:
    return replace(of, model=replace(of.model, s=of.model.s * factor))


# ---- parts and columns ---------------------------------------------------------------------------


@BOTH
def test_parts_are_finite_and_sum_to_the_step(of: Case) -> None:
    found = parts(of)
    for name, column in found.items():
        assert np.isfinite(column).all(), name
        assert (column >= -1e-12 * seconds(of)).all(), name
    np.testing.assert_allclose(sum(found.values()), seconds(of), rtol=1e-12)
    np.testing.assert_allclose(sum(part_shares(step_time(of)).values()), 1.0, rtol=1e-12)


@BOTH
def test_a_scalar_layout_gives_the_number_of_its_column(of: Case) -> None:
    columns = parts(of)
    for row in range(of.knobs.size):
        one = step_time(scalar(of, row))
        for name in PARTS:
            value = getattr(one, name)
            assert np.size(value) == 1, name
            np.testing.assert_allclose(value, columns[name][row], rtol=1e-12, err_msg=name)


@BOTH
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_rows_can_be_permuted_and_repeated(of: Case, random: object) -> None:
    index = np.array(random.choices(range(of.knobs.size), k=of.knobs.size + 5))  # type: ignore[attr-defined]
    columns = parts(of)
    for name, column in parts(taken(of, index)).items():
        np.testing.assert_allclose(column, columns[name][index], rtol=1e-12, err_msg=name)


@BOTH
@pytest.mark.parametrize(
    "bad",
    [
        {"tp": 4096.0},
        {"mbs": 1e6},
        {"pp": 7.0},
        {"vpp": 500.0},
        {"cp": 3.0},
        {"global_batch_size": 1.0},
        {"ep": 999.0},
    ],
    ids=lambda b: next(iter(b)),
)
def test_a_bad_row_harms_no_other(of: Case, bad: dict[str, float]) -> None:
    name, value = next(iter(bad.items()))
    column = np.array(getattr(of.knobs, name), dtype=float)
    column[0] = value
    good, mixed = parts(of), parts(with_knobs(of, **{name: column}))
    for part in PARTS:
        np.testing.assert_allclose(mixed[part][1:], good[part][1:], rtol=1e-12, err_msg=part)


@BOTH
def test_working_on_distinct_rows_only_changes_nothing(of: Case) -> None:
    """A thousand rows, few of them distinct: gathered or computed one by one, the same numbers."""
    index = np.random.default_rng(5).integers(0, of.knobs.size, 1500)
    many, direct = taken(of, index), parts(of)
    shared = columns_of(per_combination(step_time)(many), many.knobs.size)
    for name in PARTS:
        np.testing.assert_allclose(shared[name], direct[name][index], rtol=1e-12, err_msg=name)


def test_every_row_reads_the_tables_of_its_own_gpu() -> None:
    folder = catalog.data_dir() / "profiles" / "operators"
    tables = tuple(
        operators_for(gpu, generation, folder)
        for gpu, generation in (("h100-sxm-80gb", "hopper"), ("a100-sxm-80gb", "ampere"))
    )
    of = case(["tp8 mbs1 sp"] * 4)
    mixed = replace(of, operators=tables, gpu_index=np.array([0.0, 1.0, 1.0, 0.0]))
    alone = [seconds(replace(of, operators=(table,)))[0] for table in tables]
    assert alone[0] != alone[1]
    np.testing.assert_allclose(seconds(mixed), [alone[0], alone[1], alone[1], alone[0]])


@pytest.mark.parametrize("model", [None, MOE], ids=["dense", "moe"])
def test_without_a_pipeline_a_step_is_its_layers_over_and_over(model: Model | None) -> None:
    texts = ["tp8 mbs1 sp", "tp2 cp4 mbs2 recompute=full", "tp4 ep8 mbs1 sp zero1", "mbs1"]
    of = with_constants(case(texts, model=model or DENSE), straggling=0.0)
    step, layer = parts(of), layer_time(of)
    times = of.model.L * of.knobs.micro_batches
    for name in ("recompute_s", "tp_comm_s", "cp_comm_s", "ep_comm_s", "launch_s"):
        np.testing.assert_allclose(step[name], times * getattr(layer, name), err_msg=name)
    assert np.all(step["compute_s"] > times * layer.compute_s)


# ---- parts that vanish ---------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("part", "size"),
    [
        ("tp_comm_s", lambda k: k.tp),
        ("cp_comm_s", lambda k: k.cp),
        ("ep_comm_s", lambda k: k.ep),
        ("pp_comm_s", lambda k: k.pp),
        ("bubble_s", lambda k: k.pp),
        ("dp_comm_s", lambda k: k.dp * k.cp),
    ],
)
def test_one_rank_causes_no_traffic(
    of: Case, part: str, size: Callable[[object], NDArray[np.float64]]
) -> None:
    few = size(of.knobs) <= 1
    column = parts(of)[part]
    assert np.all(column[few] == 0)
    if part != "ep_comm_s" or of is CASES["moe"]:
        assert np.all(column[~few] > 0)


def test_without_replicas_nothing_is_reduced() -> None:
    of = case(["tp8 pp8 mbs1 zero1", "tp8 pp8 mbs1 zero3", "tp8 pp8 mbs1 zero0"])
    assert parts(of)["dp_comm_s"].tolist() == [0, 0, 0]


@BOTH
def test_every_doubling_of_nodes_makes_micro_batches_as_much_slower(of: Case) -> None:
    nodes = of.knobs.num_gpus / of.machine.domain_gpus
    alike, unlike = (running(with_constants(of, straggling=x)) for x in (0.0, 0.01))
    slower = np.asarray(unlike.total_s) / np.asarray(alike.total_s)
    np.testing.assert_allclose(slower, 1 + 0.01 * np.log2(nodes), rtol=1e-9)
    assert np.all(slower > 1)


def test_one_node_waits_for_no_other() -> None:
    of = case(["tp8 pp1 mbs1", "tp1 pp4 mbs1"], gpus=8)
    alike, unlike = (running(with_constants(of, straggling=x)) for x in (0.0, 0.01))
    np.testing.assert_array_equal(alike.total_s, unlike.total_s)


@BOTH
def test_nothing_is_recomputed_unless_asked(of: Case) -> None:
    column = parts(of)["recompute_s"]
    assert np.all((column > 0) == (of.knobs.granularity > 0))


def test_one_gpu_only_works() -> None:
    found = parts(case(["tp1 pp1 mbs1"], gpus=1, batch=8))
    busy = {name for name, column in found.items() if column[0] > 0}
    assert busy <= {"compute_s", "optimizer_s", "launch_s"}
    assert {"compute_s", "optimizer_s"} <= busy


# ---- what can never be faster, or slower ---------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "better",
    [
        {"intra_bytes_per_s": 2.0},
        {"inter_bytes_per_s": 2.0},
        {"intra_bytes_per_s": 1.1, "inter_bytes_per_s": 1.1},
        {"memory_bandwidth_bytes_per_s": 2.0},
        {"peak_flops_per_s": 2.0, "bf16_flops_per_s": 2.0},
        {"intra_latency_s": 0.0},
        {"inter_latency_s": 0.0},
    ],
    ids=lambda b: "+".join(b),
)
def test_a_better_machine_is_never_slower(of: Case, better: dict[str, float]) -> None:
    assert_never_less(seconds(of), seconds(with_machine(of, **better)))


@BOTH
@pytest.mark.parametrize(
    "name", ["intra_bytes_per_s", "inter_bytes_per_s", "memory_bandwidth_bytes_per_s"]
)
def test_every_kind_of_bandwidth_matters_somewhere(of: Case, name: str) -> None:
    assert np.any(seconds(with_machine(of, **{name: 2.0})) < (1 - 1e-6) * seconds(of))


@BOTH
@pytest.mark.parametrize("worse", ["intra_latency_s", "inter_latency_s"])
def test_a_higher_latency_is_never_faster(of: Case, worse: str) -> None:
    assert_never_less(seconds(with_machine(of, **{worse: 20.0})), seconds(of))


@BOTH
@pytest.mark.parametrize("factor", [2, 3, 16])
def test_a_larger_batch_is_never_faster_nor_less_efficient(of: Case, factor: int) -> None:
    more = with_knobs(of, global_batch_size=of.knobs.global_batch_size * factor)
    assert_never_less(seconds(more), seconds(of))
    assert_never_less(factor * seconds(of), seconds(more))


@BOTH
def test_longer_sequences_are_never_faster(of: Case) -> None:
    times = [seconds(longer(of, factor)) for factor in (1.0, 2.0, 4.0, 8.0)]
    for short, long in itertools.pairwise(times):
        assert np.all(long > short)


@BOTH
def test_more_recomputation_is_never_faster(of: Case) -> None:
    """None, attention only, MLP too, everything."""
    few = with_knobs(of, method=0.0, recompute_layers=0.0, modules=0.0)
    none = with_knobs(few, granularity=0.0)
    attention = with_knobs(few, granularity=1.0, modules=1.0)
    mlp = with_knobs(few, granularity=1.0, modules=1.0 + 8.0)
    full = with_knobs(few, granularity=2.0, recompute_layers=1.0)
    for less, more in ((none, attention), (attention, mlp), (mlp, full)):
        assert_never_less(seconds(more), seconds(less))
    unhidden = of.knobs.zero < 3
    assert np.all(seconds(full)[unhidden] > 1.1 * seconds(none)[unhidden])
    assert np.all(seconds(full) > seconds(none))


def test_recomputing_more_layers_is_never_faster() -> None:
    texts = [f"tp2 pp4 mbs1 sp recompute=full/block/{n}" for n in range(1, 7)]
    times = seconds(case([*texts, "tp2 pp4 mbs1 sp recompute=full/uniform/1"]))
    assert np.all(np.diff(times[:6]) > 0)
    np.testing.assert_allclose(times[5], times[6])


def test_fp8_is_never_slower_on_hopper() -> None:
    """Layers wide enough for the arithmetic to matter; narrow ones pay for casting."""
    model = catalog.model("llama-3.1-405b")
    texts = ["tp8 pp8 mbs1 sp", "tp4 pp16 mbs1 sp", "tp8 pp2 cp4 mbs2 sp recompute=full"]
    half = case(texts, model=model, seq=8192)
    eight = case([f"{text} prec=fp8" for text in texts], model=model, seq=8192)
    assert_never_less(seconds(half), seconds(eight))
    assert np.all(seconds(eight) < 0.85 * seconds(half))


def test_flash_attention_is_never_slower() -> None:
    for layouts, model in ((DENSE_LAYOUTS, None), (MOE_LAYOUTS, MOE)):
        more = {"model": model} if model else {}
        plain, fused = (case(layouts, **more, flash_attention=f) for f in (0.0, 1.0))  # type: ignore[arg-type]
        assert_never_less(seconds(plain), seconds(fused))


def test_fully_sharded_weights_move_more_than_gradients_alone() -> None:
    """ZeRO-3 gathers weights twice a micro-batch; ZeRO-1 reduces and gathers once a step."""
    texts = ["tp1 mbs1", "tp2 mbs2 sp", "tp8 mbs1 sp"]
    once = case([f"{t} zero1" for t in texts])
    always = case([f"{t} zero3" for t in texts])
    layers, m = always.model.L, always.knobs.micro_batches
    assert_never_less(fsdp_s(always) * layers * m, gradient_s(once))
    assert np.all(np.asarray(fsdp_s(once)) == 0)
    assert np.all(np.asarray(gradient_s(always)) == 0)
    more = with_constants(always, gather_exposed=0.5), with_constants(once, shard_exposed=0.5)
    assert_never_less(parts(more[0])["dp_comm_s"], parts(more[1])["dp_comm_s"])


def test_gradients_of_half_the_width_cost_less() -> None:
    wide, narrow = (case(["tp1 mbs1 zero1", "tp1 mbs1 zero3"], batch=64) for _ in range(2))
    narrow = with_knobs(narrow, grad_bytes=2.0)
    assert np.all(parts(narrow)["dp_comm_s"] < parts(wide)["dp_comm_s"])


def test_interleaving_shrinks_the_bubble_and_adds_traffic() -> None:
    found = parts(case(["tp8 pp8 mbs1 sp", "tp8 pp8 vpp3 mbs1 sp"], batch=64))
    assert found["bubble_s"][1] < 0.5 * found["bubble_s"][0]
    assert found["pp_comm_s"][1] > found["pp_comm_s"][0]


def test_the_bubble_s_share_falls_with_micro_batches() -> None:
    of = case(["tp8 pp8 mbs1 sp"] * 3, batch=[8, 64, 512])
    share = parts(of)["bubble_s"] / seconds(of)
    assert np.all(np.diff(share) < 0)
    assert share[0] > 0.3
    assert share[2] < 0.03


@BOTH
def test_perfect_hardware_still_does_the_model_s_flops(of: Case) -> None:
    """Compute seconds times all GPUs, at the peak, hold at least 6 N D."""
    bf16 = with_knobs(of, precision=0.0)
    bf16 = replace(bf16, machine=replace(of.machine, peak_flops_per_s=of.machine.bf16_flops_per_s))
    k, m = bf16.knobs, bf16.model
    step = parts(with_constants(bf16, **PERFECT))
    work = flops_per_token(m) * k.global_batch_size * m.s
    assert_never_less(step["compute_s"] * k.num_gpus * bf16.machine.bf16_flops_per_s, work)


@BOTH
def test_less_efficient_constants_are_never_faster(of: Case) -> None:
    for name in ("gemm_efficiency", "attention_efficiency", "intra_bandwidth", "inter_bandwidth"):
        worse = with_constants(of, **{name: getattr(of.constants, name) * 0.8})
        assert_never_less(seconds(worse), seconds(of))
    for name in (
        "memory_traffic",
        "launch_s_per_layer",
        "step_overhead_s",
        "tp_exposed",
        "dp_exposed",
        "shard_exposed",
        "cp_exposed",
        "ep_exposed",
        "bubble",
        "collective_latency_s",
        "hop_latency_s",
        "expert_imbalance",
    ):
        worse = with_constants(of, **{name: getattr(of.constants, name) * 1.5})
        assert_never_less(seconds(worse), seconds(of))


# ---- intervals and the smooth maximum ------------------------------------------------------------


@BOTH
@given(st.floats(0.0, 0.4), st.floats(0.0, 0.4), st.floats(0.001, 0.2))
@settings(max_examples=20, deadline=None)
def test_intervals_hold_the_estimate_and_widen(
    of: Case, compute: float, communication: float, layout: float
) -> None:
    step = step_time(of)
    narrow = Spread(compute=compute, communication=communication, layout=layout)
    wide = Spread(compute=compute * 2, communication=communication * 2, layout=layout * 2)
    low, high = interval_s(step, narrow)
    lower, higher = interval_s(step, wide)
    assert np.all(low < step.iteration_s)
    assert np.all(step.iteration_s < high)
    assert_never_less(low, lower)
    assert_never_less(higher, high)
    np.testing.assert_allclose(low * high, np.asarray(step.iteration_s) ** 2)


def test_an_interval_of_one_kind_of_error_is_its_normal_quantile() -> None:
    step = StepTime(**dict.fromkeys(PARTS, 0.0) | {"compute_s": 2.0})
    low, high = interval_s(step, Spread(compute=0.1, layout=0.0))
    np.testing.assert_allclose((low, high), (2 * np.exp(-0.1645), 2 * np.exp(0.1645)))
