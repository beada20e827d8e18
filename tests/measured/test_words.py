"""Words of measured rows: spelling does not matter, unknown words are named."""

from dataclasses import replace

import pytest

from autoparallel import catalog
from autoparallel.constants import Constants
from autoparallel.errors import ConfigError
from autoparallel.framework import framework_of
from autoparallel.layout import PRECISIONS, RECOMPUTE_MODULES, SCHEDULES
from autoparallel.measured import words
from autoparallel.measured.cases import case, cluster_of_gpu, read, row_traits
from autoparallel.measured.rows import MeasuredRun

RUN = MeasuredRun(
    framework="Megatron-LM",
    num_layers=24,
    hidden_size=2048,
    num_attention_heads=16,
    seq_length=2048,
    gpu="a100-sxm-80gb",
    num_gpus=8,
    tensor_model_parallel_size=2,
    pipeline_model_parallel_size=2,
    micro_batch_size=1,
    global_batch_size=16,
    iteration_s=1.0,
)


@pytest.mark.parametrize("known", [*PRECISIONS, *SCHEDULES])
def test_every_known_word_means_itself_in_any_spelling(known: str) -> None:
    table = PRECISIONS if known in PRECISIONS else SCHEDULES
    for spelt in (known, known.upper(), known.replace("-", "_"), known.replace("-", " ")):
        assert words.meant(spelt, table, {}) == known


@pytest.mark.parametrize(
    ("column", "printed", "word"),
    [
        ("precision", "FP8_CS", "prec=fp8-tensorwise"),
        ("precision", "fp8-sc", "prec=fp8-blockwise"),
        ("precision", "MXFP8", "prec=mxfp8"),
        ("precision", "fp4", "prec=nvfp4"),
        ("recompute", "Full", "recompute=full/uniform/1"),
        ("recompute", "layernorm, moe_act", "recompute=layernorm+moe_act"),
        ("recompute", "mlp", "recompute=mlp"),
        ("schedule", "ZB-H1", "sched=zb1p"),
        ("schedule", "GPipe", "sched=bfs"),
    ],
)
def test_a_source_s_own_word_reaches_the_layout(column: str, printed: str, word: str) -> None:
    assert word in str(read(replace(RUN, **{column: printed})).layout).split()


@pytest.mark.parametrize(("column", "printed"), [("recompute", "sometimes"), ("gpu", "tpu-v5p")])
def test_a_word_that_means_nothing_is_named(column: str, printed: str) -> None:
    with pytest.raises(ConfigError, match=printed):
        read(replace(RUN, **{column: printed}))


@pytest.mark.parametrize(
    ("printed", "gpu"),
    [
        ("NVIDIA H200", "h200-sxm-141gb"),
        ("h100 sxm 80gb", "h100-sxm-80gb"),
        ("h100-pcie", "h100-pcie-80gb"),
        ("Tesla V100-SXM2-16GB", "v100-sxm-16gb"),
        ("A100_SXM4_40GB", "a100-sxm-40gb"),
        ("gb300", "gb300-nvl72"),
        ("B300", "b300-sxm-288gb"),
    ],
)
def test_a_gpu_is_known_by_its_printed_name(printed: str, gpu: str) -> None:
    assert cluster_of_gpu(printed, None).gpu.name == gpu


def test_every_gpu_of_the_catalog_means_itself() -> None:
    names = catalog.names("gpu")
    for name in names:
        assert words.gpu_meant(name, lambda text: text in names, names) == name


def test_modules_keep_the_order_of_the_layout_grammar() -> None:
    assert words.recompute_modules("moe_act/core_attn") == ("core_attn", "moe_act")
    assert words.recompute_modules("+".join(reversed(RECOMPUTE_MODULES))) == RECOMPUTE_MODULES


TEST = "functional test; recompute modules: default"


@pytest.mark.parametrize(
    ("model", "notes", "kernels", "kept"),
    [
        ("gpt/tp1_pp4", TEST, "transformer_engine", True),
        ("gpt/tp1_pp2_cp4_nondeterministic", TEST, "transformer_engine", False),
        ("gpt/tp1_pp4_resume_torch_dist", TEST, "transformer_engine", False),
        ("gpt/tp1_pp4_resume_torch_dist", TEST, "local", True),
        ("gpt/tp1_pp4", "", "local", False),
    ],
)
def test_functional_tests_keep_their_scores(
    model: str, notes: str, kernels: str, kept: bool
) -> None:
    assert words.keeps_scores(model, notes, kernels) is kept
    traits = row_traits(
        replace(RUN, model=model, notes=notes, kernels=kernels), framework_of("")[0]
    )
    assert traits.stores_scores == kept
    several = replace(RUN, model=model, notes=notes, kernels=kernels, context_parallel_size=2)
    assert row_traits(several, framework_of("")[0]).stores_scores == 0


@pytest.mark.parametrize(
    ("model", "notes", "layers", "chunks"),
    [
        ("gpt/tp1_pp4_vp1", TEST, 3, 3),
        ("gpt/tp1_pp4_vp2_decoupled", TEST, 4, 2),
        ("gpt/tp1_pp4_vp0", TEST, 4, 4),
        ("gpt/tp1_pp4", TEST, 3, 1),
        ("a vp1_ model", "", 3, 1),
    ],
)
def test_functional_tests_name_the_layers_of_a_virtual_stage(
    model: str, notes: str, layers: int, chunks: int
) -> None:
    assert words.chunks_of_functional_test(model, notes, layers) == chunks


@pytest.mark.parametrize(
    ("source", "compiled"),
    [
        ("torchtitan benchmarks/llama3_h100_202412_torchtitan.md", False),
        ("torchtitan benchmarks/llama3-8b_h200_202506_x.md", True),
        ("torchtitan benchmarks/asyncTP_2025-06.md", True),
        ("arXiv:2410.06511 table 3", False),
        ("own runs", True),
    ],
)
def test_torchtitan_compiles_its_loss_since_2025(source: str, compiled: bool) -> None:
    assert words.compiles_loss(source) is compiled
    run = replace(RUN, framework="torchtitan", compiled=True, source=source)
    record = framework_of("torchtitan")[0]
    copies = 0.0 if compiled else record.traits.fp32_logits_copies
    assert row_traits(run, record).fp32_logits_copies == copies


def test_older_software_has_traits_of_its_own() -> None:
    run = replace(RUN, framework="nanotron", notes="after_pp_fix=False")
    record = framework_of("nanotron")[0]
    assert row_traits(run, record).fp32_logits_copies == 1
    assert row_traits(replace(run, notes=""), record).fp32_logits_copies == 2


@pytest.mark.parametrize(("intra", "buffers"), [(None, 0), (457.0, 0), (425.0, 2)])
@pytest.mark.parametrize("notes", ["", "after_pp_fix=False"])
def test_gathered_inputs_have_a_buffer_on_slow_nodes_alone(intra, buffers, notes) -> None:
    run = replace(RUN, framework="nanotron", gpu="h100-sxm-80gb", notes=notes)
    run = replace(run, measured_allreduce_busbw_intra_gbps=intra)
    traits = case([read(run)], Constants()).traits
    assert traits.gather_buffers == buffers
    assert traits.fp32_logits_copies == (1 if notes else 2)
