"""The table of rules: each rule hit and missed by one change, messages that help, laws."""

import re
from dataclasses import replace

import numpy as np
import pytest

from autoparallel.layout import KNOB_FIELDS, Knobs, Layout, knobs
from autoparallel.model import Model
from autoparallel.rules import (
    RULES,
    Limits,
    RuleCase,
    binding,
    explain,
    violations,
)
from autoparallel.space import decided

DENSE = Model(
    name="dense",
    num_layers=48,
    hidden_size=4096,
    num_attention_heads=32,
    num_query_groups=8,
    ffn_hidden_size=14336,
    vocab_size=32000,
    kv_channels=128,
)
MOE = replace(
    DENSE,
    name="moe",
    num_moe_experts=16,
    moe_router_topk=2,
    moe_ffn_hidden_size=1408,
    moe_shared_expert_intermediate_size=2816,
    moe_first_dense_layers=1,
)
H100 = ("bf16", "fp16", "fp8")
SEQ = 4096


def case(
    layouts,
    gpus=64,
    batch=256,
    model=DENSE,
    seq=SEQ,
    precisions=H100,
    framework="megatron-core",
    **legal,
):
    parsed = [Layout.parse(x) if isinstance(x, str) else x for x in layouts]
    columns = knobs(parsed, [gpus] * len(parsed), [batch] * len(parsed))
    limits = Limits(precisions=precisions, framework=framework, legal=legal)
    return RuleCase(model=model.shape(seq), knobs=columns, limits=limits)


def broken(layout, **kw):
    return {v.rule for v in explain(case([layout], **kw), 0)}


OK = "tp2 pp4 mbs1 sp zero1"
MOE_OK = "tp2 pp4 ep4 mbs1 sp zero1"
BIASED = replace(MOE, add_bias_linear=True)
PLAIN = replace(DENSE, gated_linear_unit=False)
FSDP2, DEEPSPEED = {"framework": "fsdp2"}, {"framework": "deepspeed"}
AUTOMODEL = {"framework": "automodel"}
WINDOW = replace(DENSE, window_size=128, window_layers_fraction=0.5)
NARROW = replace(DENSE, num_query_groups=2, kv_channels=3)
MTP = replace(MOE, mtp_num_layers=2)

# rule, a layout that breaks it, the same layout with one thing changed that does not, the setting
HITS = [
    (
        "world",
        "tp2 pp5 mbs1 sp zero1",
        "tp2 pp4 mbs1 sp zero1",
        {"model": replace(DENSE, num_layers=40)},
    ),
    ("heads", "tp64 pp1 mbs1 sp zero1", "tp32 pp1 mbs1 sp zero1", {}),
    (
        "query_groups",
        "tp4 pp1 mbs1 sp zero1",
        "tp2 pp1 mbs1 sp zero1",
        {"model": replace(DENSE, num_query_groups=6)},
    ),
    ("qkv_width", "tp8 pp1 mbs1 sp zero1", "tp4 pp1 mbs1 sp zero1", {"model": NARROW}),
    (
        "ffn",
        "tp4 pp1 mbs1 sp zero1",
        "tp2 pp1 mbs1 sp zero1",
        {"model": replace(DENSE, ffn_hidden_size=14338)},
    ),
    ("context_length", "tp1 pp1 cp4 mbs1 zero1", "tp1 pp1 cp2 mbs1 zero1", {"seq": 4100}),
    (
        "cp_heads",
        "tp4 pp1 cp4 cpcomm=a2a mbs1 sp zero1",
        "tp4 pp1 cp2 cpcomm=a2a mbs1 sp zero1",
        {},
    ),
    (
        "cp_hierarchy",
        "tp4 pp1 cp2 cpcomm=a2a+p2p mbs1 sp zero1",
        "tp4 pp1 cp4 cpcomm=a2a+p2p mbs1 sp zero1",
        {},
    ),
    (
        "cp_window",
        "tp4 pp1 cp2 mbs1 sp zero1",
        "tp4 pp1 cp2 cpcomm=all_gather mbs1 sp zero1",
        {"model": WINDOW},
    ),
    ("dense_experts", "tp2 pp4 ep2 mbs1 sp zero1", OK, {}),
    ("experts", "tp2 pp1 ep32 mbs1 sp zero1", "tp2 pp1 ep16 mbs1 sp zero1", {"model": MOE}),
    (
        "expert_world",
        "tp2 pp4 ep16 etp2 mbs1 sp zero1",
        "tp2 pp4 ep8 etp2 mbs1 sp zero1",
        {"model": MOE},
    ),
    (
        "expert_ffn",
        "tp2 pp1 etp4 mbs1 sp zero1",
        "tp2 pp1 etp2 mbs1 sp zero1",
        {"model": replace(MOE, moe_ffn_hidden_size=1410)},
    ),
    ("expert_bias", "tp2 pp4 etp2 mbs1 sp zero1", "tp2 pp4 etp1 mbs1 sp zero1", {"model": BIASED}),
    ("batch", "tp2 pp4 mbs3 sp zero1", "tp2 pp4 mbs4 sp zero1", {}),
    ("vpp_pipeline", "tp2 pp1 vpp2 mbs1 sp zero1", "tp2 pp2 vpp2 mbs1 sp zero1", {}),
    (
        "schedule_pipeline",
        "tp2 pp1 mbs1 sp zero1 sched=zb1p",
        "tp2 pp2 mbs1 sp zero1 sched=zb1p",
        {},
    ),
    ("schedule_chunks", "tp2 pp4 vpp2 mbs1 sp zero1 sched=1f1b", "tp2 pp4 vpp2 mbs1 sp zero1", {}),
    ("layers", "tp2 pp4 vpp8 mbs1 sp zero1", "tp2 pp4 vpp6 mbs1 sp zero1", {}),
    (
        "stage_count",
        "tp2 pp4 mbs1 sp zero1 stages=16*3",
        "tp2 pp4 mbs1 sp zero1 stages=11,13*2,11",
        {},
    ),
    (
        "stage_sum",
        "tp2 pp4 mbs1 sp zero1 stages=12,13*2,11",
        "tp2 pp4 mbs1 sp zero1 stages=11,13*2,11",
        {},
    ),
    (
        "stage_empty",
        "tp2 pp4 mbs1 sp zero1 stages=16,0,16*2",
        "tp2 pp4 mbs1 sp zero1 stages=0,16*3",
        {},
    ),
    ("group_schedule", "tp2 pp4 group8 mbs1 sp zero1", "tp2 pp4 vpp2 group8 mbs1 sp zero1", {}),
    ("group", "tp2 pp4 vpp2 group2 mbs1 sp zero1", "tp2 pp4 vpp2 group4 mbs1 sp zero1", {}),
    ("group", "tp2 pp4 vpp2 group31 mbs1 sp zero1", "tp2 pp4 vpp2 group28 mbs1 sp zero1", {}),
    ("group", "tp2 pp4 vpp2 group33 mbs1 sp zero1", "tp2 pp4 vpp2 group32 mbs1 sp zero1", {}),
    ("sp_tensor", "tp1 pp4 mbs1 sp zero1", "tp1 pp4 mbs1 zero1", {}),
    ("sp_length", "tp8 pp1 cp2 mbs1 sp zero1", "tp8 pp1 cp2 mbs1 zero1", {"seq": 4100}),
    ("moe_sp", "tp2 pp4 mbs1 zero1", "tp2 pp4 mbs1 sp zero1", {"model": MOE}),
    ("zero_pipeline", "tp2 pp2 mbs1 sp zero3", "tp2 pp1 mbs1 sp zero3", {}),
    (
        "shard_zero",
        "tp2 pp4 mbs1 sp zero0 shard=4 overlap=grad",
        "tp2 pp4 mbs1 sp zero1 shard=4 overlap=grad",
        {},
    ),
    ("shard_replicas", "tp2 pp4 mbs1 sp zero1 shard=3", "tp2 pp4 mbs1 sp zero1 shard=4", {}),
    (
        "shard_experts",
        "tp2 pp4 ep16 mbs1 sp zero1 shard=2",
        "tp2 pp4 ep16 mbs1 sp zero1",
        {"model": MOE},
    ),
    (
        "recompute_layers",
        Layout(recompute_granularity="full"),
        Layout(recompute_granularity="full", recompute_num_layers=1),
        {},
    ),
    ("recompute_uniform", f"{OK} recompute=full/uniform/5", f"{OK} recompute=full/uniform/4", {}),
    (
        "recompute_uniform",
        f"{OK} stages=11,13*2,11 recompute=full/uniform/11",
        f"{OK} stages=11,13*2,11 recompute=full/uniform/1",
        {},
    ),
    ("recompute_block", f"{OK} recompute=full/block/13", f"{OK} recompute=full/block/12", {}),
    ("recompute_empty", Layout(recompute_granularity="selective"), Layout(), {}),
    ("recompute_experts", f"{OK} recompute=moe_act", f"{OK} recompute=mlp", {}),
    (
        "recompute_experts",
        f"{MOE_OK} recompute=shared_experts",
        f"{MOE_OK} recompute=moe",
        {"model": replace(MOE, moe_shared_expert_intermediate_size=0)},
    ),
    ("recompute_latent", f"{OK} recompute=mla_up_proj", f"{OK} recompute=layernorm", {}),
    ("gpu_precision", f"{OK} prec=mxfp8", f"{OK} prec=fp8-blockwise", {}),
    ("fp8_shape", f"{OK} prec=fp8", f"{OK} prec=bf16", {"model": replace(DENSE, hidden_size=4104)}),
    (
        "fp8_recompute",
        f"{OK} prec=fp8 recompute=layernorm",
        f"{OK} prec=fp8-tensorwise recompute=layernorm",
        {},
    ),
    ("grad_dtype", f"{OK} prec=fp16 grad=bf16", f"{OK} prec=bf16 grad=bf16", {}),
    (
        "overlap_param",
        "tp2 pp4 mbs1 sp zero0 overlap=grad+param",
        "tp2 pp4 mbs1 sp zero1 overlap=grad+param",
        {},
    ),
    ("overlap_param", f"{OK} overlap=param", f"{OK} overlap=grad", {}),
    ("overlap_tp", "tp2 pp4 mbs1 zero1 overlap=tp", "tp2 pp4 mbs1 sp zero1 overlap=tp", {}),
    (
        "overlap_p2p",
        "tp2 pp2 vpp2 mbs1 sp zero1 overlap=grad",
        "tp2 pp2 vpp2 mbs1 sp zero1 overlap=p2p",
        {},
    ),
    (
        "overlap_moe",
        "tp2 pp1 mbs1 sp zero1 overlap=moe",
        "tp2 pp1 ep2 mbs1 sp zero1 overlap=moe",
        {"model": MOE},
    ),
    (
        "overlap_moe_pipeline",
        f"{MOE_OK} overlap=moe",
        "tp2 pp4 vpp2 ep4 mbs1 sp zero1 overlap=moe",
        {"model": MOE},
    ),
    (
        "overlap_moe_pipeline",
        "tp2 pp1 ep4 mbs1 sp zero1 overlap=moe",
        "tp2 pp1 ep4 mbs1 sp zero1",
        {"model": MTP},
    ),
    (
        "overlap_moe_recompute",
        "tp2 pp1 ep4 mbs1 sp zero1 overlap=moe recompute=full",
        "tp2 pp1 ep4 mbs1 sp zero1 overlap=moe recompute=moe",
        {"model": MOE},
    ),
    (
        "offload_optimizer",
        "tp2 pp4 mbs1 sp zero0 overlap=none offload=opt1",
        "tp2 pp4 mbs1 sp zero1 overlap=none offload=opt1",
        {},
    ),
    ("graph_recompute", f"{OK} graph=attn recompute=full", f"{OK} graph=attn recompute=mlp", {}),
    ("graph_layers", f"{OK} graph=moe", f"{OK} graph=full", {}),
    ("graph_layers", f"{MOE_OK} graph=full", f"{MOE_OK} graph=moe", {"model": MOE}),
    (
        "graph_layers",
        f"{MOE_OK} graph=mlp",
        f"{MOE_OK} graph=attn",
        {"model": replace(MOE, moe_first_dense_layers=0)},
    ),
    (
        "graph_moe_recompute",
        f"{MOE_OK} graph=moe recompute=moe",
        f"{MOE_OK} graph=attn recompute=moe",
        {"model": MOE},
    ),
    (
        "graph_overlap",
        "tp2 pp1 ep4 mbs1 sp zero1 overlap=moe graph=mlp",
        "tp2 pp1 ep4 mbs1 sp zero1 overlap=moe graph=attn",
        {"model": MOE},
    ),
    ("plain_pipeline", "tp1 pp2 mbs1 zero2", "tp1 pp1 mbs1 zero2", {"model": PLAIN, **FSDP2}),
    ("own_experts", "tp1 pp1 ep4 mbs1 zero2", "tp1 pp1 mbs1 zero2", {"model": MOE, **AUTOMODEL}),
    ("tensor_sp", "tp2 pp1 mbs1 zero2", "tp2 pp1 mbs1 sp zero2", FSDP2),
    ("tensor_sp", "tp2 pp1 mbs1 zero2", "tp2 pp1 mbs1 sp zero2", AUTOMODEL),
    (
        "recompute_nth",
        "tp1 pp1 mbs1 zero2 recompute=full/block/6",
        "tp1 pp1 mbs1 zero2 recompute=full",
        AUTOMODEL,
    ),
    ("tensor_zero3", "tp2 pp1 mbs1 zero3", "tp2 pp1 mbs1 zero2", DEEPSPEED),
    ("shard_context", "tp1 pp1 cp4 mbs1 zero2 shard=2", "tp1 pp1 cp4 mbs1 zero2 shard=8", FSDP2),
    (
        "recompute_nth",
        "tp1 pp4 mbs1 zero2 recompute=full/block/5",
        "tp1 pp4 mbs1 zero2 recompute=full/block/6",
        FSDP2,
    ),
    (
        "recompute_nth",
        "tp1 pp4 mbs1 zero2 recompute=full/uniform/2",
        "tp1 pp4 mbs1 zero2 recompute=full/uniform/1",
        FSDP2,
    ),
    (
        "recompute_nth",
        "tp1 pp4 mbs1 zero2 stages=11,13*2,11 recompute=full/block/1",
        "tp1 pp4 mbs1 zero2 recompute=full/block/1",
        FSDP2,
    ),
    ("overlap_sharded", "tp1 pp1 mbs1 zero2 overlap=grad", "tp1 pp1 mbs1 zero2", FSDP2),
    ("overlap_inside", "tp2 pp1 mbs1 zero2 overlap=grad+tp", "tp2 pp1 mbs1 zero2", DEEPSPEED),
    (
        "offload_part",
        "tp1 pp1 mbs1 zero2 offload=opt0.5",
        "tp1 pp1 mbs1 zero2 offload=opt1",
        DEEPSPEED,
    ),
]


@pytest.mark.parametrize("chunks", ["pp5", "pp7", "pp3 vpp3", "pp23"])
def test_stages_that_the_message_offers_are_legal(chunks):
    bad = f"tp1 {chunks} mbs1 zero1"
    gpus = int(chunks.split()[0][2:])
    (found,) = [
        v for v in explain(case([bad], gpus=gpus, batch=46 * gpus), 0) if v.rule == "layers"
    ]
    offered = found.message.rpartition(", or write ")[2]
    assert not broken(f"{bad} {offered}", gpus=gpus, batch=46 * gpus) & {"stage_count", "stage_sum"}


def test_stages_are_not_offered_to_more_chunks_than_layers():
    (found,) = [v for v in explain(case(["tp1 pp64 mbs1"], gpus=64), 0) if v.rule == "layers"]
    assert "stages=" not in found.message.partition("; ")[2]


@pytest.mark.parametrize(("rule", "bad", "good", "setting"), HITS)
def test_each_rule_is_broken_by_one_layout_and_kept_by_its_neighbour(rule, bad, good, setting):
    assert rule in broken(bad, **setting)
    assert rule not in broken(good, **setting)


def test_prediction_layers_are_a_thing_of_megatron():
    layout = "tp1 pp1 mbs1 zero2"
    for framework in ("fsdp2", "automodel", "deepspeed"):
        assert "prediction_layers" in broken(layout, model=MTP, framework=framework)
        assert "prediction_layers" not in broken(layout, model=MOE, framework=framework)
    assert "prediction_layers" not in broken(layout, model=MTP)


def test_every_rule_has_an_example():
    examples = {rule for rule, *_ in HITS} | {"prediction_layers"}
    assert examples == {r.id for r in RULES if not r.id.startswith("framework.")}


def test_a_plain_layout_is_legal():
    assert broken(OK) == set()
    assert broken(MOE_OK, model=MOE) == set()


def test_stages_that_do_not_divide_the_gpus_are_said_once():
    assert {"world", "expert_world"} & broken("tp2 pp6 mbs1 sp zero1") == {"world"}


@pytest.mark.parametrize(
    ("name", "allowed", "bad", "good"),
    [
        ("zero_stage", (0, 1), "tp2 pp1 mbs1 sp zero3", OK),
        ("schedule", ("1f1b",), "tp2 pp4 vpp2 mbs1 sp zero1", OK),
        ("sequence_parallel", (False,), OK, "tp2 pp4 mbs1 zero1"),
        ("tensor_model_parallel_size", (1,), OK, "tp1 pp4 mbs1 zero1"),
        (
            "cp_comm_type",
            ("p2p",),
            "tp2 pp1 cp2 cpcomm=a2a mbs1 sp zero1",
            "tp2 pp1 cp2 mbs1 sp zero1",
        ),
        (
            "recompute_modules",
            ("core_attn",),
            f"{OK} recompute=core_attn+mlp",
            f"{OK} recompute=core_attn",
        ),
        ("recompute_method", ("uniform",), f"{OK} recompute=full/block/2", f"{OK} recompute=mlp"),
        ("overlap", ("grad",), OK, f"{OK} overlap=grad"),
        ("grad_reduce_dtype", ("bf16",), OK, f"{OK} grad=bf16"),
        ("precision", ("bf16",), f"{OK} prec=fp16", OK),
    ],
)
def test_a_framework_restricts_its_knobs(name, allowed, bad, good):
    rule = f"framework.{name}"
    assert rule in broken(bad, **{name: allowed})
    assert rule not in broken(good, **{name: allowed})
    assert rule not in broken(bad)
    message = next(v.message for v in explain(case([bad], **{name: allowed}), 0) if v.rule == rule)
    assert message.startswith(f"{name}: megatron-core has {{{allowed[0]}")


def test_rules_of_megatron_bind_only_its_family():
    layout = "tp2 pp4 vpp2 group31 mbs1 sp zero3 overlap=param"
    mine = {"group", "zero_pipeline", "overlap_param"}
    assert mine <= broken(layout)
    assert mine <= broken(layout, framework="megatron-zero-bubble")
    assert not mine & broken(layout, framework="fsdp2")
    assert "zero_pipeline" in broken(layout, framework="deepspeed")


def test_slow_is_not_illegal():
    wide = "tp32 pp1 mbs1 sp zero1 recompute=core_attn"
    assert broken(wide) == set()


def test_the_message_has_field_value_rule_and_what_to_try():
    (first, *_) = explain(case(["tp8 pp5 mbs1 sp zero1"], gpus=96, batch=96), 0)
    assert first.message == (
        "data_parallel_size: 96 GPUs is not tp 8 x pp 5 x cp 1 x dp; use pp in {1, 2, 3, 4, 6, 12}"
    )


@pytest.mark.parametrize(("rule", "bad", "good", "setting"), HITS)
def test_every_message_is_complete_and_its_offer_keeps_the_rule(rule, bad, good, setting):
    one = case([bad], **setting)
    (found,) = [v for v in explain(one, 0) if v.rule == rule]
    field, text = found.message.split(": ", 1)
    assert field == found.fields[0]
    assert "; " in text
    assert not re.search(r"[{]\w*[a-z]\w*[}]|nan", text.split("use ")[0])
    if offer := re.search(r"use (\w+) in {([\d, .]+)}$", text):
        knob, values = offer[1], [float(v) for v in offer[2].rstrip(", .").split(",")]
        predicate = next(r.predicate for r in RULES if r.id == rule)
        varied = replace(one, knobs=replace(one.knobs, **{knob: np.array(values)}))
        assert not np.any(predicate(varied))


def everything():
    """Every example layout, on the one model and job that has experts."""
    layouts = [x for _, *pair, _ in HITS for x in pair]
    return case(layouts, model=MOE, schedule=("1f1b", "interleaved"), zero_stage=(0, 1))


def test_columns_agree_with_rows():
    together = everything()
    legal, reason = violations(together)
    assert legal.any()
    assert not legal.all()
    for row in range(together.knobs.size):
        found = [v.rule for v in explain(together, row)]
        assert bool(legal[row]) == (not found)
        assert (RULES[reason[row]].id if reason[row] >= 0 else None) == next(iter(found), None)


def test_the_binding_rule_is_the_one_that_met_what_came_furthest():
    assert binding({"world": 900, "batch": 3, "framework.precision": 1}) == "framework.precision"
    assert binding({"batch": 3, "world": 900}) == "batch"
    assert binding({}) == ""


def test_rules_stand_in_the_order_a_search_decides_them():
    steps = [decided(rule.fields) for rule in RULES]
    assert steps == sorted(steps)
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert all(rule.source for rule in RULES)


COLUMNS_OF = {
    "data_parallel_size": {"num_gpus", "tp", "pp", "cp"},
    "num_gpus": {"num_gpus"},
    "global_batch_size": {"global_batch_size"},
    "tensor_model_parallel_size": {"tp"},
    "pipeline_model_parallel_size": {"pp"},
    "virtual_pipeline_model_parallel_size": {"vpp"},
    "microbatch_group_size_per_vp_stage": {"group"},
    "context_parallel_size": {"cp"},
    "cp_comm_type": {"cp_comm"},
    "expert_model_parallel_size": {"ep"},
    "expert_tensor_parallel_size": {"etp"},
    "micro_batch_size": {"mbs"},
    "sequence_parallel": {"sp"},
    "zero_stage": {"zero"},
    "shard_group_size": {"shard"},
    "recompute_granularity": {"granularity"},
    "recompute_method": {"method"},
    "recompute_num_layers": {"recompute_layers"},
    "recompute_modules": {"modules"},
    "schedule": {"schedule"},
    "stage_layers": {"stages"},
    "precision": {"precision"},
    "grad_reduce_dtype": {"grad_bytes"},
    "optimizer_offload_fraction": {"offload"},
    "cuda_graph_scope": {"graph"},
    "overlap": {"overlap"},
}


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.id)
def test_a_rule_reads_only_the_fields_it_names(rule):
    whole = everything()
    if rule.id.startswith("framework."):
        whole = replace(whole, limits=replace(whole.limits, legal={rule.fields[0]: (1, "bf16")}))
    reads = set().union(*(COLUMNS_OF.get(name, set()) for name in rule.fields))
    rows = whole.knobs.size
    blind = {
        f.name: getattr(whole.knobs, f.name) if f.name in reads else np.full(rows, np.nan)
        for f in KNOB_FIELDS
    }
    partial = replace(whole, knobs=Knobs(**blind, stage_table=whole.knobs.stage_table))
    expected = np.broadcast_to(rule.predicate(whole), (rows,))
    assert np.array_equal(np.broadcast_to(rule.predicate(partial), (rows,)), expected)
