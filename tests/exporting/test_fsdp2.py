"""The recipe against NeMo AutoModel 0.7.0's own records, its values against the layout."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from jobs import assert_known, job, keys, model

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.exporting import TrainingJob
from autoparallel.exporting.fsdp2 import program, settings
from autoparallel.exporting.hf_model import hf_config
from autoparallel.framework import framework
from autoparallel.hf_config import from_hf_config

CLASSES = keys("automodel_0.7.0")["classes"]
GPT, LLAMA = model("gpt-175b"), model("llama-3.1-405b")
MIXTRAL, DEEPSEEK = model("mixtral-8x7b"), model("deepseek-v3", mtp_num_layers=0)
JOBS = (
    job(GPT, "tp8 pp1 mbs1 sp zero3 recompute=full"),
    job(LLAMA, "tp4 pp8 vpp2 cp2 mbs1 sp zero2 stages=7,8*14,7"),
    job(MIXTRAL, "tp1 pp1 mbs2 zero3 recompute=core_attn shard=4"),
    job(DEEPSEEK, "tp1 pp1 ep64 mbs1 zero2"),
    job(DEEPSEEK, "tp1 pp4 ep8 mbs1 zero2 sched=zb1p stages=15*3,16"),
)


def loaded(of: TrainingJob) -> dict[str, Any]:
    found = yaml.safe_load(program(of).files["recipe.yaml"])
    assert found == settings(of)
    return found


@pytest.mark.parametrize("of", JOBS, ids=lambda j: f"{j.model.name} {j.layout}")
def test_loads_in_automodels_own_records(of: TrainingJob) -> None:
    for found in (loaded(of), loaded(of.profiling())):
        steps = dict(found["step_scheduler"])
        assert steps.pop("local_batch_size") > 0
        assert_known(steps, CLASSES["StepSchedulerConfig"], "step_scheduler")
        distributed = dict(found["distributed"])
        assert distributed.pop("strategy") == "fsdp2"
        pipeline = distributed.pop("pipeline", {})
        assert_known(pipeline, CLASSES["PipelineConfig"], "pipeline")
        known = CLASSES["FSDP2Config"] | CLASSES["ParallelismSizes"]
        assert_known(distributed, known, "distributed")
        assert_known(found["lr_scheduler"], CLASSES["LRSchedulerConfig"], "lr_scheduler")
        data = {k: v for k, v in found["dataset"].items() if k not in ("_target_", "tokenizer")}
        assert_known(data, CLASSES["MockIterableDatasetConfig"], "dataset")
        backend = {k: v for k, v in found["model"].get("backend", {}).items() if k != "_target_"}
        assert_known(backend, CLASSES["BackendConfig"], "backend")


def test_optimizer_states_are_the_bytes_that_the_framework_counts() -> None:
    """fp32 weights and states, or bf16 weights with 16-bit remainders and bf16 moments."""
    for name, dtype, optimizer in (
        ("fsdp2", "float32", "AdamW"),
        ("automodel", "bfloat16", "FusedAdam"),
    ):
        found = loaded(job(LLAMA, f"tp8 pp1 mbs1 sp zero3 fw={name}"))
        traits = framework(name).traits
        assert found["model"]["torch_dtype"] == dtype
        assert found["optimizer"]["_target_"].endswith(optimizer)
        halves = "exp_avg_dtype" in found["optimizer"]
        assert traits.moment_bytes == (4 if halves else 8)
        assert traits.master_bytes == 2


@pytest.mark.parametrize("of", JOBS, ids=lambda j: f"{j.model.name} {j.layout}")
def test_sizes_multiply_to_the_world(of: TrainingJob) -> None:
    d = settings(of)["distributed"]
    assert d["dp_size"] * d["tp_size"] * d["cp_size"] * d["pp_size"] == of.num_gpus
    assert d["dp_size"] % d["dp_replicate_size"] == 0
    assert d["reshard_after_forward"] == (of.layout.zero_stage == 3)


def test_values_are_the_layouts() -> None:
    first = loaded(JOBS[0])["distributed"]
    assert (first["tp_size"], first["sequence_parallel"]) == (8, True)
    assert first["activation_checkpointing"] == "full"
    second = loaded(JOBS[1])
    parts = second["distributed"]["pipeline"]["module_fqns_per_model_part"]
    layers = [n for part in parts for n in part if ".layers." in n]
    assert layers == [f"model.layers.{i}" for i in range(126)]
    assert second["distributed"]["pipeline"]["pp_schedule"] == "interleaved1f1b"
    assert second["step_scheduler"]["local_batch_size"] == 64
    third = loaded(JOBS[2])["distributed"]
    assert (third["dp_size"], third["dp_replicate_size"]) == (8, 2)
    assert third["activation_checkpointing"] == "selective"
    assert loaded(JOBS[3])["distributed"]["ep_size"] == 64


def test_real_data_is_megatrons_blend() -> None:
    run = {"data_path": ("0.5", "/d/a", "0.5", "/d/b"), "tokenizer_model": "/t", "save": "/c"}
    found = settings(job(LLAMA, "tp1 pp1 mbs1 zero3", **run))
    known = CLASSES["MegatronPretrainingConfig"]
    data = {k: v for k, v in found["dataset"].items() if k not in ("_target_", "tokenizer")}
    assert_known(data, known, "dataset")
    assert data["paths"] == list(run["data_path"])
    assert found["checkpoint"] == {"enabled": True, "checkpoint_dir": "/c"}


NOT_OF_THESE = ("bloom-176b", "llama-4-maverick", "llama-4-scout")
"""Models of an architecture that the exporter does not write."""


@pytest.mark.parametrize("name", catalog.names("model"))
def test_every_hugging_face_config_reads_back_as_the_same_model(name: str) -> None:
    own = model(name, source="", training=None, published_parameters=0.0)
    if name in NOT_OF_THESE:
        with pytest.raises(ConfigError, match=name):
            hf_config(own, 2048)
        return
    text = json.dumps(hf_config(own, 1))
    found = from_hf_config(json.loads(text), name)
    assert found == own


@pytest.mark.parametrize(
    ("of", "named"),
    [
        (job(GPT, "tp1 pp2 mbs1 zero2"), "pp: 2"),
        (job(model("deepseek-v3"), "tp1 pp1 mbs1 zero3"), "model.mtp_num_layers: 1"),
        (job(MIXTRAL, "tp1 pp1 ep8 mbs1 zero3"), "ep: 8"),
        (job(DEEPSEEK, "tp2 pp1 ep8 etp2 mbs1 sp zero3"), "etp: 2"),
        (job(LLAMA, "tp1 pp1 mbs1 zero3 prec=mxfp8"), "prec: 'mxfp8'"),
        (job(LLAMA, "tp1 pp1 mbs1 zero0"), "zero: 0"),
        (job(LLAMA, "tp1 pp1 mbs1 zero3 recompute=full/block/63"), "recompute: 'full/block/63'"),
        (job(LLAMA, "tp1 pp1 cp2 cpcomm=all_gather mbs1 zero3"), "cpcomm"),
        (job(LLAMA, "tp1 pp1 mbs1 zero3", save="/a/$HOME"), "site.checkpoint_dir"),
    ],
)
def test_what_automodel_cannot_say_is_refused(of: TrainingJob, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        program(of)


@pytest.mark.parametrize(
    ("name", "method", "scores"),
    [
        ("deepseek-v2-lite", "greedy", "softmax"),
        ("deepseek-v2", "group_limited_greedy", "softmax"),
        ("deepseek-v3", "noaux_tc", "sigmoid"),
    ],
)
def test_deepseeks_choose_experts_as_their_own_configs_say(
    name: str, method: str, scores: str
) -> None:
    found = hf_config(catalog.model(name), 4096)
    assert (found["topk_method"], found["scoring_func"]) == (method, scores)
