"""Enumeration: every combination is a candidate or counted under one rule, and nothing else."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoparallel.errors import ConfigError
from autoparallel.framework import Framework
from autoparallel.hardware import Cluster, Gpu, Link
from autoparallel.layout import KNOB_FIELDS, SCHEDULES, Layout, knobs
from autoparallel.model import Model
from autoparallel.rules import RULES, RuleCase, explain, limits, violations
from autoparallel.space import BLOCK_ROWS, Candidates, SpaceSpec, candidates

SPACES = Path(__file__).parents[1] / "search_spaces" / "space"
LINK = Link(bandwidth_bytes_per_s=1e11, latency_s=1e-6)
GPU = Gpu(
    name="gpu",
    generation="hopper",
    memory_bytes=8e10,
    memory_bandwidth_bytes_per_s=3e12,
    peak_flops_per_s={"bf16": 1e15, "fp16": 1e15, "fp8": 2e15},
    streaming_multiprocessors=132,
    tdp_w=700.0,
)
CLUSTER = Cluster(
    name="cluster", gpu=GPU, gpus_per_node=8, nvlink_domain_gpus=8, intra_link=LINK, inter_link=LINK
)
MEGATRON = Framework(
    name="megatron-core",
    constants="megatron",
    legal={"zero_stage": (0, 1, 3), "schedule": ("1f1b", "interleaved")},
)
ANY = Framework(name="any", constants="any")
DENSE = Model(
    name="dense",
    num_layers=14,
    hidden_size=1024,
    num_attention_heads=12,
    num_query_groups=4,
    ffn_hidden_size=4096,
    vocab_size=32000,
    kv_channels=64,
)
MOE = replace(
    DENSE,
    name="moe",
    num_moe_experts=6,
    moe_router_topk=2,
    moe_ffn_hidden_size=512,
    moe_first_dense_layers=1,
)


@dataclass(frozen=True)
class Job:
    num_gpus: int = 48
    global_batch_size: int = 96
    seq_length: int = 4096
    precision: str = "bf16"


def space_file(name):
    return SpaceSpec.from_mapping(yaml.safe_load((SPACES / f"{name}.yaml").read_text()))


def matrix(columns):
    return np.stack([getattr(columns, f.name) for f in KNOB_FIELDS], axis=1)


def case_of(columns, model, job, framework):
    return RuleCase(
        model=model.shape(job.seq_length), knobs=columns, limits=limits(CLUSTER, framework)
    )


MODELS = pytest.mark.parametrize("model", [DENSE, MOE], ids=["dense", "moe"])
FILES = pytest.mark.parametrize("name", ["default", "full", "nemo_2022"])
JOB = Job()


@FILES
@MODELS
def test_considered_is_legal_plus_pruned(name, model):
    walk = Candidates(space_file(name).execution_knobs(), model, CLUSTER, MEGATRON, JOB)
    legal = sum(block.size for block in walk)
    assert legal > 0
    assert walk.considered == legal + sum(walk.pruned.values())
    assert set(walk.pruned) <= {rule.id for rule in RULES}
    again = sum(block.size for block in walk)
    assert walk.considered == again + sum(walk.pruned.values())


@FILES
@MODELS
def test_every_candidate_is_legal_and_there_is_one_of_each(name, model):
    job = Job(num_gpus=8, global_batch_size=32)
    found = candidates(space_file(name).execution_knobs(), model, CLUSTER, MEGATRON, job)
    legal, _ = violations(case_of(found.knobs, model, job, MEGATRON))
    assert legal.all()
    rows = matrix(found.knobs)
    assert not np.isnan(rows).any()
    assert len(np.unique(rows, axis=0)) == len(rows)


@MODELS
def test_a_candidate_survives_the_round_trip_through_its_layout(model):
    found = candidates(space_file("default"), model, CLUSTER, MEGATRON, JOB)
    picks = np.random.default_rng(0).choice(found.legal, 200, replace=False)
    layouts = [found.knobs.layout(int(row)) for row in picks]
    assert len(set(layouts)) == len(layouts)
    assert all(Layout.parse(str(layout)) == layout for layout in layouts)
    columns = knobs(layouts, [JOB.num_gpus] * 200, [JOB.global_batch_size] * 200)
    case = case_of(columns, model, JOB, MEGATRON)
    assert [explain(case, row) for row in range(200)] == [[]] * 200


def small_space(model):
    """A space without words, so that a plain product can imitate it."""
    return SpaceSpec(
        tensor_model_parallel_size=(1, 2, 8),
        pipeline_model_parallel_size=(1, 2, 3, 5),
        virtual_pipeline_model_parallel_size=(1, 7),
        microbatch_group_size_per_vp_stage=(0, 4),
        context_parallel_size=(1, 2),
        cp_comm_type=("a2a",) if model.num_moe_experts else ("p2p", "a2a"),
        expert_model_parallel_size=(1, 4) if model.num_moe_experts else (1,),
        expert_tensor_parallel_size=(1, 2) if model.num_moe_experts else (1,),
        micro_batch_size=(1, 5),
        sequence_parallel=(True, False),
        zero_stage=(0, 1, 3),
        shard_group_size=(0, 3),
        recompute=("none", "layernorm", "full/uniform/2"),
        schedule=("1f1b", "interleaved", "zb1p"),
        stage_layers=("even",),
        precision=("bf16", "mxfp8"),
        overlap=("auto", "none"),
    )


def brute_force(spec, model, job, framework):
    """The product written out, one layout at a time, with the same notion of what can matter."""
    layouts = []
    for tp, pp, cp, ep, etp in product(
        spec.tensor_model_parallel_size,
        spec.pipeline_model_parallel_size,
        spec.context_parallel_size,
        spec.expert_model_parallel_size,
        spec.expert_tensor_parallel_size,
    ):
        replicas = job.num_gpus / (tp * pp)
        shares = replicas > 1 or (model.num_moe_experts and replicas * tp / (etp * ep) > 1)
        for comm, mbs, (schedule, vpp, group), sp, (zero, shard), words, precision, word in product(
            spec.cp_comm_type if cp > 1 else ("p2p",),
            spec.micro_batch_size,
            plans(spec, pp),
            spec.sequence_parallel if tp > 1 else (False,),
            shardings(spec, shares, replicas > 1),
            spec.recompute,
            spec.precision,
            spec.overlap,
        ):
            usual = {"grad", "param", "p2p"} - (set() if zero else {"param"})
            moved = ({"grad"} | ({"param"} if zero else set())) if replicas > 1 else set()
            moved |= {"p2p"} if vpp > 1 else set()
            on = usual if word == "auto" else usual - moved
            layouts.append(
                replace(
                    Layout.parse(f"recompute={words} zero{zero}"),
                    tensor_model_parallel_size=tp,
                    pipeline_model_parallel_size=pp,
                    virtual_pipeline_model_parallel_size=vpp,
                    microbatch_group_size_per_vp_stage=group,
                    context_parallel_size=cp,
                    cp_comm_type=comm,
                    expert_model_parallel_size=ep,
                    expert_tensor_parallel_size=etp,
                    micro_batch_size=mbs,
                    sequence_parallel=sp,
                    shard_group_size=shard,
                    schedule=schedule,
                    precision=precision,
                    overlap=tuple(name for name in ("grad", "param", "p2p") if name in on),
                )
            )
    layouts = list(dict.fromkeys(layouts))
    n = len(layouts)
    columns = knobs(layouts, [job.num_gpus] * n, [job.global_batch_size] * n)
    legal, reason = violations(case_of(columns, model, job, framework))
    pruned = Counter(RULES[i].id for i in reason[~legal].tolist())
    return {x for x, ok in zip(layouts, legal, strict=True) if ok}, n, pruned


def plans(spec, pp):
    if pp == 1:
        return [("1f1b", 1, 0)]
    return [
        (schedule, vpp, 0 if group == pp else group)
        for schedule in spec.schedule
        for vpp in spec.virtual_pipeline_model_parallel_size
        if (vpp > 1) == (schedule == "interleaved")
        for group in (spec.microbatch_group_size_per_vp_stage if vpp > 1 else (0,))
    ]


def shardings(spec, shares, dense_shares):
    return [
        (zero, shard)
        for zero in (spec.zero_stage if shares else (1,))
        for shard in (spec.shard_group_size if zero and dense_shares else (0,))
    ]


@MODELS
@pytest.mark.parametrize("framework", [MEGATRON, ANY], ids=lambda f: f.name)
def test_the_walk_equals_the_product_written_out(model, framework):
    spec, job = small_space(model), Job(num_gpus=24, global_batch_size=120)
    layouts, considered, pruned = brute_force(spec, model, job, framework)
    found = candidates(spec, model, CLUSTER, framework, job)
    assert found.considered == considered
    assert found.pruned == dict(pruned)
    assert {found.knobs.layout(row, "megatron-core") for row in range(found.legal)} == layouts
    assert found.legal == len(layouts) > 0
    assert len(pruned) >= 5


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    gpus=st.sampled_from([1, 2, 8, 12, 64]),
    batch=st.sampled_from([1, 24, 64]),
    seq=st.sampled_from([512, 4096, 32768]),
    layers=st.sampled_from([1, 2, 7, 24, 61]),
    experts=st.sampled_from([0, 8]),
    name=st.sampled_from(["default", "nemo_2022"]),
)
def test_the_counts_add_up_for_any_job(gpus, batch, seq, layers, experts, name):
    base = replace(MOE, num_moe_experts=experts) if experts else DENSE
    model = replace(base, num_layers=layers)
    job = Job(num_gpus=gpus, global_batch_size=batch, seq_length=seq)
    found = candidates(space_file(name), model, CLUSTER, MEGATRON, job)
    assert found.considered == found.legal + sum(found.pruned.values())
    assert "stage_sum" not in found.pruned
    assert "stage_count" not in found.pruned
    assert all(np.ndim(getattr(found.knobs, f.name)) == 1 for f in KNOB_FIELDS)


def test_what_cannot_matter_is_not_a_candidate():
    found = candidates(space_file("full").execution_knobs(), DENSE, CLUSTER, ANY, JOB)
    k = found.knobs
    assert not np.any((k.tp == 1) & (k.sp > 0))
    assert not np.any((k.cp == 1) & (k.cp_comm > 0))
    assert not np.any((k.ep > 1) | (k.etp > 1))
    assert not np.any((k.pp == 1) & ((k.vpp > 1) | (k.stages > 0) | (k.schedule > 0)))
    assert not np.any((k.vpp == 1) & (k.group > 0))
    assert not np.any((k.dp * k.cp == 1) & ((k.zero != 1) | (k.shard > 0)))
    assert not np.any(k.module("moe") + k.module("moe_act") + k.module("core_attn") > 0)
    assert not np.any((k.ep == 1) & (k.overlaps("moe") > 0))
    assert not np.any((k.tp == 1) & (k.overlaps("tp") > 0))


def test_unfused_attention_gets_its_recomputation_back():
    unfused = replace(
        MEGATRON, traits=replace(MEGATRON.traits, flash_attention=0.0, fused_kernels=1.0)
    )
    k = candidates(space_file("nemo_2022"), DENSE, CLUSTER, unfused, JOB).knobs
    assert np.any(k.module("core_attn") > 0)
    assert k.tp.max() <= 8
    assert k.cp.max() == 1
    assert not k.stages.any()


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (126, (15, *[16] * 6, 15)),
        (127, (15, *[16] * 7)),
        (61, (7, *[8] * 6, 6)),
        (62, (7, *[8] * 6, 7)),
    ],
)
def test_embedding_and_loss_take_a_slot(layers, expected):
    spec = replace(space_file("default"), pipeline_model_parallel_size=(8,))
    model = replace(DENSE, num_layers=layers)
    found = candidates(spec, model, CLUSTER, MEGATRON, Job(num_gpus=64, global_batch_size=64))
    layouts = {found.knobs.layout(row).stage_layers for row in range(found.legal)}
    assert expected in layouts
    assert all(sum(x) == layers for x in layouts if x)


def test_layers_that_nothing_divides_are_balanced():
    spec = replace(
        space_file("default"),
        pipeline_model_parallel_size=(16,),
        virtual_pipeline_model_parallel_size=(1,),
    )
    model = replace(DENSE, num_layers=61)
    k = candidates(spec, model, CLUSTER, MEGATRON, Job(num_gpus=64, global_batch_size=64)).knobs
    (stages,) = {k.layout(row).stage_layers for row in range(k.size)}
    assert (len(stages), sum(stages), max(stages)) == (16, 61, 4)
    assert max(stages) - min(stages[1:-1]) <= 1


def test_numerics_stay_put_unless_asked():
    spec = space_file("full")
    k = candidates(spec.execution_knobs(), DENSE, CLUSTER, ANY, Job(num_gpus=4)).knobs
    assert set(k.precision) == {0.0}
    assert set(k.grad_bytes) == {4.0}
    moved = next(iter(Candidates(spec, DENSE, CLUSTER, ANY, Job(num_gpus=4))))
    assert len(set(moved.precision)) > 1
    assert set(moved.grad_bytes) == {2.0, 4.0}


def test_a_schedule_the_framework_lacks_is_counted_not_built():
    spec = replace(space_file("default"), schedule=SCHEDULES)
    found = candidates(spec, DENSE, CLUSTER, MEGATRON, JOB)
    assert found.pruned["framework.schedule"] > 0
    assert set(found.knobs.schedule) <= {0.0, 1.0}


def test_a_space_without_a_legal_candidate_is_empty_and_counted():
    spec = replace(space_file("default"), tensor_model_parallel_size=(7,))
    found = candidates(spec, DENSE, CLUSTER, MEGATRON, JOB)
    assert found.legal == 0
    assert found.considered == sum(found.pruned.values()) > 0


def test_blocks_stay_small_whatever_the_space():
    spec = space_file("full")
    walk = Candidates(spec, MOE, CLUSTER, ANY, Job(num_gpus=512, global_batch_size=2048))
    assert walk.considered > 20_000_000
    sizes = [block.size for block, _ in zip(walk, range(20), strict=False)]
    assert min(sizes) >= BLOCK_ROWS
    assert max(sizes) <= 2 * BLOCK_ROWS


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"tensor_model_paralel_size": [1]}, "did you mean 'tensor_model_parallel_size'"),
        (
            {"micro_batch_size": [0]},
            r"space.micro_batch_size: 0 is not an integer in \[1, 1000000\]",
        ),
        ({"micro_batch_size": []}, "is not a list of 1 to"),
        ({"micro_batch_size": [True]}, "is not an integer"),
        ({"zero_stage": [4]}, r"\[0, 3\]"),
        ({"optimizer_offload_fraction": [1.5]}, r"is not a number in \[0, 1\]"),
        ({"schedule": ["1f1f"]}, "did you mean '1f1b'"),
        ({"schedule": "auto"}, "is not a choice"),
        ({"sequence_parallel": ["yes"]}, "neither true nor false"),
        ({"recompute": ["full/block/x"]}, "cannot be read"),
        ({"stage_layers": ["evn"]}, "did you mean 'even'"),
        ({"overlap": ["grads"]}, "did you mean 'grad'"),
    ],
)
def test_a_bad_space_says_what_is_wrong(mapping, message):
    with pytest.raises(ConfigError, match=message):
        SpaceSpec.from_mapping(mapping)


def test_one_value_is_a_list_of_one():
    spec = SpaceSpec.from_mapping({"micro_batch_size": 2, "stage_layers": "7,8*6,7"})
    assert spec.micro_batch_size == (2,)
    model = replace(DENSE, num_layers=62)
    spec = replace(spec, pipeline_model_parallel_size=(8,))
    k = candidates(spec, model, CLUSTER, MEGATRON, Job(num_gpus=64, global_batch_size=64)).knobs
    assert {k.layout(row).stage_layers for row in range(k.size)} == {(7, *[8] * 6, 7)}
