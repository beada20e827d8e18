"""The reader of serving figures, and what a checkpoint's name means."""

from __future__ import annotations

import pytest

from autoparallel.errors import CatalogError, ProfileError
from autoparallel.measured.serving_models import checkpoint
from autoparallel.measured.serving_rows import is_serving_file, read_serving_runs

ROW = {
    "framework_version": "vllm 0.12.0",
    "model": "Qwen/Qwen3-32B",
    "gpu": "h100-sxm-80gb",
    "gpus": "2",
    "tp": "2",
    "isl": "1024",
    "osl": "128",
    "batch_or_concurrency": "8",
    "metric": "tpot_ms",
    "value": "18.0",
    "notes": "",
}


@pytest.fixture
def read(tmp_path):
    def of(*rows, columns=tuple(ROW)):
        path = tmp_path / "figures.csv"
        lines = [",".join(columns), *(",".join((ROW | row).values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
        return read_serving_runs(path)

    return of


def test_a_row_says_what_it_says(read):
    (run,) = read({})
    assert (run.tensor_parallel, run.pipeline_parallel, run.num_gpus) == (2, 1, 2)
    assert (run.concurrency, run.value, run.kv_dtype) == (8.0, 18.0, "")
    assert not run.disaggregated


def test_a_load_without_a_number_is_an_infinite_rate(read):
    rate = {"batch_or_concurrency": "max(infinite rate)", "metric": "tokens_s_per_gpu"}
    (run,) = read(rate)
    assert run.concurrency is None


def test_notes_say_how_attention_and_experts_are_split(read):
    copies, mapped, plain = read(
        {"notes": "agg;moe_tp=1;attn_dp=8", "tp": "1", "gpus": "8"},
        {"notes": "DEP8; trtllm-bench", "tp": "8", "gpus": "8"},
        {"notes": "agg;attn_dp="},
    )
    assert copies.attention_copies == 8
    assert (mapped.tensor_parallel, mapped.attention_copies, mapped.expert_parallel) == (1, 8, 8)
    assert (plain.attention_copies, plain.expert_parallel) == (1, 1)


def test_an_empty_tensor_parallel_size_is_all_gpus_of_the_row(read):
    (run,) = read({"tp": "", "gpus": "4"})
    assert run.tensor_parallel == 4


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"value": "0"}, "value '0' is not a finite number"),
        ({"value": "nan"}, "value 'nan'"),
        ({"isl": "10.5"}, "isl '10.5' is not a whole number"),
        ({"osl": ""}, "osl is empty but required"),
        ({"batch_or_concurrency": ""}, "tpot_ms needs batch_or_concurrency"),
        ({"batch_or_concurrency": "-3"}, "batch_or_concurrency '-3' is not in 1"),
    ],
)
def test_a_wrong_cell_is_named_with_its_line(read, row, says):
    with pytest.raises(ProfileError, match="line 2") as caught:
        read(row)
    assert says in str(caught.value)


def test_an_unknown_column_is_refused_with_the_nearest_one(read):
    with pytest.raises(ProfileError, match="unknown column 'glorp'"):
        read({}, columns=(*list(ROW)[:-1], "glorp"))


def test_files_are_told_apart_by_their_columns(tmp_path):
    served, trained = tmp_path / "a.csv", tmp_path / "b.csv"
    served.write_text(",".join(ROW) + "\n")
    trained.write_text("num_layers,hidden_size,iteration_s\n")
    assert is_serving_file(served)
    assert not is_serving_file(trained)


@pytest.mark.parametrize(
    ("name", "stated", "model", "precision"),
    [
        ("Qwen/Qwen3-32B", "", "qwen3-32b", "bf16"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "", "llama-3.1-8b", "fp8"),
        ("Llama 3.1 8B", "fp8", "llama-3.1-8b", "fp8"),
        ("meta-llama/Llama-3.1-8B-Instruct", "fp8-block", "llama-3.1-8b", "fp8-blockwise"),
        ("nvidia/Llama-3.3-70B-Instruct-NVFP4", "", "llama-3.1-70b", "nvfp4"),
        ("Llama v3.3 70B", "fp4", "llama-3.1-70b", "nvfp4"),
        ("deepseek-ai/DeepSeek-R1-0528", "", "deepseek-v3", "fp8-blockwise"),
        ("nvidia/DeepSeek-R1-0528-NVFP4-v2", "", "deepseek-v3", "nvfp4"),
        ("openai/gpt-oss-120b", "fp8", "gpt-oss-120b", "mxfp4"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "", "qwen3-235b-a22b", "fp8"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "", "mixtral-8x7b", "bf16"),
        ("Llama-4-Maverick-17B-128E-Instruct-FP8", "", "llama-4-maverick", "fp8"),
        ("mistralai/Mistral-7B-v0.3", "", "mistral-7b", "bf16"),
    ],
)
def test_a_checkpoint_is_a_model_and_a_precision(name, stated, model, precision):
    found, as_ = checkpoint(name, stated)
    assert (found.name, as_) == (model, precision)


@pytest.mark.parametrize(("name", "stated"), [("no-such-model-7b", ""), ("qwen3-32b", "int3")])
def test_what_is_not_known_is_said(name, stated):
    with pytest.raises(CatalogError):
        checkpoint(name, stated)
