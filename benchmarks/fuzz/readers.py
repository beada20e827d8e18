"""Every reader of something a user hands over: how to call it, and valid files to start from.

A reader answers with its record or with an error of exit code 2. Whatever else comes out of it
(another exception, an error of our own, a message of many lines) is a bug, and `broken` says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from autoparallel import catalog
from autoparallel.errors import AutoparallelError
from autoparallel.framework import Framework, framework
from autoparallel.inference.calibrated import read_serving
from autoparallel.layout import Layout
from autoparallel.measured.rows import read_runs
from autoparallel.measured.serving_rows import read_serving_runs
from autoparallel.operators import read_table
from autoparallel.plan import load_plan
from autoparallel.profiles import read_calibration
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.logs.reader import read_log
from autoparallel.regression.kinds import TRAINING
from autoparallel.regression.lock import load_lock
from autoparallel.regression.measurements import read_samples
from autoparallel.request import (
    ServingRequest,
    TrainingRequest,
    serving_request,
    training_request,
)
from autoparallel.request.trace import read_trace
from autoparallel.serving_plan import load_serving_plan
from autoparallel.space import SpaceSpec
from autoparallel.strict_yaml import read_yaml

ROOT = Path(__file__).resolve().parents[2]
LONGEST_MESSAGE = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One reader.

    Attributes:
        name: What it reads.
        suffix: Of the file it is given; empty for a text argument.
        form: `yaml`, `json`, `csv` or `text`: how a structured mutation takes it apart.
        read: Called with the file's path, or with the text.
        seeds: Valid content.
    """

    name: str
    suffix: str
    form: str
    read: Callable[[Any], object]
    seeds: Callable[[], Sequence[bytes]]


def broken(reader: Reader, given: Any) -> str:
    """What is wrong with the answer to `given`; empty when it is a record or a clear error."""
    try:
        reader.read(given)
    except AutoparallelError as error:
        text = str(error)
        if error.exit_code != 2:
            return f"exit code {error.exit_code}: {text[:200]}"
        if len(text) > LONGEST_MESSAGE:
            return "the message is too long"
        odd = [c for c in text if not c.isprintable() and c not in "\n\u200b"]
        return f"the message holds {odd[0]!r}" if odd else ""
    except MemoryError:
        return "memory"
    return ""


def _files(*patterns: str) -> Callable[[], Sequence[bytes]]:
    def seeds() -> list[bytes]:
        found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))[:6]]
        return [path.read_bytes()[:6000] for path in found]

    return seeds


@cache
def _request() -> TrainingRequest:
    small = ["space.micro_batch_size=[1]", "space.recompute=[none]"]
    return training_request(model="gpt-tiny", num_gpus=2, cluster="local-cpu", overrides=small)


def _plan_seeds() -> list[bytes]:
    from autoparallel.planning import search

    return [search(_request(), top=1).text().encode()]


def _request_seeds() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "request.yaml"
        _request().write_yaml(path)
        return [path.read_bytes()]


def _head_of_csv(name: str) -> Callable[[], Sequence[bytes]]:
    def seeds() -> list[bytes]:
        lines = (ROOT / "benchmarks" / "measured" / name).read_bytes().split(b"\n")
        return [b"\n".join([lines[0], line]) for line in lines[1:200:40]]

    return seeds


def _hf_seeds() -> list[bytes]:
    llama = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128,
             "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
             "tie_word_embeddings": False, "rope_theta": 1e4, "hidden_act": "silu"}  # fmt: skip
    moe = {**llama, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    mla = {**llama, "model_type": "deepseek_v3", "n_routed_experts": 8, "num_experts_per_tok": 2,
           "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1,
           "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
           "v_head_dim": 8, "num_nextn_predict_layers": 1}  # fmt: skip
    gpt = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128,
           "n_positions": 64, "activation_function": "gelu_new"}  # fmt: skip
    return [json.dumps(config).encode() for config in (llama, moe, mla, gpt)]


_SAMPLES = (b"run,layout,iteration_s,peak_memory_gib\na,tp1 mbs1,1.5,2\na,tp1 mbs1,1.4,2\n",
            b"iteration_s\n1.5\n1.25\n")  # fmt: skip
_LAYOUTS = (
    b"tp8 pp8 vpp3 group8 cp2 cpcomm=a2a+p2p ep8 etp1 mbs1 sp zero1 shard=8 recompute=none",
    b"tp1 pp2 mbs1 recompute=full/block/4 sched=1f1b stages=7,8*6,7 prec=bf16 grad=fp32",
    b"tp2 mbs4 recompute=core_attn+mlp offload=opt0.5 graph=moe overlap=grad+tp fw=fsdp2",
)
_OVERRIDES = (
    b"space.micro_batch_size=[1,2]",
    b"workload.seq_length=64",
    b"cluster.inter_link.bandwidth_gb_per_s=40",
    b"~space.recompute",
)


_TRACE = (b"arrival,input,output\n0.0,100,20\n0.5,300,40\n",)
_LOG = (
    b" [2026-11-21 10:00:00] iteration        2/      50 | consumed samples:           32 | "
    b"elapsed time per iteration (ms): 6250.1 | global batch size:    16 | "
    b"lm loss: 1.1E+01 | loss scale: 1.0 | grad norm: 2.0 | number of skipped iterations:   0 | "
    b"number of nan iterations:   0 |\n"
    b"[Rank 0] (after 2 iterations) memory (MB) | allocated: 100.0 | max allocated: 200.0 | "
    b"reserved: 300.0 | max reserved: 300.0\ntorch.OutOfMemoryError: CUDA out of memory.\n",
)


def _job() -> Job:
    return Job(model=_request().model, layout=Layout(), num_gpus=2, global_batch_size=8,
               seq_length=64)  # fmt: skip


def _job_seeds() -> list[bytes]:
    return [_job().text().encode()]


def _result_seeds() -> list[bytes]:
    made = Result(trial=_job().trial, outcome="ok", step_s=(1.0, 1.1), iteration_s=1.05)
    return [made.text().encode(), Result(trial="a", outcome="crash", message="no").text().encode()]


def _serving_request() -> ServingRequest:
    return serving_request(model="gpt-tiny", num_gpus=2, cluster="dgx-h100", input_tokens=40,
                           output_tokens=8, backend="vllm", disaggregated="off")  # fmt: skip


def _serving_plan_seeds() -> list[bytes]:
    from autoparallel.serving_planning import solve

    return [solve(_serving_request(), top=1).plan.text().encode()]


def _serving_request_seeds() -> list[bytes]:
    from autoparallel.request.records import yaml_text

    return [yaml_text(_serving_request().to_mapping()).encode()]


def _framework_file(path: Path) -> Framework:
    return framework.__wrapped__(str(path))


READERS: tuple[Reader, ...] = (
    Reader(name="lock", suffix=".yaml", form="yaml", read=load_lock, seeds=_files("configs/*")),
    Reader(name="plan", suffix=".json", form="json", read=load_plan, seeds=_plan_seeds),
    Reader(name="request", suffix=".yaml", form="yaml", read=TrainingRequest.from_yaml,
           seeds=_request_seeds),
    Reader(name="measured-csv", suffix=".csv", form="csv", read=read_runs,
           seeds=_head_of_csv("training.csv")),
    Reader(name="repeated-csv", suffix=".csv", form="csv", seeds=lambda: _SAMPLES,
           read=lambda path: read_samples(path, TRAINING, "tp1 mbs1", lambda run: True)),
    Reader(name="hf-config", suffix=".json", form="json", read=catalog.model, seeds=_hf_seeds),
    Reader(name="model", suffix=".yaml", form="yaml", read=catalog.model,
           seeds=_files("search_spaces/model/[dgl]*.yaml")),
    Reader(name="gpu", suffix=".yaml", form="yaml", read=catalog.gpu,
           seeds=_files("search_spaces/gpu/*.yaml")),
    Reader(name="cluster", suffix=".yaml", form="yaml", read=catalog.cluster,
           seeds=_files("search_spaces/cluster/dgx-*.yaml")),
    Reader(name="framework", suffix=".yaml", form="yaml", read=_framework_file,
           seeds=_files("search_spaces/framework/*.yaml")),
    Reader(name="space", suffix=".yaml", form="yaml", seeds=_files("search_spaces/space/*.yaml"),
           read=lambda path: SpaceSpec.from_mapping(read_yaml(path))),
    Reader(name="profile", suffix=".yaml", form="yaml", read=read_calibration.__wrapped__,
           seeds=_files("profiles/training/*.yaml")),
    Reader(name="operator-table", suffix=".csv", form="text", read=read_table,
           seeds=_files("profiles/operators/index.csv")),
    Reader(name="serving-plan", suffix=".json", form="json", read=load_serving_plan,
           seeds=_serving_plan_seeds),
    Reader(name="serving-request", suffix=".yaml", form="yaml", read=ServingRequest.from_yaml,
           seeds=_serving_request_seeds),
    Reader(name="serving-csv", suffix=".csv", form="csv", read=read_serving_runs,
           seeds=_head_of_csv("inference.csv")),
    Reader(name="serving-profile", suffix=".yaml", form="yaml", read=read_serving,
           seeds=lambda: (b"family: vllm-hopper\nrows: 3\nsource: runs\nconstants:\n"
                          b"  gemm_efficiency: {value: 0.7, state: measured}\n",)),
    Reader(name="trace", suffix=".csv", form="csv", read=read_trace, seeds=lambda: _TRACE),
    Reader(name="job", suffix="", form="json", read=Job.parse, seeds=_job_seeds),
    Reader(name="result", suffix="", form="json", read=Result.parse, seeds=_result_seeds),
    Reader(name="log", suffix=".log", form="text", read=read_log, seeds=lambda: _LOG),
    Reader(name="layout", suffix="", form="text", read=Layout.parse, seeds=lambda: _LAYOUTS),
    Reader(name="override", suffix="", form="text", seeds=lambda: _OVERRIDES,
           read=lambda text: training_request(model="gpt-tiny", num_gpus=2, cluster="local-cpu",
                                              overrides=[text])),
)  # fmt: skip
