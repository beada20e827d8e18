"""What a serving request lets the search choose among, and how many GPUs it may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoparallel.errors import ConfigError, bad_value, nearest
from autoparallel.hardware import Cluster, Gpu
from autoparallel.model import Model, published_precision
from autoparallel.request.records import MAX_GPUS, whole
from autoparallel.request.serving import (
    AUTO_GPUS,
    BACKEND_ALIASES,
    BACKEND_GENERATIONS,
    KV_DTYPES,
    SERVING_BACKENDS,
    SERVING_PRECISIONS,
)


def gpus_asked(asked: int | str, cluster: Cluster, request_rate: float | None) -> int:
    """GPUs to serve on; `AUTO_GPUS` for `auto`, which needs a rate."""
    if isinstance(asked, str):
        word = asked.strip().lower()
        if word == "auto":
            if request_rate is None:
                rule = "is the fewest GPUs for a rate, and none is given"
                raise bad_value("num_gpus", asked, rule, "add --request-rate R or --trace FILE")
            return AUTO_GPUS
        if not word.isdecimal():
            raise bad_value("num_gpus", asked, "is neither a number nor auto", "give 8 or auto")
        asked = int(word[:20])
    return whole("num_gpus", asked, 1, min(cluster.max_gpus or MAX_GPUS, MAX_GPUS))


def choices(
    name: str, asked: str | None, known: Sequence[str], aliases: Mapping[str, str]
) -> tuple[str, ...]:
    """Words with commas between, each a known one; all of them for None and `all`."""
    words = [w.strip().lower() for w in (asked or "all").split(",")]
    if words == ["all"]:
        return tuple(known)
    found = [aliases.get(word, word) for word in words]
    for word, asked_word in zip(found, words, strict=True):
        if word not in known:
            raise bad_value(name, asked_word, "is not a choice", nearest(word, known))
    return tuple(dict.fromkeys(found))


def backends_asked(asked: str | None, gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """Engines as asked; of `all`, those that run on every one of the GPUs."""
    found = choices("backend", asked, SERVING_BACKENDS, BACKEND_ALIASES)
    able = tuple(name for name in SERVING_BACKENDS if not _strangers(name, gpus))
    if asked is None or asked.strip().lower() == "all":
        return able
    for name in found:
        for gpu in _strangers(name, gpus):
            runs_on = ", ".join(BACKEND_GENERATIONS[name])
            rule = f"does not run on {gpu.name} ({gpu.generation}); it runs on {runs_on}"
            raise bad_value("backend", name, rule, f"take --backend {','.join(able)}")
    return found


def _strangers(backend: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """Those of the GPUs that a backend does not run on."""
    able = BACKEND_GENERATIONS.get(backend)
    return [gpu for gpu in gpus if able and gpu.generation not in able]


def precisions_asked(asked: str | None, model: Model, gpu: Gpu, anything: bool) -> tuple[str, ...]:
    """What weights may be in: as asked, else as published when the GPU computes in that."""
    if asked is not None:
        found = choices("precision", asked, SERVING_PRECISIONS, {})
        missing = next((p for p in found if not computes(gpu, p)), None)
        if missing is not None:
            raise _not_on("precision", missing, gpu, f"take --precision {_half(gpu)}")
        return found
    published = published_precision(model)
    own = published if published and computes(gpu, published) else _half(gpu)
    if not anything:
        return (own,)
    others = [p for p in ("bf16", "fp8", "nvfp4") if computes(gpu, p)]
    return tuple(dict.fromkeys((own, *others)))


def kv_dtypes_asked(asked: str | None, gpu: Gpu, anything: bool) -> tuple[str, ...]:
    """What the KV cache may be in; 8 bits only where the GPU has them."""
    fp8 = "fp8" in gpu.peak_flops_per_s
    if asked is None:
        return KV_DTYPES if anything and fp8 else KV_DTYPES[:1]
    found = choices("kv_dtype", asked, KV_DTYPES, {"auto": "bf16", "fp8_e4m3": "fp8"})
    if "fp8" in found and not fp8:
        raise _not_on("kv_dtype", "fp8", gpu, "take --kv-dtype bf16")
    return found


def computes(gpu: Gpu, precision: str) -> bool:
    """Whether engines serve weights in `precision` on a GPU.

    mxfp4 checkpoints run on any GPU with bf16, whose kernels widen the weights as they read them.
    """
    peaks = gpu.peak_flops_per_s
    needed = {"mxfp4": "bf16", "fp8-blockwise": "fp8"}.get(precision, precision)
    return needed in peaks or (precision == "mxfp8" and "fp8" in peaks)


def _half(gpu: Gpu) -> str:
    return "bf16" if "bf16" in gpu.peak_flops_per_s else "fp16"


def _not_on(name: str, value: str, gpu: Gpu, hint: str) -> ConfigError:
    rule = f"is not what {gpu.name} computes in (it has {', '.join(gpu.peak_flops_per_s)})"
    return bad_value(name, value, rule, hint)
