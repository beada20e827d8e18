"""The argument list against Megatron-LM's own parser vocabulary and megatron-core's own config."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.exporting import Run, arguments, environment
from autoparallel.exporting.job import TrainingJob
from autoparallel.exporting.megatron_flags import FLAGS, OFF_FLAGS, tokens
from autoparallel.exporting.megatron_lm import fields, script, text
from autoparallel.layout import (
    CP_COMM_TYPES,
    GRAPH_SCOPES,
    OVERLAPS,
    PRECISIONS,
    RECOMPUTE_MODULES,
    Layout,
    knobs,
)
from autoparallel.model import Model
from autoparallel.rules import Limits, RuleCase, violations

LIST = Path(__file__).parents[2] / "profiles" / "megatron_flags_core_v0.16.1.json"
KNOWN: dict[str, dict[str, Any]] = json.loads(LIST.read_text())["flags"]

GPT = Model(
    name="gpt-175b",
    num_layers=96,
    hidden_size=12288,
    num_attention_heads=96,
    num_query_groups=96,
    ffn_hidden_size=49152,
    vocab_size=51200,
    kv_channels=128,
    gated_linear_unit=False,
    activation="gelu",
    normalization="LayerNorm",
    add_bias_linear=True,
    untie_embeddings_and_output_weights=False,
    position_embedding_type="learned_absolute",
    max_position_embeddings=2048,
)
LLAMA = Model(
    name="llama-3.1-405b",
    num_layers=126,
    hidden_size=16384,
    num_attention_heads=128,
    num_query_groups=8,
    ffn_hidden_size=53248,
    vocab_size=128256,
    kv_channels=128,
    rotary_base=500_000.0,
    max_position_embeddings=131072,
)
MIXTRAL = Model(
    name="mixtral-8x7b",
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_query_groups=8,
    ffn_hidden_size=14336,
    vocab_size=32000,
    kv_channels=128,
    rotary_base=1_000_000.0,
    num_moe_experts=8,
    moe_router_topk=2,
    moe_ffn_hidden_size=14336,
)
QWEN = Model(
    name="qwen3-235b-a22b",
    num_layers=94,
    hidden_size=4096,
    num_attention_heads=64,
    num_query_groups=4,
    ffn_hidden_size=12288,
    vocab_size=151936,
    kv_channels=128,
    qk_layernorm=True,
    norm_epsilon=1e-6,
    num_moe_experts=128,
    moe_router_topk=8,
    moe_ffn_hidden_size=1536,
)
DEEPSEEK = Model(
    name="deepseek-v3",
    num_layers=61,
    hidden_size=7168,
    num_attention_heads=128,
    num_query_groups=128,
    ffn_hidden_size=18432,
    vocab_size=129280,
    kv_channels=128,
    norm_epsilon=1e-6,
    num_moe_experts=256,
    moe_router_topk=8,
    moe_ffn_hidden_size=2048,
    moe_shared_expert_intermediate_size=2048,
    moe_first_dense_layers=3,
    moe_router_bias=True,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_head_dim=128,
    qk_pos_emb_head_dim=64,
    v_head_dim=128,
    mtp_num_layers=1,
)
GPT_OSS = Model(
    name="gpt-oss-120b",
    num_layers=36,
    hidden_size=2880,
    num_attention_heads=64,
    num_query_groups=8,
    ffn_hidden_size=2880,
    vocab_size=201088,
    kv_channels=64,
    add_bias_linear=True,
    rotary_base=150_000.0,
    window_size=128,
    window_layers_fraction=0.5,
    num_moe_experts=128,
    moe_router_topk=4,
    moe_ffn_hidden_size=2880,
    moe_router_bias=True,
    extra_parameters=36 * 64,
)
NEMOTRON = Model(
    name="nemotron-4-340b",
    num_layers=96,
    hidden_size=18432,
    num_attention_heads=96,
    num_query_groups=8,
    ffn_hidden_size=73728,
    vocab_size=256000,
    kv_channels=192,
    gated_linear_unit=False,
    activation="squared_relu",
    normalization="LayerNorm",
)
BLOOM = replace(GPT, name="bloom-176b", position_embedding_type="alibi")
MODELS = (GPT, LLAMA, MIXTRAL, QWEN, DEEPSEEK, GPT_OSS, NEMOTRON)


# --- Megatron-LM's parser, rebuilt from the flag list


def pattern(text: str) -> Any:
    return eval(text, {"__builtins__": {}}) if "[" in text else int(text)


TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "AttnBackend": str,
    "CudaGraphScope": str,
    "moe_freq_type": pattern,
    "la_freq_type": pattern,
    "no_rope_freq_type": pattern,
    "tuple_type": lambda text: tuple(int(part) for part in text.strip("()").split(",")),
}


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(
        allow_abbrev=False, fromfile_prefix_chars="@", exit_on_error=False
    )
    for flag, about in KNOWN.items():
        action = about.get("action")
        if action == "boolean_optional":
            built.add_argument(flag, action=argparse.BooleanOptionalAction, dest=about["dest"])
        elif action:
            built.add_argument(flag, action=action, dest=about["dest"])
        else:
            more = {
                name: about[name]
                for name in ("nargs", "default", "dest", "choices")
                if name in about
            }
            built.add_argument(flag, type=TYPES[about["type"]], **more)
    return built


def parse(tokens: tuple[str, ...]) -> argparse.Namespace:
    return parser().parse_args(list(tokens))


def job(
    model: Model, layout: Layout, gpus: int = 0, batch: int = 0, seq: int = 4096, **run: Any
) -> tuple[str, ...]:
    gpus = gpus or 8 * layout.model_parallel_size * layout.expert_model_parallel_size
    dp = layout.data_parallel_size(gpus)
    batch = batch or 64 * dp * layout.micro_batch_size
    return arguments(model, layout, gpus, batch, seq, Run(**run))


# --- the table


def test_every_flag_of_the_table_exists() -> None:
    assert {*FLAGS.values(), *OFF_FLAGS.values()} <= KNOWN.keys()


def test_switches_are_switches_and_values_take_one() -> None:
    for name, flag in OFF_FLAGS.items():
        assert KNOWN[flag]["action"] == "store_false", flag
        assert KNOWN[flag]["dest"] == name


def test_the_table_names_megatrons_own_fields() -> None:
    renamed = {"num_moe_experts": "num_experts"}
    for name, flag in FLAGS.items():
        assert KNOWN[flag]["dest"] == renamed.get(name, name), flag


def test_tokens_leave_out_what_is_off_and_keep_zero() -> None:
    values = {"bf16": True, "fp16": False, "fp8": None, "eval_iters": 0, "hidden_dropout": 0.0}
    values |= {"cuda_graph_scope": [], "recompute_modules": ["mlp", "moe"]}
    values |= {"add_bias_linear": True, "apply_rope_fusion": False}
    assert tokens(values) == (
        "--bf16",
        "--eval-iters",
        "0",
        "--hidden-dropout",
        "0.0",
        "--recompute-modules",
        "mlp",
        "moe",
        "--no-rope-fusion",
    )


# --- one job in full


def test_gpt_175b_in_full() -> None:
    layout = Layout.parse("tp8 pp8 vpp3 mbs1 sp zero1")
    found = parse(job(GPT, layout, 1024, 1536, 2048, train_iters=20))
    expected = {
        "num_layers": 96,
        "hidden_size": 12288,
        "num_attention_heads": 96,
        "group_query_attention": False,
        "add_bias_linear": True,
        "position_embedding_type": "learned_absolute",
        "max_position_embeddings": 2048,
        "untie_embeddings_and_output_weights": False,
        "tensor_model_parallel_size": 8,
        "pipeline_model_parallel_size": 8,
        "num_virtual_stages_per_pipeline_rank": 3,
        "sequence_parallel": True,
        "micro_batch_size": 1,
        "global_batch_size": 1536,
        "use_distributed_optimizer": True,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "overlap_p2p_comm": True,
        "bf16": True,
        "accumulate_allreduce_grads_in_fp32": True,
        "grad_reduce_in_bf16": False,
        "recompute_granularity": None,
        "mock_data": True,
        "tokenizer_type": "NullTokenizer",
        "vocab_size": 51199,
        "train_iters": 20,
        "expert_model_parallel_size": 1,
        "create_attention_mask_in_dataloader": False,
    }
    assert {name: getattr(found, name) for name in expected} == expected


def test_the_file_form_is_read_by_argparse_and_by_bash(tmp_path: Path) -> None:
    layout = Layout.parse("tp2 pp4 mbs1 zero1 stages=7,8,9,8 recompute=full/block/4")
    found = job(replace(MIXTRAL, num_layers=32), layout)
    (tmp_path / "args.txt").write_text(text(found))
    assert (tmp_path / "args.txt").read_text().count("\n") == len(found)
    assert parser().parse_args([f"@{tmp_path}/args.txt"]) == parse(found)
    read = 'mapfile -t a < "$1"; printf "%s\\0" "${a[@]}"'
    shown = subprocess.run(
        ["bash", "-c", read, "-", str(tmp_path / "args.txt")], capture_output=True, check=True
    )
    assert tuple(shown.stdout.decode().split("\0")[:-1]) == found


def test_a_line_end_in_an_argument_is_refused() -> None:
    with pytest.raises(ConfigError, match="line end"):
        text(job(GPT, Layout(), data_path=("a\nb",)))


def test_own_data_replaces_mock_data() -> None:
    run = {"data_path": ("1.0", "/d/x"), "tokenizer_type": "HuggingFaceTokenizer", "save": "/c"}
    found = parse(job(GPT, Layout(), tokenizer_model="gpt2", **run))
    assert (found.mock_data, found.data_path, found.vocab_size) == (False, ["1.0", "/d/x"], None)
    assert (found.save, found.load, found.tokenizer_model) == ("/c", "/c", "gpt2")


# --- families


def test_families_say_what_they_are() -> None:
    qwen = parse(job(QWEN, Layout.parse("tp2 pp2 ep8 mbs1 sp zero1")))
    assert (qwen.qk_layernorm, qwen.num_query_groups, qwen.num_experts) == (True, 4, 128)
    deepseek = parse(job(DEEPSEEK, Layout.parse("tp2 pp1 ep8 mbs1 sp zero1")))
    assert deepseek.moe_layer_freq == [0] * 3 + [1] * 58
    assert (deepseek.multi_latent_attention, deepseek.mtp_num_layers) == (True, 1)
    assert deepseek.moe_router_score_function == "sigmoid"
    oss = parse(job(GPT_OSS, Layout.parse("tp1 pp1 ep8 mbs1 zero1")))
    assert (oss.window_size, oss.window_attn_skip_freq, oss.softmax_type) == (
        (127, 0),
        2,
        "learnable",
    )
    assert (oss.quick_geglu, oss.glu_linear_offset, oss.swiglu) == (True, 1.0, False)
    nemotron = parse(job(NEMOTRON, Layout.parse("tp8 pp8 mbs1 sp zero1")))
    assert (nemotron.squared_relu, nemotron.add_bias_linear) == (True, False)
    plain = parse(job(LLAMA, Layout.parse("tp8 pp9 mbs1 sp zero1")))
    assert (plain.swiglu, plain.rotary_base, plain.softmax_type) == (True, 500_000, "vanilla")


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (BLOOM, "position_embedding_type: 'alibi' is not in Megatron-LM core_v0.16.1"),
        (replace(LLAMA, activation="gelu"), "activation: 'gated gelu'"),
        (replace(LLAMA, gated_linear_unit=False), "activation: 'silu'"),
        (replace(LLAMA, window_size=8, window_layers_fraction=0.3), "window_layers_fraction: 0.3"),
    ],
)
def test_what_megatron_lacks_is_refused(model: Model, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        job(model, Layout())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("tp1 pp1 mbs1 zero3 fw=fsdp2", "fw: 'fsdp2'"),
        ("tp1 pp2 mbs1 zero1 sched=zb1p", "sched: 'zb1p'"),
        ("tp1 pp1 mbs1 zero1 prec=fp16 grad=bf16", "grad: 'bf16'"),
        ("tp1 pp1 mbs1 zero1 overlap=param", "overlap: 'param'"),
        ("tp1 pp1 mbs1 zero0 offload=opt0.5", "offload: 0.5"),
        ("tp1 pp1 mbs1 zero1 graph=moe", "graph: 'moe'"),
        ("tp1 pp1 ep2 mbs1 zero1", "ep: 2"),
        ("tp1 pp5 mbs1 zero1", "num_layers: 96 layers"),
        ("tp1 pp2 mbs1 zero1 stages=40,40", "stages: '40,40'"),
        ("tp1 pp2 vpp2 mbs1 zero1 stages=48,40,8", "stages: '48,40,8'"),
        ("tp1 pp1 cp3 cpcomm=a2a+p2p mbs1 zero1", "cpcomm: 'a2a\\+p2p'"),
        ("tp1 pp1 mbs1 zero1 shard=3", "shard: 3"),
    ],
)
def test_what_the_flags_cannot_say_is_refused(words: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        job(GPT, Layout.parse(words))


@pytest.mark.parametrize(("gpus", "batch"), [(12, 64), (4, 64), (0, 64), (16, 63), (16, 0)])
def test_gpus_and_batch_must_divide(gpus: int, batch: int) -> None:
    with pytest.raises(ConfigError):
        arguments(GPT, Layout.parse("tp8 pp1 mbs1 zero1"), gpus, batch, 2048)


def test_every_catalog_model_exports_or_says_why() -> None:
    refused = {}
    for name in catalog.names("model"):
        try:
            parse(arguments(catalog.model(name), Layout(), 8, 64, 2048))
        except ConfigError as error:
            refused[name] = str(error)
    assert all("not in Megatron-LM" in reason for reason in refused.values()), refused
    assert "bloom-176b" in refused
    assert {"gpt-175b", "llama-3.1-405b", "mixtral-8x7b", "deepseek-v3"}.isdisjoint(refused)


# --- environment and script


@pytest.mark.parametrize(
    ("words", "changed", "dispatcher"),
    [
        ("tp1 pp1 ep8 mbs1 zero1", {}, "alltoall"),
        ("tp1 pp1 ep16 mbs1 zero1", {}, "flex"),
        ("tp2 pp1 ep8 etp2 mbs1 sp zero1", {}, "flex"),
        ("tp1 pp1 ep16 mbs1 zero1", {"domain_gpus": 72}, "alltoall"),
        ("tp1 pp1 ep16 mbs1 zero1", {"domain_gpus": 4}, "alltoall"),
        ("tp1 pp1 ep16 mbs1 zero1", {"generation": "cdna3"}, "alltoall"),
        ("tp1 pp1 ep16 mbs1 zero1 fw=megatron-lm", {}, "alltoall"),
    ],
)
def test_tokens_for_several_nodes_are_forwarded(
    words: str, changed: dict[str, Any], dispatcher: str
) -> None:
    """As the framework megatron-core is predicted: a token goes to a node once."""
    whole = TrainingJob(
        model=QWEN,
        layout=Layout.parse(words),
        num_gpus=64,
        global_batch_size=64,
        seq_length=4096,
        **changed,
    )
    found = fields(whole)
    assert found["moe_token_dispatcher_type"] == dispatcher
    assert ("moe_flex_dispatcher_backend" in found) == (dispatcher == "flex")


@pytest.mark.parametrize(
    ("words", "generation", "connections"),
    [
        ("tp8 pp1 mbs1 zero1", "hopper", "1"),
        ("tp1 pp1 cp2 mbs1 zero1", "ampere", "1"),
        ("tp1 pp8 mbs1 zero1", "hopper", None),
        ("tp8 pp1 mbs1 zero1", "blackwell", "32"),
        ("tp8 pp1 mbs1 zero3", "hopper", "8"),
        ("tp8 pp1 ep8 mbs1 zero1 overlap=grad+param+moe", "hopper", "32"),
    ],
)
def test_connections(words: str, generation: str, connections: str | None) -> None:
    found = environment(Layout.parse(words), generation)
    assert found.get("CUDA_DEVICE_MAX_CONNECTIONS") == connections


def test_graphs_exclude_nccl_graph_registration() -> None:
    # Megatron-LM asserts this beside expandable segments.
    assert environment(Layout(cuda_graph_scope="attn"), "hopper")["NCCL_GRAPH_REGISTER"] == "0"
    assert "NCCL_GRAPH_REGISTER" not in environment(Layout(), "hopper")


def test_script_hands_the_arguments_over_unchanged(tmp_path: Path) -> None:
    (tmp_path / "my args.txt").write_text(text(("--a", "(t*2|)*3", "$HOME 'q'")))
    fake = tmp_path / "torchrun"
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$A_VALUE" "$@"\n')
    fake.chmod(0o755)
    body = script({"A_VALUE": "x y'z"}, 1, 8, "my args.txt")
    (tmp_path / "run.sh").write_text(body)
    shown = subprocess.run(
        ["bash", str(tmp_path / "run.sh")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "MEGATRON_LM": "/m"},
        capture_output=True,
        check=True,
        text=True,
    )
    expected = (
        "--nnodes 1 --node-rank 0 --nproc-per-node 8 --master-addr localhost --master-port 29500"
    )
    assert shown.stdout.splitlines() == [
        "x y'z",
        *shlex.split(expected),
        "/m/pretrain_gpt.py",
        "--a",
        "(t*2|)*3",
        "$HOME 'q'",
    ]
    assert "core_v0.16.1" in body


def test_script_of_several_nodes_asks_which_this_is(tmp_path: Path) -> None:
    (tmp_path / "args.txt").write_text("--a\n")
    (tmp_path / "torchrun").write_text('#!/bin/bash\necho "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    (tmp_path / "run.sh").write_text(script({}, 128, 8, "args.txt"))

    def started(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(tmp_path / "run.sh")],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "MEGATRON_LM": "/m", **variables},
            capture_output=True,
            check=False,
            text=True,
        )

    known = {"NODE_RANK": "3", "MASTER_ADDR": "node0"}
    for missing in known:
        refused = started(**{k: v for k, v in known.items() if k != missing})
        assert refused.returncode != 0
        assert missing in refused.stderr
    assert started(**known).stdout.startswith(
        "--nnodes 128 --node-rank 3 --nproc-per-node 8 --master-addr node0"
    )


# --- real megatron-core: the same fields arrive


@pytest.fixture(scope="module")
def megatron() -> Iterator[SimpleNamespace]:
    """megatron-core 0.16.1 as if TransformerEngine were there (its kernels are never called)."""
    pytest.importorskip("megatron.core")
    with pytest.MonkeyPatch.context() as patch:
        import megatron.core.models.common.embeddings.rope_utils as rope
        import megatron.core.transformer.moe.moe_utils as moe
        import megatron.core.transformer.transformer_config as config
        import torch
        from megatron.core.transformer.transformer_block import get_num_layers_to_build

        patch.setattr(config, "is_te_min_version", lambda *_: True)
        patch.setattr(rope, "fused_apply_rotary_pos_emb", object())
        for name in ("permute", "permute_with_probs", "unpermute"):
            patch.setattr(moe, f"fused_{name}", object(), raising=False)
        for name in ("sort_chunks_by_index", "sort_chunks_by_index_with_probs"):
            patch.setattr(moe, f"fused_{name}", object(), raising=False)
        yield SimpleNamespace(config=config, torch=torch, layers=get_num_layers_to_build)


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """What Megatron-LM's own validation settles before the config is built (validate_args)."""
    spelled = args.pipeline_model_parallel_layout
    chunks = args.num_virtual_stages_per_pipeline_rank or 1
    assert not (spelled and args.num_virtual_stages_per_pipeline_rank)
    args.virtual_pipeline_model_parallel_size = None if spelled or chunks == 1 else chunks
    if chunks == 1 and not spelled:
        args.overlap_p2p_comm = False
    assert not (args.overlap_param_gather and not args.overlap_grad_reduce)
    assert not (args.overlap_param_gather and not args.use_distributed_optimizer)
    assert not (args.optimizer_cpu_offload and not args.use_precision_aware_optimizer)
    assert not (args.tp_comm_overlap and not args.sequence_parallel)
    assert ("a2a+p2p" in args.cp_comm_type) == bool(args.hierarchical_context_parallel_sizes)
    assert args.max_position_embeddings >= args.seq_length
    assert args.bf16 != args.fp16
    assert not (args.multi_latent_attention and args.group_query_attention)
    assert args.use_megatron_fsdp == (args.ckpt_format == "fsdp_dtensor")
    args.bias_gelu_fusion = args.bias_gelu_fusion and args.add_bias_linear
    args.add_qkv_bias = args.add_qkv_bias or args.add_bias_linear
    return args


def transformer_config(megatron: SimpleNamespace, args: argparse.Namespace) -> Any:
    """The config of parsed arguments: fields of the same name, and the ones Megatron-LM renames."""
    cls = (
        megatron.config.MLATransformerConfig
        if args.multi_latent_attention
        else megatron.config.TransformerConfig
    )
    values = {
        f.name: getattr(args, f.name) for f in dataclasses.fields(cls) if hasattr(args, f.name)
    }
    silu, gelu = megatron.torch.nn.functional.silu, megatron.torch.nn.functional.gelu
    activation = silu if args.swiglu else gelu
    if args.squared_relu:
        activation = megatron.config.__dict__.get("squared_relu", activation)
    if args.quick_geglu:
        activation = megatron.config.quick_gelu
    half = megatron.torch.float16 if args.fp16 else megatron.torch.bfloat16
    values |= {
        "activation_func": activation,
        "gated_linear_unit": args.swiglu or args.quick_geglu,
        "bias_activation_fusion": args.bias_swiglu_fusion if args.swiglu else args.bias_gelu_fusion,
        "params_dtype": half,
        "pipeline_dtype": half,
        "batch_p2p_comm": not args.overlap_p2p_comm,
        "num_moe_experts": args.num_experts,
        "num_layers_in_first_pipeline_stage": args.decoder_first_pipeline_num_layers,
        "num_layers_in_last_pipeline_stage": args.decoder_last_pipeline_num_layers,
        "num_query_groups": args.num_query_groups if args.group_query_attention else None,
        "fp8_param": args.fp8_param_gather,
        "cp_comm_type": args.cp_comm_type[0],
        "cuda_graph_scope": [
            megatron.config.CudaGraphScope[s] for s in args.cuda_graph_scope or ()
        ],
        "attention_backend": megatron.config.AttnBackend[args.attention_backend],
    }
    if args.rope_type is None:
        values.pop("rope_type", None)
    return cls(**{name: value for name, value in values.items() if value is not None})


def expected_model(m: Model) -> dict[str, Any]:
    """What the config must say about the model, from the model alone."""
    found: dict[str, Any] = {
        name: getattr(m, name)
        for name in [
            "num_layers",
            "hidden_size",
            "num_attention_heads",
            "ffn_hidden_size",
            "normalization",
            "add_bias_linear",
        ]
    }
    found |= {"layernorm_epsilon": m.norm_epsilon, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    found |= {"gated_linear_unit": m.gated_linear_unit, "mtp_num_layers": m.mtp_num_layers or None}
    if m.kv_lora_rank:
        names = ["q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"]
        found |= {name: getattr(m, name) for name in names} | {"multi_latent_attention": True}
        found |= {"rotary_base": m.rotary_base, "rope_type": "rope", "qk_layernorm": True}
    else:
        found |= {"num_query_groups": m.num_query_groups, "kv_channels": m.kv_channels}
        found |= {
            "qk_layernorm": m.qk_layernorm,
            "add_qkv_bias": m.add_qkv_bias or m.add_bias_linear,
        }
    if m.window_size:
        found |= {"window_size": (m.window_size - 1, 0), "window_attn_skip_freq": 2}
    if m.num_moe_experts:
        names = ["num_moe_experts", "moe_router_topk", "moe_ffn_hidden_size"]
        found |= {name: getattr(m, name) for name in names}
        found |= {
            "moe_shared_expert_intermediate_size": m.moe_shared_expert_intermediate_size or None
        }
        found |= {
            "moe_router_num_groups": m.moe_router_num_groups or None,
            "moe_router_group_topk": m.moe_router_group_topk or None,
        }
        found |= {"moe_grouped_gemm": True, "moe_token_dispatcher_type": "alltoall"}
        dense = m.moe_first_dense_layers
        found["moe_layer_freq"] = [0] * dense + [1] * (m.num_layers - dense) if dense else 1
    else:
        found["num_moe_experts"] = None
    return found


FORMATS = {
    "fp8": ("hybrid", "delayed", None),
    "fp8-tensorwise": ("hybrid", "tensorwise", None),
    "fp8-blockwise": ("e4m3", "blockwise", None),
    "mxfp8": ("e4m3", "mxfp8", None),
    "nvfp4": (None, None, "e2m1"),
}
GRAPHS = {"none": [], "attn": ["attn"], "mlp": ["mlp"], "full": []}
GRAPHS["moe"] = ["moe_router", "moe_preprocess"]


def expected_layout(m: Model, x: Layout) -> dict[str, Any]:
    """What the config must say about the layout, from the layout alone."""
    sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    found: dict[str, Any] = {name: getattr(x, name) for name in (*sizes, "sequence_parallel")}
    vpp = x.virtual_pipeline_model_parallel_size
    found["virtual_pipeline_model_parallel_size"] = vpp if vpp > 1 else None
    if vpp > 1:
        group = x.microbatch_group_size_per_vp_stage or x.pipeline_model_parallel_size
        found |= {"microbatch_group_size_per_vp_stage": group}
        found |= {"overlap_p2p_comm": "p2p" in x.overlap, "batch_p2p_comm": "p2p" not in x.overlap}
    if x.context_parallel_size > 1:
        found["cp_comm_type"] = x.cp_comm_type
    if m.num_moe_experts:
        found["expert_model_parallel_size"] = x.expert_model_parallel_size
        found["expert_tensor_parallel_size"] = x.expert_tensor_parallel_size
        ranks = x.expert_model_parallel_size * x.expert_tensor_parallel_size
        if ranks > 8 and ranks % 8 == 0:
            found |= {"moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": "deepep"}
    full, selective = x.recompute_granularity == "full", x.recompute_granularity == "selective"
    found["recompute_granularity"] = x.recompute_granularity if full or selective else None
    found["recompute_method"] = x.recompute_method if full else None
    found["recompute_num_layers"] = x.recompute_num_layers if full else None
    if selective:
        found["recompute_modules"] = list(x.recompute_modules)
    fp8, recipe, fp4 = FORMATS.get(x.precision, (None, None, None))
    found |= {"fp8": fp8, "fp4": fp4, "fp16": x.precision == "fp16", "bf16": x.precision != "fp16"}
    if recipe:
        found["fp8_recipe"] = recipe
    found["tp_comm_overlap"] = "tp" in x.overlap and x.tensor_model_parallel_size > 1
    found["overlap_moe_expert_parallel_comm"] = "moe" in x.overlap
    found["cuda_graph_impl"] = "none" if x.cuda_graph_scope == "none" else "transformer_engine"
    return found


def stage_layers(megatron: SimpleNamespace, config: Any, layout: Layout) -> tuple[int, ...]:
    """Decoder layers that megatron-core builds on every virtual stage, in the model's order."""
    pp, vpp = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    if config.pipeline_model_parallel_layout is not None:
        plan = config.pipeline_model_parallel_layout.layout
        kind = [[[k.name for k in chunk] for chunk in rank] for rank in plan]
        return tuple(kind[r][v].count("decoder") for v in range(vpp) for r in range(pp))
    return tuple(
        megatron.layers(config, vp_stage=v if vpp > 1 else None, pp_rank=r)
        for v in range(vpp)
        for r in range(pp)
    )


def assert_arrives(
    megatron: SimpleNamespace, model: Model, layout: Layout, gpus: int, batch: int
) -> None:
    args = checked(parse(arguments(model, layout, gpus, batch, 4096)))
    config = transformer_config(megatron, args)
    expected = expected_model(model) | expected_layout(model, layout)
    found = {name: getattr(config, name) for name in expected}
    assert found == expected, str(layout)
    assert [scope.name for scope in config.cuda_graph_scope] == GRAPHS[layout.cuda_graph_scope]
    pp, vpp = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    even = (model.num_layers // (pp * vpp),) * (pp * vpp)
    assert stage_layers(megatron, config, layout) == (layout.stage_layers or even), str(layout)
    dp, cp = layout.data_parallel_size(gpus), layout.context_parallel_size
    assert (args.micro_batch_size, args.global_batch_size) == (layout.micro_batch_size, batch)
    assert args.use_distributed_optimizer == (layout.zero_stage > 0)
    assert args.data_parallel_sharding_strategy == {3: "optim_grads_params"}.get(
        layout.zero_stage, "no_shard"
    )
    shards = layout.shard_group_size or dp * cp
    if layout.zero_stage:
        assert args.num_distributed_optimizer_instances * shards == dp * cp
    assert args.overlap_grad_reduce == ("grad" in layout.overlap)
    assert args.overlap_param_gather == ("param" in layout.overlap and layout.zero_stage > 0)
    assert args.accumulate_allreduce_grads_in_fp32 == (layout.grad_reduce_dtype == "fp32")
    assert args.grad_reduce_in_bf16 == (layout.grad_reduce_dtype == "bf16")
    assert args.optimizer_cpu_offload == (layout.optimizer_offload_fraction > 0)
    if layout.optimizer_offload_fraction:
        assert args.optimizer_offload_fraction == layout.optimizer_offload_fraction


STAGED = {
    96: ("pp4 mbs1 zero1 stages=23,25*2,23", "pp2 vpp2 mbs1 zero1 stages=23,25,25,23"),
    126: ("pp8 vpp2 mbs1 zero1 stages=7,8*14,7", "pp16 mbs1 zero1 stages=7,8*14,7"),
    32: ("pp4 vpp2 mbs1 zero1 stages=3,4*3,4,4*2,5", "pp3 mbs1 zero1 stages=10,11*2"),
    94: ("pp4 mbs1 zero1 stages=23,24*2,23", "pp4 mbs1 zero1 stages=20,25,25,24"),
    61: (
        "pp4 mbs1 zero1 stages=15,16,16,14",
        "pp2 mbs1 zero1 stages=31,30",
        "pp4 mbs1 zero1 stages=16*2,15,14",
    ),
    36: ("pp4 vpp2 mbs1 zero1 stages=4,5,5,4,4,5,5,4", "pp2 mbs1 zero1 stages=0,36"),
}


def drawn(rng: random.Random, model: Model) -> Layout:
    """Any layout of the grammar, legal or not."""
    vpp = rng.choice([1, 1, 1, 2, 3, 5])
    sizes = [1, 1, 2, 4, 8]
    granularity = rng.choice(["none", "selective", "selective", "full"])
    modules = [name for name in RECOMPUTE_MODULES if rng.random() < 0.3]
    experts = bool(model.num_moe_experts)
    staged = rng.random() < 0.3 and STAGED[model.num_layers]
    base = (
        Layout.parse("tp1 " + rng.choice(staged))
        if staged
        else Layout(
            pipeline_model_parallel_size=rng.choice([1, 2, 4, 6, 8, 9]),
            virtual_pipeline_model_parallel_size=vpp,
            schedule="interleaved" if vpp > 1 else "1f1b",
        )
    )
    chunked = base.virtual_pipeline_model_parallel_size > 1
    return replace(
        base,
        tensor_model_parallel_size=rng.choice(sizes),
        microbatch_group_size_per_vp_stage=rng.choice([0, 0, 16]) if chunked else 0,
        context_parallel_size=rng.choice([1, 1, 2, 4]),
        cp_comm_type=rng.choice(CP_COMM_TYPES),
        expert_model_parallel_size=rng.choice([1, 2, 4, 8]) if experts else 1,
        expert_tensor_parallel_size=rng.choice([1, 1, 2]) if experts else 1,
        micro_batch_size=rng.choice([1, 2]),
        sequence_parallel=rng.random() < 0.7,
        zero_stage=rng.choice([0, 1, 1, 1, 3]),
        shard_group_size=rng.choice([0, 0, 4]),
        recompute_granularity=granularity,
        recompute_method=rng.choice(["uniform", "block"]) if granularity == "full" else "uniform",
        recompute_num_layers=rng.choice([1, 2]) if granularity == "full" else 0,
        recompute_modules=tuple(modules) if granularity == "selective" else (),
        precision=rng.choice(["bf16", "bf16", *PRECISIONS]),
        grad_reduce_dtype=rng.choice(["fp32", "bf16"]),
        optimizer_offload_fraction=rng.choice([0.0, 0.0, 0.5, 1.0]),
        cuda_graph_scope=rng.choice(["none", "none", *GRAPH_SCOPES]),
        overlap=tuple(name for name in OVERLAPS if rng.random() < (0.2 if name == "moe" else 0.7)),
    )


def legal_layouts(model: Model, wanted: int, gpus: int, batch: int) -> list[Layout]:
    """`wanted` different layouts that break no rule, the same ones every time."""
    rng = random.Random(model.name)
    limits = Limits(
        precisions=("bf16", "fp16", "fp8", "mxfp8", "nvfp4"), legal={"zero_stage": (0, 1, 3)}
    )
    found: dict[Layout, None] = {}
    for _ in range(60):
        layouts = [drawn(rng, model) for _ in range(4000)]
        columns = knobs(layouts, [gpus] * len(layouts), [batch] * len(layouts))
        legal, _ = violations(RuleCase(model=model.shape(4096), knobs=columns, limits=limits))
        found |= dict.fromkeys(np.array(layouts, dtype=object)[legal])
        if len(found) >= wanted:
            break
    assert len(found) >= wanted, len(found)
    return list(found)[:wanted]


@pytest.mark.megatron
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_random_legal_layouts_arrive(megatron: SimpleNamespace, model: Model) -> None:
    gpus, batch = 2304, 9216
    layouts = legal_layouts(model, 40, gpus, batch)
    for layout in layouts:
        assert_arrives(megatron, model, layout, gpus, batch)


@pytest.mark.megatron
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_uneven_stages_arrive(megatron: SimpleNamespace, model: Model) -> None:
    for words in STAGED[model.num_layers]:
        layout = Layout.parse(f"tp1 {words}")
        gpus = 8 * layout.pipeline_model_parallel_size
        assert_arrives(megatron, model, layout, gpus, 512)


@pytest.mark.parametrize(
    ("layers", "stages", "flags"),
    [
        (
            94,
            "23,24*2,23",
            ["--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split"],
        ),
        (95, "23,24*3", ["--account-for-embedding-in-pipeline-split"]),
        (95, "24*3,23", ["--account-for-loss-in-pipeline-split"]),
        (96, "24*4", []),
        (
            96,
            "20,26*2,24",
            [
                "--decoder-first-pipeline-num-layers",
                "20",
                "--decoder-last-pipeline-num-layers",
                "24",
            ],
        ),
        (96, "21,25*3", ["--decoder-first-pipeline-num-layers", "21"]),
        (96, "26*2,24,20", ["--pipeline-model-parallel-layout", "Et*26|t*26|t*24|t*20L"]),
    ],
)
def test_how_stages_are_said(layers: int, stages: str, flags: list[str]) -> None:
    model = replace(GPT, num_layers=layers)
    layout = Layout.parse("tp1 pp4 mbs1 zero1")
    plain = job(replace(GPT, num_layers=96), layout)
    found = job(model, replace(layout, stage_layers=Layout.parse(f"stages={stages}").stage_layers))
    family = ("--account-for", "--decoder-", "--pipeline-model-parallel-layout", "--num-virtual")
    assert not [token for token in plain if token.startswith(family)]
    starts = [i for i, token in enumerate(found) if token.startswith(family)]
    pairs = [token for i in starts for token in (found[i], found[i + 1])]
    said = [token for token in pairs if token.startswith(family) or not token.startswith("--")]
    assert list(dict.fromkeys(said)) == flags
