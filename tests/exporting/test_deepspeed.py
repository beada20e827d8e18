"""The JSON against DeepSpeed 0.19.8's own keys, its values against the layout."""

from __future__ import annotations

import json

import pytest
from jobs import assert_known, job, keys, model

from autoparallel.errors import ConfigError
from autoparallel.exporting import TrainingJob
from autoparallel.exporting.deepspeed import engine_settings, program, run_settings

KEYS = keys("deepspeed_0.19.8")
LLAMA, GPT = model("llama-3.1-405b"), model("gpt-175b")
JOBS = (
    job(GPT, "tp1 pp1 mbs1 zero3 recompute=full"),
    job(LLAMA, "tp4 pp1 mbs2 zero2 grad=bf16"),
    job(model("mixtral-8x7b"), "tp1 pp1 mbs1 zero1 prec=fp16"),
    job(model("deepseek-v3", mtp_num_layers=0), "tp1 pp1 mbs1 zero3 offload=opt0.5 grad=bf16"),
)


@pytest.mark.parametrize("of", JOBS, ids=lambda j: f"{j.model.name} {j.layout}")
def test_every_key_is_deepspeeds(of: TrainingJob) -> None:
    found = json.loads(program(of).files["ds_config.json"])
    blocks = {name: found.pop(name, {}) for name in ("zero_optimization", "tensor_parallel")}
    zero = blocks["zero_optimization"]
    assert_known(zero.pop("offload_optimizer", {}), KEYS["offload_optimizer"], "offload_optimizer")
    assert_known(zero, KEYS["zero_optimization"], "zero_optimization")
    assert_known(blocks["tensor_parallel"], KEYS["tensor_parallel"], "tensor_parallel")
    assert set(found["scheduler"]["params"]) <= set(KEYS["schedules"][found["scheduler"]["type"]])
    assert set(found) <= {*KEYS["keys"], "zero_optimization"}
    assert set(found["data_types"]) <= set(KEYS["keys"])


@pytest.mark.parametrize("of", JOBS, ids=lambda j: f"{j.model.name} {j.layout}")
def test_the_batch_multiplies_out(of: TrainingJob) -> None:
    found = engine_settings(of)
    each = found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"]
    tp = found.get("tensor_parallel", {}).get("autotp_size", 1)
    assert each * of.num_gpus // tp == found["train_batch_size"] == of.global_batch_size


def test_values_are_the_layouts() -> None:
    first = engine_settings(JOBS[0])
    assert first["zero_optimization"]["stage"] == 3
    assert first["zero_optimization"]["stage3_param_persistence_threshold"] == 10 * 12288
    assert first["bf16"] == {"enabled": True}
    assert run_settings(JOBS[0])["recompute"] == 1
    second = engine_settings(JOBS[1])
    assert second["tensor_parallel"] == {"autotp_size": 4}
    assert second["communication_data_type"] == "bf16"
    assert engine_settings(JOBS[2])["fp16"] == {"enabled": True}
    offloaded = engine_settings(JOBS[3])["zero_optimization"]["offload_optimizer"]
    assert offloaded == {"device": "cpu", "pin_memory": True, "ratio": 0.5}


def test_the_profiling_run_is_short_and_on_random_tokens() -> None:
    of = job(LLAMA, "tp1 pp1 mbs1 zero3", data_path=("/tokens",), train_iters=9000, save="/c")
    assert (run_settings(of)["data"], run_settings(of)["steps"]) == ("/tokens", 9000)
    short = json.loads(program(of.profiling(), "profile-").files["profile-run.json"])
    assert (short["data"], short["steps"], short["save"]) == (None, 50, None)
    assert "profile-ds_config.json" in program(of.profiling(), "profile-").command


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("tp1 pp2 mbs1 zero1", "pp: 2"),
        ("tp1 pp1 cp2 mbs1 zero1", "cp: 2"),
        ("tp2 pp1 mbs1 zero3", "tp: 2"),
        ("tp2 pp1 mbs1 sp zero1", "sp: 'on'"),
        ("tp1 pp1 mbs1 zero1 prec=mxfp8", "prec: 'mxfp8'"),
        ("tp1 pp1 mbs1 zero3 recompute=mlp", "recompute: 'mlp'"),
        ("tp1 pp1 mbs1 zero3 recompute=full/block/2", "recompute: 'full/block/2'"),
        ("tp1 pp1 mbs1 zero2 offload=opt0.5", "offload: 0.5"),
        ("tp1 pp1 mbs1 zero3 shard=2", "shard: 2"),
        ("tp1 pp1 mbs1 zero3 graph=attn", "graph, overlap"),
    ],
)
def test_what_the_program_cannot_do_is_refused(words: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        program(job(LLAMA, words))


def test_prediction_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.mtp_num_layers: 1"):
        program(job(model("deepseek-v3"), "tp1 pp1 mbs1 zero3"))


def test_a_blend_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"site.data_path: '1 /a'"):
        program(job(LLAMA, "tp1 pp1 mbs1 zero3", data_path=("1", "/a")))
