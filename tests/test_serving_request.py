from __future__ import annotations

import pytest

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.request import ServingRequest, serving_request
from autoparallel.request.trace import read_trace

JOB = {"model": "llama-3.1-8b", "num_gpus": 8, "input_tokens": 1000, "output_tokens": 100}


def asked(**changes) -> ServingRequest:
    return serving_request(**{**JOB, **changes})


def test_a_saved_request_reads_back_the_same(tmp_path):
    request = asked(
        ttft_ms=500, percentile="p99", backend="vllm,trtllm", kv_dtype="fp8", request_rate=3.0,
        prefill_cluster="dgx-a100-80gb", prefill_gpus=8,
        overrides=("space.max_batch_size=[1,2]", "cluster.usd_per_gpu_hour=2.5"),
    )  # fmt: skip
    request.write_yaml(tmp_path / "request.yaml")
    assert ServingRequest.from_yaml(tmp_path / "request.yaml") == request
    assert request.backends == ("vllm", "tensorrt-llm")
    assert request.space["max_batch_size"] == [1, 2]
    assert request.cluster.usd_per_gpu_hour == 2.5


def test_what_was_not_said_is_an_assumption():
    assert {"backend", "precision", "kv", "percentile", "load", "cluster"} <= set(
        asked().assumptions
    )
    said = asked(backend="vllm", precision="fp8", cluster="dgx-h200", concurrency=4).assumptions
    assert not {"backend", "precision", "cluster", "load"} & set(said)


@pytest.mark.parametrize(
    ("model", "cluster", "precision"),
    [
        ("llama-3.1-8b", "dgx-h100", "bf16"),
        ("deepseek-v3", "dgx-h100", "fp8-blockwise"),
        ("deepseek-v3", "dgx-a100-80gb", "bf16"),
        ("gpt-oss-120b", "dgx-a100-80gb", "mxfp4"),
    ],
)
def test_weights_are_as_published_where_the_gpu_can(model, cluster, precision):
    assert asked(model=model, cluster=cluster).precisions == (precision,)


def test_numerics_widen_what_the_search_may_choose():
    request = asked(allow_numerics=True)
    assert request.precisions == ("bf16", "fp8")
    assert request.kv_dtypes == ("bf16", "fp8")
    assert asked(allow_numerics=True, cluster="dgx-a100-80gb").kv_dtypes == ("bf16",)


@pytest.mark.parametrize("cluster", ["mi300x-platform", "frontier", "local-cpu", "dgx-1-v100"])
def test_engines_are_those_that_run_on_the_gpus(cluster):
    everywhere = ("vllm", "sglang")
    assert asked(cluster=cluster).backends == everywhere
    assert asked(prefill_cluster=cluster, prefill_gpus=8, backend="ALL").backends == everywhere
    assert "tensorrt-llm" in asked(cluster="l40s-server").backends


BAD = [
    ({"ttft_ms": 0.0}, "ttft_ms"),
    ({"tpot_ms": -1.0}, "tpot_ms"),
    ({"ttft_ms": float("nan")}, "ttft_ms"),
    ({"e2e_ms": float("inf")}, "e2e_ms"),
    ({"input_tokens": 0}, "input_tokens"),
    ({"output_tokens": None}, "output_tokens"),
    ({"input_tokens": 130_000, "output_tokens": 2000}, "positions"),
    ({"num_gpus": "many"}, "num_gpus"),
    ({"num_gpus": 0}, "num_gpus"),
    ({"num_gpus": "auto"}, "request-rate"),
    ({"request_rate": 1.0, "concurrency": 2}, "leave one"),
    ({"request_rate": 0.0}, "request_rate"),
    ({"concurrency": 0}, "concurrency"),
    ({"backend": "vlm"}, "did you mean 'vllm'"),
    ({"backend": "vllm,trtllm", "cluster": "mi300x-platform"}, "--backend vllm,sglang$"),
    ({"backend": "trtllm", "prefill_cluster": "frontier", "prefill_gpus": 8}, "mi250x"),
    ({"precision": "fp8", "cluster": "dgx-a100-80gb"}, "take --precision bf16"),
    ({"kv_dtype": "fp8", "cluster": "dgx-a100-80gb"}, "take --kv-dtype bf16"),
    ({"percentile": "p95"}, "percentile"),
    ({"objective": "cost"}, "usd_per_gpu_hour"),
    ({"prefix_tokens": 1000}, "prefix_tokens"),
    ({"accepted_tokens": 0.5}, "accepted_tokens"),
    ({"prefill_gpus": 8}, "--prefill-cluster"),
    ({"model": "llama-3.1-9b"}, "did you mean"),
    ({"overrides": ("space.max_batch_size=[1]", "cluster.x=1")}, "no such key"),
]


@pytest.mark.parametrize(("changes", "word"), BAD)
def test_bad_input_is_refused_with_the_reason(changes, word):
    with pytest.raises(ConfigError, match=word):
        asked(**changes)


def test_records_of_a_plan_take_the_place_of_names():
    model, cluster = catalog.model("llama-3.1-70b"), catalog.cluster("dgx-h200")
    request = asked(model=model, cluster=cluster)
    assert (request.model, request.cluster) == (model, cluster)
    with pytest.raises(ConfigError, match="override"):
        asked(model=model, overrides=("model.num_layers=2",))


def test_a_trace_has_its_own_lengths_and_rate(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(
        b"\xef\xbb\xbfoutput, arrival ,input,user\r\n20,12,100,a\r\n40,10,300,b\r\n\r\n"
    )
    trace = read_trace(path)
    assert trace.arrival_s == (0.0, 2.0)
    assert trace.input_tokens == (300, 100)
    request = serving_request(model="llama-3.1-8b", num_gpus=1, trace=path)
    assert (request.input_tokens, request.output_tokens) == (200, 30)
    assert (request.longest_tokens, request.request_rate) == (340, 0.5)
    assert request.arrivals() == trace
    path.write_text("arrival,input,output\n0,1,1\n")
    with pytest.raises(ConfigError, match="not the file"):
        request.arrivals()


def test_requests_that_all_come_at_once_are_a_closed_loop(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival,input,output\n" + "5,10,10\n" * 7)
    request = serving_request(model="llama-3.1-8b", num_gpus=1, trace=path)
    assert (request.request_rate, request.concurrency) == (None, 7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "arrival,input\n1,2\n",
        "arrival,input,output\n",
        "arrival,input,output\n-1,2,3\n",
        "arrival,input,output\nnan,2,3\n",
        "arrival,input,output\n1,0,3\n",
        "arrival,input,output\n1,2.5,3\n",
        "arrival,input,output\n1,2\n",
        "arrival,input,output\n1,x,3\n",
        "arrival,input,output\n1,2,1e9\n",
    ],
)
def test_a_trace_that_no_server_saw_is_refused(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match="trace"):
        read_trace(path)
