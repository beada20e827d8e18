"""Options of `autoparallel infer` that no other verb has, as annotated types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GpusFlag = Annotated[
    str | None,
    typer.Option("--gpus", help="Number of GPUs, or auto: the fewest.", metavar="N|auto"),
]
PrefillClusterFlag = Annotated[
    str | None,
    typer.Option("--prefill-cluster", help="Other GPUs that prefill.", metavar="NAME"),
]
PrefillGpusFlag = Annotated[
    int | None, typer.Option("--prefill-gpus", help="How many of those.", metavar="N")
]
InputTokensFlag = Annotated[
    int | None, typer.Option("--input-tokens", help="Prompt of a request.", metavar="N")
]
OutputTokensFlag = Annotated[
    int | None, typer.Option("--output-tokens", help="Answer of a request.", metavar="N")
]
PrefixTokensFlag = Annotated[
    int | None,
    typer.Option("--prefix-tokens", help="Prompt tokens in the prefix cache.", metavar="N"),
]
AcceptedTokensFlag = Annotated[
    float | None,
    typer.Option(
        "--accepted-tokens", help="Tokens a decode step yields (speculation).", metavar="X"
    ),
]
TtftMsFlag = Annotated[
    float | None, typer.Option("--ttft-ms", help="Limit: time to first token.", metavar="MS")
]
TpotMsFlag = Annotated[
    float | None, typer.Option("--tpot-ms", help="Limit: time per later token.", metavar="MS")
]
E2eMsFlag = Annotated[
    float | None, typer.Option("--e2e-ms", help="Limit: whole request.", metavar="MS")
]
PercentileFlag = Annotated[
    str | None,
    typer.Option(
        "--percentile", help="What limits bind: mean, p50, p90 or p99 [mean].", metavar="WORD"
    ),
]
ObjectiveFlag = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help="What is best: throughput, latency or cost [throughput].",
        metavar="WORD",
    ),
]
BackendFlag = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help="vllm, sglang, tensorrt-llm, with commas, or all [all].",
        metavar="A,B,...",
    ),
]
RequestRateFlag = Annotated[
    float | None,
    typer.Option("--request-rate", help="Load: requests a second, at random.", metavar="R"),
]
ConcurrencyFlag = Annotated[
    int | None,
    typer.Option("--concurrency", help="Load: clients of a closed loop.", metavar="C"),
]
TraceFlag = Annotated[
    Path | None,
    typer.Option("--trace", help="Load: CSV with arrival,input,output.", metavar="FILE"),
]
PrecisionFlag = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="Of weights: bf16, fp8, ... [the checkpoint's own].",
        metavar="A,B,...",
    ),
]
KvDtypeFlag = Annotated[
    str | None,
    typer.Option("--kv-dtype", help="Of the KV cache: bf16, fp8 [bf16].", metavar="A,B,..."),
]
DisaggregatedFlag = Annotated[
    str | None,
    typer.Option(
        "--disaggregated",
        help="Prefill apart from decode: auto, on or off [auto].",
        metavar="WORD",
    ),
]
FromPlanFlag = Annotated[
    Path | None,
    typer.Option("--from-plan", help="Model and cluster of a training run.", metavar="RUN"),
]
TopFlag = Annotated[int, typer.Option("--top", help="Deployments to list.", metavar="N")]
