"""Rules of FSDP2 and DeepSpeed: what torchtitan, NeMo AutoModel and DeepSpeed can be started with.

What these frameworks lack knob by knob is in their records (`legal`); here is what two knobs, or a
knob and the model, do not allow together. A layout that keeps them can be exported. They stand
among the other rules, at the step at which their knobs are known.
"""

from __future__ import annotations

import numpy as np

from autoparallel.rules.case import BLOCK, FULL, Bool, RuleCase, splits
from autoparallel.rules.rule import CP, EP, GRANULARITY, PLAN_FIELDS, PP, SP, TP, rule

FSDP2 = ("fsdp2", "automodel")
"""`fsdp2` has the exporters of torchtitan and AutoModel, `automodel` has AutoModel's alone."""
AUTOMODEL = ("automodel",)
DEEPSPEED = ("deepspeed",)
_TITAN = "pytorch/torchtitan v0.2.2 torchtitan"
_AUTOMODEL = "NVIDIA-NeMo/Automodel v0.7.0 nemo_automodel/components/distributed"
_ENGINE = "deepspeedai/DeepSpeed v0.19.8 deepspeed/runtime"


def _uneven_recompute(case: RuleCase) -> Bool:
    """Full recomputation of anything but one layer in n, on stages that all hold as many."""
    count = np.maximum(case.k.recompute_layers, 1.0)
    nth = (case.fullest == case.common_layers) & splits(case.fullest, count)
    nth = nth & ~(_not_titan(case) & (count != case.fullest))
    block = case.k.method == BLOCK
    return (case.k.granularity == FULL) & ((block & ~nth) | (~block & (count != 1)))


def _not_titan(case: RuleCase) -> Bool:
    """Whether AutoModel alone takes the model: torchtitan's have no biases, windows or plain MLPs.

    AutoModel recomputes every layer or none.
    """
    m = case.m
    taken = (m.k < 3) | (m.bias > 0) | (m.qkv_bias > 0) | (m.window > 0)
    return taken | (AUTOMODEL[0] in case.limits.framework)


def _no_own_experts(case: RuleCase) -> Bool:
    """Whether the model's experts are neither DeepSeek-V3's, Qwen3-MoE's nor GPT-OSS's."""
    m = case.m
    return (m.qk_norm == 0) & (m.bias == 0) & ((m.r_kv == 0) | (m.router_bias == 0))


SHARDED_MESH = (
    rule(
        "prediction_layers",
        ("mtp_num_layers",),
        lambda c: (c.m.mtp > 0) & (c.k.tp > 0),
        "{mtp} extra prediction layers, which {framework} does not train",
        "add model.mtp_num_layers=0 to train without",
        f"{_TITAN}/models/deepseek_v3; huggingface/transformers modeling_deepseek_v3.py",
        FSDP2 + DEEPSPEED,
    ),
    rule(
        "plain_pipeline",
        (PP, "gated_linear_unit"),
        lambda c: (c.k.pp > 1) & (c.m.k < 3),
        "{pp}: torchtitan and AutoModel split models with gated MLPs over a pipeline, no others",
        "use pp1",
        f"{_TITAN}/models; {_AUTOMODEL}/pipelining/hf_utils.py",
        FSDP2,
    ),
    rule(
        "own_experts",
        (EP, "qk_layernorm", "kv_lora_rank"),
        lambda c: (c.k.ep > 1) & _no_own_experts(c),
        "{ep}: AutoModel splits the experts of DeepSeek-V3, Qwen3-MoE and GPT-OSS, no others",
        "use ep1, or fsdp2",
        "NVIDIA-NeMo/Automodel v0.7.0 nemo_automodel/components/models",
        AUTOMODEL,
    ),
)
SHARDED_SEQUENCE = (
    rule(
        "tensor_sp",
        (SP, TP),
        lambda c: (c.k.tp > 1) & (c.k.sp == 0),
        "off: tp {tp} splits the sequence between the matrices there, always",
        "add sp",
        f"{_TITAN}/models/llama3/infra/parallelize.py; {_AUTOMODEL}/optimized_tp_plans.py",
        FSDP2,
    ),
)
SHARDED_SHARDING = (
    rule(
        "tensor_zero3",
        ("zero_stage", TP),
        lambda c: (c.k.zero == 3) & (c.k.tp > 1),
        "{zero} with tp {tp}: tensor parallelism goes with zero 0 to 2",
        "use zero2 or tp1",
        f"{_ENGINE}/tensor_parallel",
        DEEPSPEED,
    ),
    rule(
        "shard_context",
        ("shard_group_size", CP),
        lambda c: (c.k.shard > 0) & ~splits(c.k.shard, c.k.cp),
        "{shard} is not whole groups of cp {cp}",
        "use a multiple of cp",
        f"{_TITAN}/distributed/parallel_dims.py",
        FSDP2,
    ),
)
SHARDED_RECOMPUTE = (
    rule(
        "recompute_nth",
        ("recompute_num_layers", GRANULARITY, "recompute_method", *PLAN_FIELDS),
        _uneven_recompute,
        "{recompute_layers}: one layer in n is recomputed, alike on all stages, or every layer",
        "use full/uniform/1, or full/block/N with N dividing the layers of every stage",
        f"{_TITAN}/distributed/activation_checkpoint.py",
        FSDP2,
    ),
)
SHARDED_OVERLAP = (
    rule(
        "overlap_sharded",
        ("overlap",),
        lambda c: (
            (c.k.overlaps("grad") == 0) | (c.k.overlaps("param") == 0) | (c.k.overlaps("moe") > 0)
        ),
        "gradients and parameters are overlapped always there, the experts' exchange never",
        "use overlap=grad+param+p2p",
        f"{_TITAN}/models/llama3/infra/parallelize.py",
        FSDP2,
    ),
    rule(
        "overlap_inside",
        ("overlap",),
        lambda c: (c.k.overlaps("tp") > 0) | (c.k.overlaps("moe") > 0),
        "{framework} overlaps nothing inside a layer",
        "leave tp and moe out",
        f"{_ENGINE}/config.py",
        DEEPSPEED,
    ),
)
SHARDED_HOST = (
    rule(
        "offload_part",
        ("optimizer_offload_fraction", "zero_stage"),
        lambda c: (c.k.offload > 0) & ((c.k.zero == 0) | ((c.k.offload < 1) & (c.k.zero < 3))),
        "{offload} under zero {zero}: zero 1 and 2 move the whole optimizer, zero 3 a part too",
        "use offload=opt1 with zero1, or zero3",
        f"{_ENGINE}/zero/offload_config.py",
        DEEPSPEED,
    ),
)
