"""A deployment in words, the same on screen and in a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoparallel.counts import counted
from autoparallel.reporting.wording import number

if TYPE_CHECKING:
    from autoparallel.inference.calibrated import ServingCalibration
    from autoparallel.serving_plan import ServingEntry, Worker

BINDS = {
    "ttft_ms": "the TTFT limit stops more",
    "tpot_ms": "the TPOT limit stops more",
    "e2e_ms": "the end-to-end limit stops more",
    "kv_cache": "the KV cache is full",
    "load": "the load is what was asked",
    "max_batch_size": "the largest batch of the space is reached",
    "compute": "more requests would not make it faster",
}
"""What `binding_constraint` means for the load."""


def worker_text(worker: Worker) -> str:
    """A kind of replica in one word: `2x tp4 b64`."""
    sizes = (
        ("tp", worker.tensor_model_parallel_size),
        ("pp", worker.pipeline_model_parallel_size),
        ("dp", worker.attention_data_parallel_size),
        ("ep", worker.expert_model_parallel_size),
    )
    words = [f"{name}{size}" for name, size in sizes if size > 1 or name == "tp"]
    words.append(f"batch{worker.max_batch_size}")
    if worker.role != "decode":
        words.append(f"tokens{worker.max_num_tokens}")
    role = "" if worker.role == "aggregated" else f"{worker.role} "
    return f"{role}{worker.replicas} x {' '.join(words)}"


def deployment(entry: ServingEntry) -> str:
    """All workers of a deployment."""
    return " | ".join(worker_text(worker) for worker in entry.workers)


def rate(value: float | None) -> str:
    """A rate with the digits it is worth."""
    return number(value, 0 if value is None or value >= 100 else 1 if value >= 1 else 3)


def outcome(entry: ServingEntry) -> str:
    """What users of a deployment see, what it costs, and what stops it from taking more."""
    text = (
        f"{rate(entry.tokens_per_s)} tokens/s ({rate(entry.tokens_per_s_per_gpu)} a GPU, "
        f"{number(entry.tokens_per_s_per_user, 1)} a user) at {entry.concurrency:,.0f} requests in "
        f"flight, TTFT {number(entry.ttft_ms)} ms, TPOT {number(entry.tpot_ms, 1)} ms"
    )
    if entry.usd_per_million_tokens is not None:
        text += f", USD {entry.usd_per_million_tokens:.2f} a million tokens"
    return f"{text}; {BINDS.get(entry.binding_constraint or '', entry.binding_constraint)}"


def rests_on(found: ServingCalibration) -> str:
    """Whose measured figures predictions rest on, in one sentence."""
    if found.state == "measured":
        text = f"Numbers rest on {counted(found.rows, 'measured figure')} of {found.family}"
    else:
        text = f"No figure of {found.family} is known: numbers are assumed"
        if found.borrowed_from:
            text += f", borrowed from {found.lender}"
    return f"{text} ({found.source})." if found.source else f"{text}."
