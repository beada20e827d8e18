"""Words of measured rows: spelling does not matter, unknown words are named."""

from dataclasses import replace

import pytest

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.layout import PRECISIONS, RECOMPUTE_MODULES, SCHEDULES
from autoparallel.measured import words
from autoparallel.measured.cases import cluster_of_gpu, read
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
