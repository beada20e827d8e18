"""What a row is understood as: its own words first, then its framework's defaults."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoparallel.constants import Constants
from autoparallel.cost.step import step_time
from autoparallel.errors import CatalogError
from autoparallel.measured.cases import DEFAULT_VOCABULARY, case, read, row_traits, select
from autoparallel.measured.rows import MeasuredRun

RUN = MeasuredRun(
    framework="Megatron-LM",
    num_layers=24,
    hidden_size=2048,
    num_attention_heads=16,
    seq_length=2048,
    gpu="a100-sxm-80gb",
    num_gpus=16,
    tensor_model_parallel_size=2,
    pipeline_model_parallel_size=2,
    micro_batch_size=1,
    global_batch_size=16,
    iteration_s=1.5,
)


def test_the_defaults_of_a_silent_row():
    reading = read(RUN)
    model, layout = reading.model, reading.layout
    assert (model.vocab_size, reading.vocabulary_stated) == (DEFAULT_VOCABULARY, False)
    assert model.ffn_hidden_size == 4 * 2048
    assert (model.num_query_groups, model.kv_channels) == (16, 128)
    assert (model.gated_linear_unit, model.normalization) == (False, "LayerNorm")
    assert model.num_moe_experts == 0
    assert layout.grad_reduce_dtype == "fp32"
    assert layout.precision == "bf16"
    assert (layout.recompute_granularity, layout.schedule) == ("none", "1f1b")
    assert layout.zero_stage == reading.framework.defaults["zero_stage"]
    assert layout.virtual_pipeline_model_parallel_size == 1


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"vocab_size": 32000}, {"vocab_size": 32000}),
        ({"swiglu": 1}, {"gated_linear_unit": True, "normalization": "RMSNorm"}),
        ({"num_query_groups": 4}, {"num_query_groups": 4}),
        ({"ffn_hidden_size": 5632}, {"ffn_hidden_size": 5632}),
        (
            {"num_moe_experts": 8, "moe_router_topk": 2},
            {"num_moe_experts": 8, "moe_router_topk": 2},
        ),
        ({"tied_embeddings": 0}, {"untie_embeddings_and_output_weights": True}),
        ({"tied_embeddings": 1}, {"untie_embeddings_and_output_weights": False}),
    ],
)
def test_a_row_is_believed_about_its_model(said, expected):
    model = read(replace(RUN, **said)).model
    assert {name: getattr(model, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"virtual_pipeline_model_parallel_size": 3}, ("vpp3",)),
        ({"sequence_parallel": 1}, ("sp",)),
        ({"zero_stage": 3, "zero_group_size": 8}, ("zero3", "shard=8")),
        ({"recompute": "full"}, ("recompute=full/uniform/1",)),
        ({"recompute": "full", "recompute_num_layers": 4}, ("recompute=full/block/4",)),
        ({"recompute": "full", "recompute_num_layers": 40}, ("recompute=full/block/12",)),
        ({"recompute": "selective"}, ("recompute=core_attn",)),
        ({"precision": "fp8"}, ("prec=fp8",)),
        ({"precision": "fp16", "grad_reduce_dtype": ""}, ("prec=fp16", "grad=bf16")),
        ({"grad_reduce_dtype": "bf16"}, ("grad=bf16",)),
        ({"context_parallel_size": 2, "schedule": "zb1p"}, ("cp2", "sched=zb1p")),
        ({"expert_model_parallel_size": 8}, ("ep8",)),
    ],
)
def test_a_row_is_believed_about_its_layout(said, words):
    layout = str(read(replace(RUN, **said)).layout).split()
    assert set(words) <= set(layout)


def test_asynchronous_tensor_parallelism_is_a_switch_where_a_framework_leaves_it_one():
    said = replace(RUN, async_tensor_parallel=1)
    assert "tp" in read(replace(said, framework="torchtitan")).layout.overlap
    assert "tp" not in read(replace(said, framework="nanotron")).layout.overlap
    assert read(replace(said, async_tensor_parallel=0)).layout == read(RUN).layout


def test_a_job_that_was_not_compiled_moves_more_memory():
    said = [replace(RUN, framework="torchtitan", compiled=c) for c in (None, 1, 0)]
    silent, compiled, eager = (row_traits(r, read(r).framework).fused_kernels for r in said)
    assert silent == compiled == 1.0
    assert 0 < eager < 1


@pytest.mark.parametrize(
    ("intra", "family"),
    [(None, "nanotron"), (457.0, "nanotron"), (425.0, "nanotron-slow-nodes")],
)
def test_nodes_whose_links_measure_slow_are_a_family_of_their_own(intra, family):
    run = replace(
        RUN,
        framework="nanotron",
        gpu="h100-sxm-80gb",
        measured_allreduce_busbw_intra_gbps=intra,
    )
    assert read(run).family == f"{family}-hopper"
    assert read(replace(run, framework="Megatron-LM")).family == "megatron-hopper"
    assert read(replace(run, gpu="a100-sxm-80gb")).family == "nanotron-ampere"


def test_vpp_without_a_schedule_is_interleaved():
    assert (
        read(replace(RUN, virtual_pipeline_model_parallel_size=3)).layout.schedule == "interleaved"
    )


@pytest.mark.parametrize(
    ("printed", "name", "known"),
    [
        ("Megatron-LM", "megatron-lm", True),
        ("megatron-lm", "megatron-lm", True),
        ("NeMo/Megatron", "megatron-core", True),
        ("Megatron-DeepSpeed", "megatron-deepspeed", True),
        ("torchtitan", "fsdp2", True),
        ("YaFSDP", "yafsdp", True),
        ("nanotron", "nanotron", True),
        ("AA-Scaling (Aleph Alpha)", "aleph-alpha-scaling", True),
        ("nanotron of tomorrow", "nanotron", False),
        ("SuperFSDP", "fsdp", False),
        ("something else", "megatron-core", False),
    ],
)
def test_frameworks_by_any_name(printed, name, known):
    reading = read(replace(RUN, framework=printed))
    assert (reading.framework.name, reading.approximated) == (name, not known)


def test_an_unknown_gpu_is_named():
    with pytest.raises(CatalogError, match="h100-sxm-80g"):
        read(replace(RUN, gpu="h100-sxm-80g"))


def test_a_row_of_a_users_own_gpu_is_read_from_the_users_folder(own_dir):
    from autoparallel import catalog

    for group, name, changes in (
        ("gpu", "h100-sxm-80gb", {}),
        ("cluster", "dgx-h100", {"gpu": "mine"}),
    ):
        folder = own_dir / group
        folder.mkdir()
        source = catalog.data_dir() / "search_spaces" / group / f"{name}.yaml"
        text = source.read_text()
        for key, value in changes.items():
            lines = [f"{key}: {value}" if x.startswith(f"{key}:") else x for x in text.split("\n")]
            text = "\n".join(lines)
        (folder / "mine.yaml").write_text(
            "\n".join(x for x in text.split("\n") if not x.startswith("aliases:"))
        )
    with pytest.raises(CatalogError):
        read(replace(RUN, gpu="mine"))
    assert read(replace(RUN, gpu="mine"), own_dir).cluster.gpu.name == "mine"


def test_the_stated_fabric_is_used():
    slow = read(replace(RUN, interconnect="4 x 200 Gb/s per node")).cluster
    fast = read(replace(RUN, interconnect="8 x 400 Gb/s per node")).cluster
    assert slow.inter_link.bandwidth_bytes_per_s == pytest.approx(4 * 200e9 / 8 / 8)
    assert fast.inter_link.bandwidth_bytes_per_s == pytest.approx(8 * 400e9 / 8 / 8)


def test_a_row_is_the_same_alone_and_among_others():
    runs = [
        RUN,
        replace(RUN, gpu="h100-sxm-80gb", precision="fp8", framework="torchtitan", zero_stage=3),
        replace(RUN, num_moe_experts=8, moe_router_topk=2, expert_model_parallel_size=4),
        replace(RUN, num_gpus=64, pipeline_model_parallel_size=8, global_batch_size=64),
    ]
    readings = [read(r) for r in runs]
    together = step_time(case(readings, Constants())).iteration_s
    alone = [float(np.squeeze(step_time(case([r], Constants())).iteration_s)) for r in readings]
    assert together == pytest.approx(alone, rel=1e-12)
    picked = step_time(select(case(readings, Constants()), np.array([3, 1]))).iteration_s
    assert picked == pytest.approx([alone[3], alone[1]], rel=1e-12)
