"""The command that puts a plan's load on its deployment: `vllm bench serve` (vLLM 0.33.0).

It drives any server with OpenAI's interface, so it serves every backend; its flags were asked of
its own parser (`profiles/serving_flags.json`).
"""

from __future__ import annotations

from autoparallel.exporting.serving import Deployment, quoted
from autoparallel.exporting.vllm import VERSION

ROUNDS = 10
"""Requests a client sends one after the other."""
LEAST_REQUESTS = 100


def arguments(deployed: Deployment) -> tuple[str, ...]:
    """Arguments of `vllm bench serve`: random prompts of the plan's lengths at the plan's load."""
    clients = max(round(deployed.entry.concurrency), 1)
    tokens = ["--backend", "openai", "--model", deployed.checkpoint]
    tokens += ["--dataset-name", "random", "--random-input-len", str(deployed.input_tokens)]
    tokens += ["--random-output-len", str(deployed.output_tokens), "--ignore-eos"]
    tokens += ["--num-prompts", str(max(ROUNDS * clients, LEAST_REQUESTS))]
    if deployed.request_rate is None:
        tokens += ["--max-concurrency", str(clients)]
    else:
        tokens += ["--request-rate", f"{deployed.request_rate:g}"]
    tokens += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,90,99"]
    return tuple(tokens)


def files(deployed: Deployment) -> dict[str, str]:
    """`load_test.sh`, which takes the address of the deployment."""
    command = f"vllm bench serve {quoted(arguments(deployed))}"
    entry = deployed.entry
    lines = [
        "#!/usr/bin/env bash",
        f"# vLLM {VERSION}: pip install vllm=={VERSION}",
        f"# The plan expects TTFT {entry.ttft_ms or 0:.0f} ms, TPOT {entry.tpot_ms or 0:.1f} ms "
        f"and {entry.tokens_per_s:,.0f} output tokens/s.",
        "set -euo pipefail",
        f'exec {command} --base-url "${{1:-http://127.0.0.1:8000}}"',
    ]
    return {"load_test.sh": "\n".join(lines) + "\n"}
