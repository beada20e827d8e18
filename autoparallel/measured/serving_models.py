"""Which model and precision a checkpoint's name means, however the source writes it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from autoparallel import catalog
from autoparallel.errors import CatalogError
from autoparallel.model import Model, published_precision

PRECISIONS = {
    "": "",
    "bf16": "bf16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp8": "fp8",
    "fp8-block": "fp8-blockwise",
    "fp8_block": "fp8-blockwise",
    "fp8-blockwise": "fp8-blockwise",
    "fp8_static": "fp8",
    "mxfp8": "mxfp8",
    "nvfp4": "nvfp4",
    "fp4": "nvfp4",
    "mxfp4": "mxfp4",
}
"""Precision words of measured rows."""
_IN_NAME = (
    (re.compile(r"-(?:w4a16-|w4a8-)?mxfp4\b"), "mxfp4"),
    (re.compile(r"-(?:nv)?fp4(?:-v\d+)?\b"), "nvfp4"),
    (re.compile(r"-fp8-block\w*\b"), "fp8-blockwise"),
    (re.compile(r"-fp8(?:-dynamic|-kv)?\b"), "fp8"),
    (re.compile(r"-bf16\b"), "bf16"),
)
_NOISE = re.compile(
    r"-(?:instruct|chat|thinking|it|hf|base|original|text|original-text|turbo|preview|\d{4}|v0\.\d+)(?=-|$)"
)


def checkpoint(name: str, precision: str = "", config_dir: Path | None = None) -> tuple[Model, str]:
    """The model that `name` means, and the precision of its weights.

    A Hugging Face id loses its organisation, `-Instruct` and the like; a suffix such as `-FP8`
    states the precision unless the row does; else a checkpoint that was published quantised has its
    own precision, and any other bf16. Weights published in mxfp4 stay so whatever a row calls its
    arithmetic.

    Raises:
        CatalogError: no such model, or an unknown word for the precision.
    """
    words = "-".join(name.split("/")[-1].lower().replace("_", "-").split())
    words = re.sub(r"^llama-v(?=\d)", "llama-", words)
    stated = PRECISIONS.get(precision.lower())
    if stated is None:
        raise CatalogError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    named = ""
    for pattern, meaning in _IN_NAME:
        if pattern.search(words):
            words, named = pattern.sub("", words), named or meaning
    found = _model(words, config_dir)
    native = published_precision(found) or "bf16"
    if native == "mxfp4":
        return found, native
    return found, stated or named or native


@cache
def _model(words: str, config_dir: Path | None) -> Model:
    """The catalog's model of that name, with or without what does not change its dimensions."""
    tried = dict.fromkeys((words, _bare(words), _bare(words).replace("meta-", "")))
    for candidate in tried:
        try:
            return catalog.model(candidate, config_dir)
        except CatalogError:
            continue
    return catalog.model(words, config_dir)


def _bare(words: str) -> str:
    return _NOISE.sub("", words)
