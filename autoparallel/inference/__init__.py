"""Inference: what a serving replica needs, how long its steps take and what a load meets on it.

Takes a `Setting` (model, cluster, backend, precision, with calibrated constants) and an `Instance`
(parallel sizes and limits of one replica, scalars or columns [N]) and answers with memory, step
times and latencies, each a scalar or [N].

    constants       `ServingConstants`: bounded numbers of one engine on one GPU generation
    backend         `Backend`: an engine's defaults and memory rule, as data; `backend(name)`
    instance        `Instance`: one replica
    setting         `Setting`: all else about a case; `setting(model, cluster, backend, precision)`
    kv_cache        bytes of a sequence (grouped-query, latent, sliding window), paged blocks
    engine_memory   `memory(...)` parts, `cache_room_bytes`, `kv_capacity_tokens`,
                    `kv_capacity_sequences`, `fits_probability`
    kernels         GEMM, attention, all-reduce, all-to-all of a step
    steps           `mixed_step(setting, instance, Batch(...))` -> `StepTime` with its parts
    batching        `Load`, `closed_loop`, `poisson`, `max_throughput` -> `Latencies`
    offline         `offline_run(setting, instance, load, requests)` -> `OfflineRun`: so many
                    requests, all given at once
"""

from __future__ import annotations

from autoparallel.inference.backend import BACKENDS, Backend, backend
from autoparallel.inference.batching import Latencies, Load, closed_loop, max_throughput, poisson
from autoparallel.inference.instance import Instance
from autoparallel.inference.offline import OfflineRun, offline_run
from autoparallel.inference.setting import Setting, setting
from autoparallel.inference.steps import Batch, StepTime, mixed_step

__all__ = [
    "BACKENDS",
    "Backend",
    "Batch",
    "Instance",
    "Latencies",
    "Load",
    "OfflineRun",
    "Setting",
    "StepTime",
    "backend",
    "closed_loop",
    "max_throughput",
    "mixed_step",
    "offline_run",
    "poisson",
    "setting",
]
