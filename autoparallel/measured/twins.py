"""The catalog model that a measured row speaks of, and what the row's columns cannot say of it.

A row has the widths of a model, but no column for latent attention, shared experts, windows or
biases, and often no vocabulary. Sources spell names their own way (`Llama3-70B`,
`Megatron-GPT-22B`, `Nemotron3-22B(2023)`) and measure slices of a model of few layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from autoparallel import catalog
from autoparallel.measured.rows import MeasuredRun
from autoparallel.model import Model

OF_THE_WHOLE = ("moe_first_dense_layers", "mtp_num_layers")
"""Details of a model's ends, which a slice of its layers may lack."""
OF_EVERY_LAYER = (
    "kv_channels",
    "normalization",
    "add_bias_linear",
    "add_qkv_bias",
    "ffn_hidden_size",
    "untie_embeddings_and_output_weights",
    "window_size",
    "window_layers_fraction",
    "moe_shared_expert_intermediate_size",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_head_dim",
    "qk_pos_emb_head_dim",
    "v_head_dim",
)


def with_details(stated: Model, known: Model) -> Model:
    """`stated` with what its catalog twin `known` says beyond a row's columns."""
    whole = stated.num_layers == known.num_layers
    names = OF_EVERY_LAYER + (OF_THE_WHOLE if whole else ())
    if not stated.num_moe_experts:
        names = tuple(name for name in names if not name.startswith("moe_"))
    return replace(stated, **{name: getattr(known, name) for name in names})


def catalog_twin(run: MeasuredRun, config_dir: Path | None = None) -> Model | None:
    """The catalog model whose name and widths are the row's; its depth may differ in a slice."""
    widths = (run.hidden_size, run.num_attention_heads, run.ffn_hidden_size)
    return _twin(run.model, run.num_layers, *widths, config_dir)


@cache
def _twin(
    name: str,
    num_layers: int,
    hidden_size: int,
    heads: int,
    ffn_hidden_size: int | None,
    config_dir: Path | None,
) -> Model | None:
    words = _words(name)
    found = []
    for candidate in catalog.names("model", config_dir):
        shared = _common(words, _words(candidate))
        if not shared:
            continue
        model = catalog.model(candidate, config_dir)
        known_ffn = (None, model.ffn_hidden_size, model.moe_ffn_hidden_size)
        if (model.hidden_size, model.num_attention_heads) != (hidden_size, heads):
            continue
        if ffn_hidden_size in known_ffn:
            found.append((model.num_layers == num_layers, shared, model))
    return max(found, key=lambda f: f[:2])[2] if found else None


def _words(name: str) -> tuple[str, ...]:
    """Runs of letters and of digits: `Llama3-70B` -> llama 3 70 b."""
    return tuple(re.findall(r"[a-z]+|\d+", name.lower()))


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many words two names share when one is the other with words left out; else 0."""
    short, long = sorted((a, b), key=len)
    return len(short) if short and _within(short, iter(long)) else 0


def _within(words: Iterable[str], longer: Iterable[str]) -> bool:
    """Whether `words` come in `longer` in their order."""
    rest = iter(longer)
    return all(word in rest for word in words)
