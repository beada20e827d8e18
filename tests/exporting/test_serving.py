"""Launch files of serving plans: flags the engines know, GPUs that add up, capacity as searched."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from autoparallel.errors import ConfigError
from autoparallel.exporting import dynamo, kubernetes, load_test, sglang, trtllm, vllm
from autoparallel.exporting.serving import Deployment, checkpoint, graph_sizes, servers
from autoparallel.request import ServingRequest, serving_request
from autoparallel.serving_plan import ServingEntry, Worker

LIST = Path(__file__).parents[2] / "profiles" / "serving_flags.json"
KNOWN = json.loads(LIST.read_text(encoding="utf-8"))
VLLM, SGLANG = "vllm serve", "python -m sglang.launch_server"


def worker(role="aggregated", replicas=2, tp=4, pp=1, ep=1, adp=1, batch=48) -> Worker:
    return Worker(
        role=role,
        replicas=replicas,
        gpus=tp * pp * adp,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        expert_model_parallel_size=ep,
        attention_data_parallel_size=adp,
        max_batch_size=batch,
        max_num_tokens=4096,
    )


SHAPES = {
    "one node": (worker(),),
    "two nodes": (worker(tp=8, pp=2, replicas=1),),
    "experts": (worker(tp=2, adp=8, ep=16, replicas=2),),
    "split": (worker("prefill", 3, 2), worker("decode", 1, 8, batch=256)),
    "many": (worker("prefill", 2, 4), worker("decode", 3, 8), worker("decode", 2, 1)),
}


def deployed(backend, workers, precision="fp8", kv_dtype="fp8", prefix=False) -> Deployment:
    empty = dict.fromkeys(f for f in ServingEntry.__dataclass_fields__)
    split = workers[0].role != "aggregated"
    entry = ServingEntry(
        **empty
        | {
            "rank": 1,
            "backend": backend,
            "mode": "disaggregated" if split else "aggregated",
            "workers": workers,
            "precision": precision,
            "kv_dtype": kv_dtype,
            "concurrency": 96.0,
        }
    )
    return Deployment(
        entry=entry,
        checkpoint="org/model",
        max_model_len=5000,
        input_tokens=4000,
        output_tokens=1000,
        prefix_caching=prefix,
        experts=16,
        nodes_of=dict.fromkeys(("aggregated", "prefill", "decode"), 8),
        memory_fraction=0.9,
        published_precision=precision == "bf16",
        environment={"NCCL_DEBUG": "WARN"},
    )


def assert_known(tokens, *programs):
    """Every flag is one of a program's, with as many values as it takes, of those it allows."""
    flags = {}
    for program in programs:
        flags |= KNOWN[program]["flags"]
    at = 0
    while at < len(tokens):
        flag = tokens[at]
        assert flag in flags, f"{flag} is not a flag of {programs}"
        entry = flags[flag]
        end = at + 1
        while end < len(tokens) and not tokens[end].startswith("--"):
            end += 1
        values = tokens[at + 1 : end]
        wanted = entry["values"]
        assert len(values) == wanted if isinstance(wanted, int) else values, (flag, values)
        for value in values:
            assert value in entry.get("choices", [value]), (flag, value)
            {"int": int, "float": float}.get(entry.get("type", ""), str)(value)
        at = end


def commands(script: str) -> list[list[str]]:
    """The programs that a script starts, as tokens without variables in front."""
    lines = [line.strip().removesuffix(" &") for line in script.splitlines()]
    found = []
    for line in lines:
        tokens = shlex.split(line, comments=True)
        while tokens and "=" in tokens[0] and not tokens[0].startswith("-"):
            tokens = tokens[1:]
        if tokens and tokens[0] in ("vllm", "python3", "trtllm-serve", "srun"):
            found.append(tokens)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["bf16", "fp8", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("prefix", [False, True])
def test_every_flag_is_one_the_engines_parser_knows(shape, precision, prefix):
    of = deployed("vllm", SHAPES[shape], precision=precision, prefix=prefix)
    started = commands(vllm.files(of)["run.sh"])
    assert started
    for tokens in started:
        assert tokens[:3] == ["vllm", "serve", "org/model"]
        assert_known(tokens[3:], VLLM)
    of = deployed("sglang", SHAPES[shape], precision=precision, prefix=prefix)
    for tokens in commands(sglang.files(of)["run.sh"]):
        assert tokens[:3] == ["python3", "-m", "sglang.launch_server"]
        assert_known(tokens[3:], SGLANG)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["vllm", "sglang", "tensorrt-llm"])
def test_every_flag_of_dynamo_is_its_own_or_the_engines(shape, backend):
    engine = {"vllm": VLLM, "sglang": SGLANG}.get(backend)
    for line in commands(dynamo.files(deployed(backend, SHAPES[shape]))["run.sh"]):
        tokens = line[line.index("python3") :]
        module = f"python -m {tokens[2]}"
        assert_known(tokens[3:], module, *([engine] if engine and "front" not in module else []))


def test_the_load_test_is_one_the_client_knows():
    of = deployed("sglang", SHAPES["one node"])
    assert_known(list(load_test.arguments(of)), "vllm bench serve")
    assert "96" in load_test.arguments(of)


@pytest.mark.parametrize("shape", SHAPES)
def test_gpus_add_up_and_no_gpu_serves_two(shape):
    of = deployed("vllm", SHAPES[shape])
    placed = servers(of)
    used = Counter((node, gpu) for s in placed for node, gpus in s.places for gpu in gpus)
    assert sum(used.values()) == of.entry.gpus
    assert set(used.values()) == {1}
    assert all(gpu < 8 for _, gpu in used)
    assert len({s.port for s in placed}) == len(placed)


@pytest.mark.parametrize("shape", SHAPES)
def test_scripts_are_shell_that_bash_reads(shape, tmp_path):
    import subprocess

    for backend, module in (("vllm", vllm), ("sglang", sglang), ("tensorrt-llm", trtllm)):
        script = tmp_path / f"{backend}.sh"
        script.write_text(module.files(deployed(backend, SHAPES[shape]))["run.sh"])
        subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize(
    ("workers", "nodes"),
    [
        ((worker(tp=8, pp=2, replicas=3),), 6),
        ((worker("prefill", 2, 4), worker("decode", 2, 8, pp=2)), 5),
    ],
)
def test_servers_of_tensorrt_llm_on_several_nodes_start_on_these_and_no_others(
    workers, nodes, tmp_path
):
    import subprocess

    for name in ("srun", "trtllm-serve", "python3"):
        (tmp_path / name).write_text('#!/bin/bash\necho "$0 $@" >> "$CALLS"\n')
        (tmp_path / name).chmod(0o755)
    for module in (trtllm, dynamo):
        script, calls = tmp_path / "run.sh", tmp_path / f"{module.__name__}.calls"
        script.write_text(module.files(deployed("tensorrt-llm", workers))["run.sh"])
        assert f"On node N of {nodes}:" in script.read_text()
        for rank in range(nodes):
            environment = {
                "PATH": f"{tmp_path}:/usr/bin:/bin",
                "CALLS": str(calls),
                "NODE_RANK": str(rank),
                "NODE_HOSTS": " ".join(f"h{i}" for i in range(nodes)),
            }
            subprocess.run(["bash", script], env=environment, check=True)
        spread = [line for line in calls.read_text().splitlines() if "srun" in line]
        assert len(spread) == sum(w.replicas for w in workers if w.gpus > 8)
        assert all("--ntasks 16 --ntasks-per-node 8" in line for line in spread)
        taken = [n for line in spread for n in line.split("--nodelist ")[1].split()[0].split(",")]
        assert len(taken) == len(set(taken)) == 2 * len(spread)
        assert set(taken) <= {f"h{i}" for i in range(nodes)}


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("deepseek-v3", "deepseek-ai/DeepSeek-V3"),
        ("deepseek-r1", "deepseek-ai/DeepSeek-R1"),
        ("deepseek-r1-distill-llama-70b", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"),
        ("gpt-175b", "gpt-175b"),
    ],
)
@pytest.mark.parametrize("overrides", [(), ("model.rotary_base=20000",)])
def test_launch_files_name_the_weights_that_were_asked_for(model, named, overrides):
    asked = serving_request(
        model=model,
        num_gpus=16,
        input_tokens=500,
        output_tokens=100,
        cluster="dgx-h200",
        overrides=overrides,
    )
    saved = ServingRequest.from_mapping(asked.to_mapping())
    assert checkpoint(asked.model) == checkpoint(saved.model) == named


def test_capacity_emitted_is_capacity_searched():
    one = worker(tp=2, adp=4, ep=8, batch=48)
    flags = vllm.arguments(deployed("vllm", (one,)), one)
    assert flags[flags.index("--max-num-seqs") + 1] == "48"
    flags = sglang.arguments(deployed("sglang", (one,)), one)
    assert flags[flags.index("--max-running-requests") + 1] == str(48 * 4)
    assert flags[flags.index("--tp-size") + 1] == "8"
    values = trtllm.settings(deployed("tensorrt-llm", (one,)), one)
    assert (values["max_batch_size"], values["tensor_parallel_size"]) == (48, 8)
    assert values["moe_expert_parallel_size"] * values["moe_tensor_parallel_size"] == 8


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 48, 100, 256, 257, 1000])
def test_graph_sizes_are_sorted_unique_and_end_at_the_batch(largest):
    sizes = graph_sizes(largest)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == largest
    assert sizes[0] == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["vllm", "sglang", "tensorrt-llm"])
def test_manifests_ask_for_the_plans_gpus(shape, backend):
    of = deployed(backend, SHAPES[shape])
    if backend == "tensorrt-llm" and any(w.gpus > 8 for w in of.entry.workers):
        with pytest.raises(ConfigError, match="Dynamo"):
            kubernetes.files(of)
        return
    total = 0
    for part in yaml.safe_load_all(kubernetes.files(of)["serving.yaml"]):
        spec = part.get("spec", {})
        if part["kind"] == "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            total += spec["replicas"] * group["size"] * _gpus(group["workerTemplate"])
        elif part["kind"] == "Deployment":
            total += spec["replicas"] * _gpus(spec["template"])
    assert total == of.entry.gpus


@pytest.mark.parametrize("model", ["mödel mit leer 3.1", "x" * 90, "ö", "a_B"])
def test_manifests_of_a_model_of_any_name_have_dns_names(model):
    of = replace(deployed("vllm", SHAPES[next(iter(SHAPES))]), checkpoint=model)
    for part in yaml.safe_load_all(kubernetes.files(of)["serving.yaml"]):
        assert re.fullmatch(r"[a-z0-9][-a-z0-9]{0,60}[a-z0-9]", part["metadata"]["name"])


def _gpus(template) -> int:
    (container,) = template["spec"]["containers"]
    return container["resources"]["limits"]["nvidia.com/gpu"]


def test_joined_servers_of_tensorrt_are_all_named():
    files = trtllm.files(deployed("tensorrt-llm", SHAPES["split"]))
    joined = yaml.safe_load(files["disagg_config.yaml"])
    assert joined["context_servers"]["num_instances"] == 3
    assert joined["generation_servers"]["num_instances"] == 1
    urls = joined["context_servers"]["urls"] + joined["generation_servers"]["urls"]
    ports = {t[t.index("--port") + 1] for t in commands(files["run.sh"]) if "--port" in t}
    assert {url.split(":")[1] for url in urls} == ports
    prefill = yaml.safe_load(files["prefill.yaml"])
    assert prefill["cache_transceiver_config"]["max_tokens_in_buffer"] >= 4000


def test_flags_were_asked_of_the_versions_that_are_pinned():
    assert KNOWN[VLLM]["source"] == f"vllm=={vllm.VERSION}"
    assert KNOWN[SGLANG]["source"] == f"sglang=={sglang.VERSION}"
    assert KNOWN["python -m dynamo.frontend"]["source"] == f"ai-dynamo=={dynamo.VERSION}"
