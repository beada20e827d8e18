"""What a search ranks first can be launched: some exporter of the framework writes every entry."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from autoparallel import planning
from autoparallel.cli.launch import training_job
from autoparallel.errors import ConfigError
from autoparallel.exporting.targets import TARGETS
from autoparallel.framework import framework
from autoparallel.layout import Layout
from autoparallel.request import TrainingRequest, training_request

FRAMEWORKS = ("megatron-core", "megatron-lm", "fsdp2", "automodel", "deepspeed")
MODELS = (
    "gpt-tiny",
    "gpt3-5b",
    "gpt-175b",
    "llama-3.1-8b",
    "llama-3.1-405b",
    "mixtral-8x7b",
    "qwen2.5-7b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
    "gpt-oss-20b",
    "nemotron-4-15b",
    "deepseek-v3",
    "bloom-176b",
    "llama-4-scout",
)
SIZES = (8, 24, 64, 512, 2048)
FAST = (
    ("megatron-core", "deepseek-v3", 512),
    ("megatron-lm", "qwen2.5-7b", 24),
    ("fsdp2", "llama-3.1-8b", 2048),
    ("fsdp2", "nemotron-4-15b", 8),
    ("fsdp2", "mixtral-8x7b", 64),
    ("fsdp2", "gpt-oss-20b", 64),
    ("automodel", "gpt-tiny", 8),
    ("automodel", "nemotron-4-15b", 24),
    ("automodel", "mixtral-8x7b", 512),
    ("automodel", "gpt-oss-20b", 64),
    ("automodel", "qwen2.5-7b", 2048),
    ("deepspeed", "llama-3.1-8b", 64),
    ("deepspeed", "qwen3-30b-a3b", 512),
    ("deepspeed", "gpt-tiny", 8),
)
TOP = 5


def refusals(request: TrainingRequest, layout: Layout) -> list[str]:
    """What every exporter of the framework says against a layout; empty when one writes it."""
    found = []
    for name in framework(request.framework).exporters:
        try:
            TARGETS[name](training_job(request, layout), "")
        except ConfigError as error:
            found.append(str(error))
        else:
            return []
    return found


def is_known(request: TrainingRequest) -> bool:
    """Whether any exporter of the framework has the model: on one GPU, with nothing split."""
    zero = {"fsdp2": 2, "automodel": 2, "deepspeed": 1}.get(request.framework, 1)
    plain = Layout(zero_stage=zero, framework=request.framework)
    return not refusals(replace(request, num_gpus=1), plain)


def assert_exportable(name: str, model: str, gpus: int) -> int:
    """Checks the first entries; returns how many there were."""
    request = training_request(model=model, num_gpus=gpus, framework=name)
    plan = planning.search(request, top=TOP)
    if not is_known(request):
        return 0
    for entry in plan.entries:
        assert not refusals(request, entry.layout), (name, model, gpus, str(entry.layout))
    return len(plan.entries)


@pytest.mark.parametrize(("name", "model", "gpus"), FAST)
def test_the_first_plans_can_be_exported(name: str, model: str, gpus: int) -> None:
    assert assert_exportable(name, model, gpus) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_first_plans_of_many_jobs_can_be_exported(name: str) -> None:
    found = [assert_exportable(name, model, gpus) for model, gpus in product(MODELS, SIZES)]
    assert sum(found) > 100


@pytest.mark.parametrize("name", ["fsdp2", "automodel", "deepspeed"])
def test_what_neither_can_start_is_a_rule_with_a_message(name: str) -> None:
    request = training_request(model="deepseek-v3", num_gpus=512, framework=name)
    plan = planning.search(request)
    assert plan.entries == ()
    assert plan.pruned["prediction_layers"] > 0
