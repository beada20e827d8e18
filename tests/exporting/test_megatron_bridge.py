"""The YAML against Megatron-Bridge 0.3.1's own records and megatron-core's own config."""

from __future__ import annotations

import dataclasses
import importlib.util
from importlib.resources import files
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from jobs import assert_known, job, keys, model
from test_megatron_lm import (
    GRAPHS,
    expected_layout,
    expected_model,
    megatron,
    stage_layers,
)

from autoparallel.errors import ConfigError
from autoparallel.exporting import TrainingJob
from autoparallel.exporting.megatron_bridge import program, settings

__all__ = ["megatron"]

CLASSES = keys("megatron_bridge_0.3.1")["classes"]
PARTS = {
    "train": "TrainingConfig",
    "optimizer": "OptimizerConfig",
    "ddp": "DistributedDataParallelConfig",
    "scheduler": "SchedulerConfig",
    "mixed_precision": "MixedPrecisionConfig",
    "tokenizer": "TokenizerConfig",
    "checkpoint": "CheckpointConfig",
    "dist": "DistributedInitConfig",
    "rng": "RNGConfig",
    "logger": "LoggerConfig",
}
GPT, LLAMA = model("gpt-175b"), model("llama-3.1-405b")
MIXTRAL, DEEPSEEK = model("mixtral-8x7b"), model("deepseek-v3")
JOBS = (
    job(GPT, "tp8 pp8 vpp3 mbs1 sp zero1"),
    job(GPT, "tp4 pp4 mbs1 sp zero1 recompute=core_attn prec=fp8 overlap=grad+param+tp"),
    job(LLAMA, "tp8 pp16 cp2 mbs1 sp zero1 stages=7,8*14,7 recompute=layernorm"),
    job(LLAMA, "tp8 pp2 vpp3 mbs1 sp zero1 prec=mxfp8 graph=full offload=opt0.5"),
    job(LLAMA, "tp8 pp1 mbs1 sp zero3 grad=bf16 recompute=full/uniform/1"),
    job(MIXTRAL, "tp2 pp4 ep8 etp1 mbs1 sp zero1 recompute=moe graph=attn"),
    job(MIXTRAL, "tp1 pp1 ep8 mbs2 zero1 overlap=grad+param+moe"),
    job(DEEPSEEK, "tp2 pp16 ep8 mbs1 sp zero1 stages=3,4*14,2 recompute=mla_up_proj+mlp"),
    job(model("gpt-oss-120b"), "tp1 pp2 ep8 mbs1 zero1"),
    job(model("nemotron-4-340b"), "tp8 pp12 mbs1 sp zero1 recompute=full/block/4"),
)
NAMES = [f"{of.model.name} {of.layout}" for of in JOBS]


@pytest.mark.parametrize("of", JOBS, ids=NAMES)
def test_every_field_is_bridges(of: TrainingJob) -> None:
    found = yaml.safe_load(program(of).files["config.yaml"])
    assert found == settings(of)
    provider = "MLAModelProvider" if of.model.kv_lora_rank else "GPTModelProvider"
    assert_known(found.pop("model"), {**CLASSES[provider], **SAID_BY_NAME}, "model")
    known = CLASSES["GPTDatasetConfig"] | {"seq_length": "int"}
    assert_known(found.pop("dataset"), known, "dataset")
    for part, values in found.items():
        named = {k: v for k, v in values.items() if not k.endswith("_dtype")}
        assert_known(named, CLASSES[PARTS[part]], part)
        assert set(values) <= set(CLASSES[PARTS[part]])


SAID_BY_NAME = {"activation_func": "str", "attention_backend": "str", "softmax_type": "str"}


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    """The program that starts the run, as a module."""
    pytest.importorskip("torch")
    path = files("autoparallel.exporting.drivers") / "bridge_pretrain.py"
    spec = importlib.util.spec_from_file_location("bridge_pretrain", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(megatron: SimpleNamespace, driver: ModuleType, of: TrainingJob) -> Any:
    """megatron-core's own config of the exported provider and precision."""
    found = settings(of)
    latent = bool(of.model.kv_lora_rank)
    cls = megatron.config.MLATransformerConfig if latent else megatron.config.TransformerConfig
    values = driver.model_values(found["model"]) | driver.typed(found["mixed_precision"])
    fields = {f.name for f in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in fields})


@pytest.mark.megatron
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("of", JOBS, ids=NAMES)
def test_the_provider_is_the_model_and_the_layout(
    megatron: SimpleNamespace, driver: ModuleType, of: TrainingJob
) -> None:
    made = config(megatron, driver, of)
    expected = expected_model(of.model) | expected_layout(of.model, of.layout)
    assert {name: getattr(made, name) for name in expected} == expected
    assert [scope.name for scope in made.cuda_graph_scope or ()] == GRAPHS[
        of.layout.cuda_graph_scope
    ]
    sizes = of.layout.stage_layers or stage_layers(megatron, made, of.layout)
    assert stage_layers(megatron, made, of.layout) == sizes


def test_what_is_not_the_models_is_the_jobs() -> None:
    found = settings(JOBS[3])
    assert found["optimizer"]["optimizer_offload_fraction"] == 0.5
    assert found["optimizer"]["use_precision_aware_optimizer"]
    assert found["rng"]["te_rng_tracker"]
    fsdp = settings(JOBS[4])
    assert fsdp["ddp"]["data_parallel_sharding_strategy"] == "optim_grads_params"
    assert fsdp["checkpoint"]["ckpt_format"] == "fsdp_dtensor"
    assert not fsdp["ddp"]["grad_reduce_in_fp32"]
    data = settings(job(GPT, "tp1 pp1 mbs1 zero1", data_path=("1.0", "/d/x"), save="/c"))
    assert data["dataset"]["blend"] == ["1.0", "/d/x"]
    assert data["checkpoint"]["load"] == "/c"
    assert "blend" not in found["dataset"]


def test_the_profiling_run_balances_experts() -> None:
    short = settings(job(MIXTRAL, "tp1 pp1 mbs1 zero1", data_path=("1", "/d")).profiling())
    assert short["model"]["moe_router_force_load_balancing"]
    assert short["train"]["train_iters"] == 50
    assert "blend" not in short["dataset"]


def test_what_megatron_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="sched: 'zb1p'"):
        program(job(GPT, "tp1 pp2 mbs1 zero1 sched=zb1p"))
