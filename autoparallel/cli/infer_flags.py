"""Options of `autoparallel infer` that no other verb has, as annotated types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(flag: str, meaning: str, metavar: str) -> Any:
    """An option that takes one value."""
    return typer.Option(flag, help=meaning, metavar=metavar)


GpusFlag = Annotated[
    str | None, _option("--gpus", "Number of GPUs, or auto: the fewest.", "N|auto")
]
PrefillClusterFlag = Annotated[
    str | None, _option("--prefill-cluster", "Other GPUs that prefill.", "NAME")
]
PrefillGpusFlag = Annotated[int | None, _option("--prefill-gpus", "How many of those.", "N")]
InputTokensFlag = Annotated[int | None, _option("--input-tokens", "Prompt of a request.", "N")]
OutputTokensFlag = Annotated[int | None, _option("--output-tokens", "Answer of a request.", "N")]
PrefixTokensFlag = Annotated[
    int | None, _option("--prefix-tokens", "Prompt tokens in the prefix cache.", "N")
]
AcceptedTokensFlag = Annotated[
    float | None, _option("--accepted-tokens", "Tokens a decode step yields (speculation).", "X")
]
TtftMsFlag = Annotated[float | None, _option("--ttft-ms", "Limit: time to first token.", "MS")]
TpotMsFlag = Annotated[float | None, _option("--tpot-ms", "Limit: time per later token.", "MS")]
E2eMsFlag = Annotated[float | None, _option("--e2e-ms", "Limit: whole request.", "MS")]
PercentileFlag = Annotated[
    str | None, _option("--percentile", "What limits bind: mean, p50, p90 or p99 [mean].", "WORD")
]
ObjectiveFlag = Annotated[
    str | None,
    _option("--objective", "What is best: throughput, latency or cost [throughput].", "WORD"),
]
BackendFlag = Annotated[
    str | None,
    _option("--backend", "vllm, sglang, tensorrt-llm, with commas, or all [all].", "A,B,..."),
]
RequestRateFlag = Annotated[
    float | None, _option("--request-rate", "Load: requests a second, at random.", "R")
]
ConcurrencyFlag = Annotated[
    int | None, _option("--concurrency", "Load: clients of a closed loop.", "C")
]
TraceFlag = Annotated[
    Path | None, _option("--trace", "Load: CSV with arrival,input,output.", "FILE")
]
PrecisionFlag = Annotated[
    str | None,
    _option("--precision", "Of weights: bf16, fp8, ... [the checkpoint's own].", "A,B,..."),
]
KvDtypeFlag = Annotated[
    str | None, _option("--kv-dtype", "Of the KV cache: bf16, fp8 [bf16].", "A,B,...")
]
DisaggregatedFlag = Annotated[
    str | None,
    _option("--disaggregated", "Prefill apart from decode: auto, on or off [auto].", "WORD"),
]
FromPlanFlag = Annotated[
    Path | None, _option("--from-plan", "Model and cluster of a training run.", "RUN")
]
TopFlag = Annotated[int, _option("--top", "Deployments to list.", "N")]
