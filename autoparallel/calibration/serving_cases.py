"""Measured serving figures beside what the serving cost model says of them.

A figure at a stated concurrency is a closed loop of that many clients; a throughput without one is
the engine given all requests at once. What a row does not say is the engine's default.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoparallel.calibration.offline_run import offline_limits, requests_sent
from autoparallel.errors import ConfigError, nearest
from autoparallel.inference import (
    Backend,
    Instance,
    Load,
    Setting,
    backend,
    closed_loop,
    max_throughput,
    offline_run,
    setting,
)
from autoparallel.inference.constants import ServingConstants
from autoparallel.measured.cases import cluster_of_gpu
from autoparallel.measured.serving_models import checkpoint
from autoparallel.measured.serving_rows import METRICS, ServingRun
from autoparallel.units import MS

Column = NDArray[np.float64]
KV_BYTES = {"bf16": 2.0, "fp16": 2.0, "auto": 2.0, "fp8": 1.0, "fp8_e4m3": 1.0}
"""Bytes of one element of the KV cache, by the word of a row."""

ROUNDS = 8.0
"""Requests a client sends in a sweep that does not say (assumed; sweeps send 5 to 10)."""
EARLY_FRONT_END = 2.0
"""Front-end time a token of TensorRT-LLM up to 1.0 over later ones and others: with 128 clients of
Llama-3.1-8B it stops at 9,200 tokens/s whatever the tensor size, SGLang at 15,000 to 19,000."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingReading:
    """One figure that can be predicted: the row, its setting, and what the backend is told."""

    run: ServingRun
    case: Setting
    kv_element_bytes: float

    @property
    def family(self) -> str:
        """Whose constants the row is predicted with: backend and GPU generation."""
        return f"{self.case.backend.name}-{self.case.cluster.gpu.generation}"


def understood_serving(
    runs: Iterable[ServingRun],
    config_dir: Path | None = None,
    profiles_dir: Path | None = None,
) -> tuple[list[ServingReading], Counter[str]]:
    """The figures that can be predicted, and why the others cannot: reason -> rows."""
    known: dict[tuple[str, ...], Setting] = {}
    readings: list[ServingReading] = []
    skipped: Counter[str] = Counter()
    for run in runs:
        try:
            readings.append(_reading(run, known, config_dir, profiles_dir))
        except ConfigError as error:
            skipped[str(error)] += 1
    return readings, skipped


def _reading(
    run: ServingRun,
    known: dict[tuple[str, ...], Setting],
    config_dir: Path | None,
    profiles_dir: Path | None,
) -> ServingReading:
    if run.disaggregated:
        raise ConfigError("notes: disaggregated runs are not scored")
    if run.metric not in METRICS:
        raise ConfigError(f"metric: {run.metric!r} is not scored; {nearest(run.metric, METRICS)}")
    key = (run.framework_version, run.model, run.precision, run.gpu)
    if key not in known:
        model, precision = checkpoint(run.model, run.precision, config_dir)
        cluster, engine = cluster_of_gpu(run.gpu, config_dir), _engine(run)
        known[key] = setting(model, cluster, engine, precision, profiles_dir=profiles_dir)
    case = known[key]
    return ServingReading(run=run, case=case, kv_element_bytes=_kv_bytes(run, case))


def _kv_bytes(run: ServingRun, case: Setting) -> float:
    """As stated; else bf16, but fp8 where the checkpoint was quantised with its cache.

    NVIDIA's quantised checkpoints (hf_quant_config.json, `kv_cache_quant_algo`) are: TensorRT-LLM
    takes that over, vLLM since vllm-project/vllm#29980 (0.13), SGLang does not. Under TensorRT-LLM
    any fp8 or nvfp4 checkpoint is taken for one of them.
    """
    if run.kv_dtype:
        if run.kv_dtype.lower() not in KV_BYTES:
            raise ConfigError(f"kv_dtype: {run.kv_dtype!r} is not one of {', '.join(KV_BYTES)}")
        return KV_BYTES[run.kv_dtype.lower()]
    quantised = case.precision in ("fp8", "nvfp4")
    if _is_offline(run, case) and case.precision == "mxfp4":
        return 1.0 if "nvfp4" in case.cluster.gpu.peak_flops_per_s else 2.0
    nvidia = run.model.startswith("nvidia/") and _vllm_release(run) >= (0, 13)
    return 1.0 if quantised and (case.backend.name == "tensorrt-llm" or nvidia) else 2.0


def _vllm_release(run: ServingRun) -> tuple[int, ...]:
    """Major and minor release of vLLM; empty for another backend."""
    match = re.match(r"vllm v?(\d+)\.(\d+)", run.framework_version)
    return (int(match[1]), int(match[2])) if match else ()


def predicted(
    readings: Sequence[ServingReading],
    constants: Callable[[Setting], ServingConstants] | None = None,
    sets: tuple[int, ...] = (),
) -> Column:
    """The figure of every row by the cost model, in the row's unit [*sets, N].

    Args:
        readings: Rows that can be predicted.
        constants: What to predict a setting with instead of its calibrated constants.
        sets: How many sets of them `constants` gives at once, as columns [*sets, 1].
    """
    out = np.full((*sets, len(readings)), np.nan)
    for rows in _alike(readings).values():
        case = readings[rows[0]].case
        if constants:
            case = replace(case, constants=constants(case))
        out[..., rows] = _figures(case, [readings[i] for i in rows])
    return out


def _alike(readings: Sequence[ServingReading]) -> Mapping[tuple[int, bool], list[int]]:
    """Rows that one call predicts: the same setting, and with or without a concurrency."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, reading in enumerate(readings):
        key = (id(reading.case), reading.run.concurrency is None)
        groups.setdefault(key, []).append(i)
    return groups


def _figures(case: Setting, readings: Sequence[ServingReading]) -> Column:
    instance, load = instance_of(case, readings), load_of(readings)
    if _offline(readings[0]):
        return _offline_figures(case, readings, instance, load)
    if readings[0].run.concurrency is None:
        found = max_throughput(case, instance, load)
    else:
        found = closed_loop(case, instance, load)
    per_gpu = np.asarray(found.tokens_per_s) / np.asarray(instance.gpus)
    gpus = _column(readings, lambda r: float(r.run.num_gpus))
    by_metric = {
        "ttft_ms": np.asarray(found.ttft_s) / MS,
        "tpot_ms": np.asarray(found.tpot_s) / MS,
        "throughput_tok_s_total": per_gpu * gpus,
        "tokens_s_per_gpu": per_gpu,
    }
    return np.stack([by_metric[r.run.metric][..., i] for i, r in enumerate(readings)], axis=-1)


def _offline_figures(
    case: Setting, readings: Sequence[ServingReading], instance: Instance, load: Load
) -> Column:
    """Throughput of TensorRT-LLM's runs: all tokens over the whole run."""
    gpus = _column(readings, lambda r: float(r.run.num_gpus))
    requests = requests_sent(load.input_tokens, load.output_tokens)
    share = np.asarray(instance.gpus) / gpus
    found = offline_run(case, instance, load, requests * share)
    total = np.asarray(requests * load.output_tokens / found.seconds)
    whole = np.array([r.run.metric == "throughput_tok_s_total" for r in readings])
    return np.where(whole, total, total / gpus)


def instance_of(case: Setting, readings: Sequence[ServingReading]) -> Instance:
    """The replicas that rows were measured on, as columns.

    Limits are the engine's defaults, or those of `offline_run` for runs of TensorRT-LLM without a
    concurrency; these copy the attention of models with experts unless the row states a mapping.
    """
    engine, n = case.backend, len(readings)
    tp = _column(readings, lambda r: float(r.run.tensor_parallel))
    copies = _column(readings, lambda r: float(r.run.attention_copies))
    if _offline(readings[0]) and case.model.num_moe_experts:
        copied = np.array([not r.run.mapping_stated for r in readings])
        tp, copies = np.where(copied, 1.0, tp), np.where(copied, tp, copies)
    found = Instance(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=_column(readings, lambda r: float(r.run.pipeline_parallel)),
        attention_data_parallel_size=copies,
        expert_model_parallel_size=_column(readings, lambda r: float(r.run.expert_parallel)),
        kv_element_bytes=_column(readings, lambda r: r.kv_element_bytes),
        max_batch_size=np.full(n, float(engine.max_batch_size)),
        max_num_tokens=np.full(n, float(engine.max_num_tokens)),
        memory_fraction=np.full(n, engine.memory_fraction),
    )
    if not _offline(readings[0]):
        return found
    load = load_of(readings)
    return offline_limits(case, found, load.input_tokens, load.output_tokens)


def _offline(reading: ServingReading) -> bool:
    """Whether a row is one of TensorRT-LLM's throughput runs."""
    return _is_offline(reading.run, reading.case)


def _is_offline(run: ServingRun, case: Setting) -> bool:
    return run.concurrency is None and case.backend.name == "tensorrt-llm"


def load_of(readings: Sequence[ServingReading]) -> Load:
    """The load that rows were measured under, as columns."""
    return Load(
        input_tokens=_column(readings, lambda r: float(r.run.isl)),
        output_tokens=_column(readings, lambda r: float(r.run.osl)),
        concurrency=_column(readings, lambda r: r.run.concurrency or 1.0),
        rounds=ROUNDS,
        served=_column(readings, lambda r: EARLY_FRONT_END if _early(r.run) else 1.0),
    )


def _engine(run: ServingRun) -> Backend:
    """The engine of a row, as it was in that release.

    TensorRT-LLM up to 1.0 is 25 to 50 % slower on GB200 than on B200 wherever steps are short; 1.2
    is not.
    """
    engine = backend(run.framework_version.split()[0])
    return replace(engine, release="1.0", slow_on_grace=True) if _early(run) else engine


def _early(run: ServingRun) -> bool:
    """Whether a row is of TensorRT-LLM up to 1.0."""
    return bool(re.match(r"(trtllm|tensorrt-llm) v?(0|1\.0)(?!\d)", run.framework_version.lower()))


def _column(readings: Sequence[ServingReading], value: Callable[[ServingReading], float]) -> Column:
    return np.array([value(r) for r in readings], dtype=np.float64)
