"""The TOML against torchtitan v0.2.2's own JobConfig, its values against the layout."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from jobs import assert_known, job, keys, model

from autoparallel.errors import ConfigError
from autoparallel.exporting import TrainingJob
from autoparallel.exporting.torchtitan import program, settings, toml_text

KEYS = keys("torchtitan_v0.2.2")
LLAMA = model("llama-3.1-405b")
MIXTRAL = model("mixtral-8x7b")
DEEPSEEK = model("deepseek-v3", mtp_num_layers=0)
JOBS = (
    job(LLAMA, "tp8 pp16 cp2 mbs1 sp zero3 recompute=full stages=7,8*14,7"),
    job(LLAMA, "tp8 pp8 vpp2 mbs2 sp zero2 stages=7,8*14,7 recompute=core_attn"),
    job(LLAMA, "tp1 pp1 mbs1 zero3 shard=8 recompute=full/block/63"),
    job(LLAMA, "tp4 pp1 mbs1 sp zero3 prec=fp8-tensorwise overlap=grad+param+tp+p2p"),
    job(LLAMA, "tp1 pp2 cp2 cpcomm=all_gather mbs1 zero2 sched=zb1p prec=mxfp8"),
    job(MIXTRAL, "tp2 pp1 ep8 etp2 mbs1 sp zero3"),
    job(DEEPSEEK, "tp1 pp16 ep64 mbs1 zero2 stages=3,4*14,2"),
)


def loaded(of: TrainingJob, prefix: str = "") -> dict[str, Any]:
    return tomllib.loads(program(of, prefix).files[f"{prefix}config.toml"])


def assert_section(values: dict[str, Any], kind: str, where: str) -> None:
    """A section of the TOML against the dataclass that reads it."""
    fields = KEYS["classes"][kind]
    for key, value in values.items():
        if isinstance(value, dict):
            assert_section(value, fields[key], f"{where}.{key}")
        else:
            assert_known({key: value}, fields, where)


@pytest.mark.parametrize("of", JOBS, ids=lambda j: f"{j.model.name} {j.layout}")
def test_loads_in_torchtitans_own_schema(of: TrainingJob) -> None:
    for found in (loaded(of), loaded(of.profiling(), "profile-")):
        assert_section(found, "JobConfig", "config")
    described = json.loads(program(of).files["model.json"])
    arguments = dict(described["arguments"])
    assert_known(arguments.pop("moe_args", {}), KEYS["moe_args"], "moe_args")
    assert_known(arguments, KEYS["families"][described["family"]], described["family"])


@pytest.mark.parametrize("of", JOBS, ids=lambda j: f"{j.model.name} {j.layout}")
def test_degrees_multiply_to_the_world_and_batches_add_up(of: TrainingJob) -> None:
    found = settings(of)
    p, t = found["parallelism"], found["training"]
    names = ("data_parallel_replicate_degree", "data_parallel_shard_degree")
    dp = p[names[0]] * p[names[1]]
    pp = p.get("pipeline_parallel_degree", 1)
    assert dp * p["tensor_parallel_degree"] * p["context_parallel_degree"] * pp == of.num_gpus
    assert dp == of.data_parallel_size
    assert t["global_batch_size"] % (t["local_batch_size"] * dp) == 0
    micro = p["pipeline_parallel_microbatch_size"] if pp > 1 else t["local_batch_size"]
    assert micro == of.layout.micro_batch_size
    if pp > 1:
        assert t["local_batch_size"] * dp == of.global_batch_size


def test_every_layer_is_on_one_stage_in_order() -> None:
    parts = settings(JOBS[0])["parallelism"]["module_fqns_per_model_part"]
    assert [sum(n.startswith("layers.") for n in part) for part in parts] == [7, *[8] * 14, 7]
    names = [name for part in parts for name in part]
    assert names == ["tok_embeddings", *(f"layers.{i}" for i in range(126)), "norm", "output"]


def test_values_are_the_layouts() -> None:
    found = loaded(JOBS[0])
    p = found["parallelism"]
    assert (p["tensor_parallel_degree"], p["context_parallel_degree"]) == (8, 2)
    assert (p["pipeline_parallel_degree"], p["pipeline_parallel_schedule"]) == (16, "1F1B")
    assert p["fsdp_reshard_after_forward"] == "always"
    assert p["context_parallel_rotate_method"] == "alltoall"
    assert found["activation_checkpoint"] == {"mode": "full"}
    assert found["compile"] == {"enable": False}
    two = loaded(JOBS[1])
    assert two["parallelism"]["pipeline_parallel_schedule"] == "Interleaved1F1B"
    assert two["parallelism"]["fsdp_reshard_after_forward"] == "never"
    assert two["activation_checkpoint"]["selective_ac_option"] == "op"
    hybrid = loaded(JOBS[2])
    assert hybrid["parallelism"]["data_parallel_shard_degree"] == 8
    assert hybrid["activation_checkpoint"]["selective_ac_option"] == "2"
    low = loaded(JOBS[3])
    assert low["quantize"]["linear"]["float8"]["recipe_name"] == "tensorwise"
    assert low["parallelism"]["enable_async_tensor_parallel"]
    assert low["compile"]["enable"]
    experts = loaded(JOBS[5])["parallelism"]
    assert (experts["expert_parallel_degree"], experts["expert_tensor_parallel_degree"]) == (8, 2)


def test_models_are_exact() -> None:
    llama = json.loads(program(JOBS[0]).files["model.json"])
    a = llama["arguments"]
    assert (llama["family"], a["dim"], a["n_layers"], a["n_kv_heads"]) == ("llama3", 16384, 126, 8)
    # torchtitan's own rule for the width of the MLP gives the model's.
    width = int(a["ffn_dim_multiplier"] * int(2 * 4 * a["dim"] / 3))
    width = a["multiple_of"] * ((width + a["multiple_of"] - 1) // a["multiple_of"])
    assert width == LLAMA.ffn_hidden_size
    mixtral = json.loads(program(JOBS[5]).files["model.json"])
    assert (mixtral["family"], mixtral["arguments"]["moe_inter_dim"]) == ("qwen3", 14336)
    assert mixtral["arguments"]["moe_args"]["num_experts"] == 8
    deepseek = json.loads(program(JOBS[6]).files["model.json"])["arguments"]
    assert (deepseek["kv_lora_rank"], deepseek["n_dense_layers"]) == (512, 3)
    assert deepseek["moe_args"]["num_shared_experts"] == 1


def test_the_profiling_run_is_short_and_needs_no_files() -> None:
    long = job(MIXTRAL, "tp1 pp1 mbs1 zero3", data_path=("/d",), tokenizer_model="/t", save="/c")
    found, whole = loaded(long.profiling(), "profile-"), loaded(long)
    assert whole["model"]["name"] == "autoparallel"
    assert whole["training"]["dataset_path"] == "/d"
    assert found["training"]["steps"] == 50
    assert found["model"]["name"] == "autoparallel_mock"
    assert found["debug"]["moe_force_load_balance"]
    assert not found["checkpoint"]["enable"]
    assert found["parallelism"] == whole["parallelism"]


@pytest.mark.parametrize(
    ("of", "named"),
    [
        (job(model("gpt-175b"), "tp8 pp1 mbs1 sp zero3"), "gpt-175b.normalization: 'LayerNorm'"),
        (job(model("deepseek-v3"), "tp1 pp1 mbs1 zero3"), "deepseek-v3.mtp_num_layers: 1"),
        (job(LLAMA, "tp8 pp1 mbs1 zero3"), "sp: 'off'"),
        (job(LLAMA, "tp1 pp1 mbs1 zero1"), "zero: 1"),
        (job(LLAMA, "tp1 pp1 mbs1 zero3 grad=bf16"), "grad: 'bf16'"),
        (job(LLAMA, "tp1 pp1 mbs1 zero3 prec=fp8"), "prec: 'fp8'"),
        (job(LLAMA, "tp1 pp1 mbs1 zero3 offload=opt1"), "offload: 1.0"),
        (job(LLAMA, "tp1 pp1 mbs1 zero3 graph=attn"), "graph: 'attn'"),
        (job(LLAMA, "tp1 pp1 mbs1 zero3 overlap=none"), "overlap: 'none'"),
        (job(LLAMA, "tp1 pp1 cp2 cpcomm=a2a mbs1 zero3"), "cpcomm: 'a2a'"),
        (job(LLAMA, "tp1 pp2 mbs1 zero2 recompute=full/block/10"), "recompute: 'full/block/10'"),
        (job(LLAMA, "tp1 pp2 vpp3 group4 mbs1 zero2"), "group: 4"),
        (job(LLAMA, "tp1 pp5 mbs1 zero2"), "num_layers: 126"),
        (job(LLAMA, "tp1 pp1 cp4 mbs1 zero3 shard=2"), "shard: 2"),
        (job(MIXTRAL, "tp4 pp1 ep2 etp2 mbs1 sp zero3"), "etp: 2"),
        (job(LLAMA, "tp1 pp1 mbs1 zero3", data_path=("/d",)), "site.tokenizer_model"),
    ],
)
def test_what_torchtitan_cannot_say_is_refused(of: TrainingJob, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        program(of)


def test_toml_carries_any_text() -> None:
    nasty = {"a": {"text": "q\" \\ ' # [x] = \t \x7f é ${HOME}", "list": [["x"], []], "real": 1e-5}}
    assert tomllib.loads(toml_text(nasty)) == nasty
