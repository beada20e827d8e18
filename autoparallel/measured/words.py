"""Words of measured rows as sources spell them, and what this project calls the same thing.

Case and separators do not matter. A word that stands for nothing known is kept as it is, so that
whoever reads the row can say which word it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from autoparallel.errors import CatalogError, bad_value, nearest
from autoparallel.layout import RECOMPUTE_MODULES

PRECISIONS: Mapping[str, str] = {
    "": "bf16",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp32": "bf16",
    "tf32": "bf16",
    "fp8ds": "fp8",
    "fp8delayed": "fp8",
    "fp8delayedscaling": "fp8",
    "fp8hybrid": "fp8",
    "fp8cs": "fp8-tensorwise",
    "fp8currentscaling": "fp8-tensorwise",
    "fp8sc": "fp8-blockwise",
    "fp8subchannel": "fp8-blockwise",
    "fp8mx": "mxfp8",
    "fp4": "nvfp4",
}
"""`bf16` where a row says nothing, and for jobs whose source speaks of fp32 on tensor cores."""
SCHEDULES: Mapping[str, str] = {
    "interleaved1f1b": "interleaved",
    "1f1binterleaved": "interleaved",
    "1f1bi": "interleaved",
    "gpipe": "bfs",
    "afab": "bfs",
    "breadthfirst": "bfs",
    "zbh1": "zb1p",
    "zbh2": "zb2p",
}
"""All forwards before all backwards is breadth-first with one chunk."""
RECOMPUTATIONS: Mapping[str, str] = {
    "no": "none",
    "off": "none",
    "uniform": "full",
    "block": "full",
    "sac": "per-op",
    "selectiveop": "per-op",
}
UNFUSED = ("unfused", "math", "eager")


def bare(text: str) -> str:
    """Letters and digits of a word, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def meant(printed: str, known: Sequence[str], others: Mapping[str, str]) -> str:
    """The word of `known` that `printed` stands for; `printed` itself when there is none."""
    word = bare(printed)
    by_letters = {bare(name): name for name in known}
    return by_letters.get(word) or others.get(word, printed)


def recompute_modules(printed: str) -> tuple[str, ...]:
    """The modules that a list such as `core_attn+mlp` or `moe_act, layernorm` names.

    Raises:
        ConfigError: a word that is neither a module nor a way of recomputing.
    """
    words = [word for word in re.split(r"[+,/ ]+", printed.strip().lower()) if word]
    if unknown := [word for word in words if word not in RECOMPUTE_MODULES]:
        ways = ("none", "selective", "full", "per-op", *RECOMPUTE_MODULES)
        rule = "is neither a way nor a module"
        raise bad_value("recompute", unknown[0], rule, nearest(unknown[0], ways))
    return tuple(name for name in RECOMPUTE_MODULES if name in words)


def gpu_meant(printed: str, is_known: Callable[[str], bool], names: Sequence[str]) -> str:
    """The catalog GPU that `printed` stands for: `NVIDIA H100 PCIe` -> `h100-pcie-80gb`.

    All its words must be in the name of one of the catalog's boards; of several the first counts.

    Raises:
        CatalogError: no such GPU.
    """
    name = re.sub(r"[^a-z0-9]+", "-", printed.lower()).strip("-").removeprefix("nvidia-")
    name = name.removeprefix("tesla-")
    if is_known(name):
        return name
    wanted = {re.sub(r"^sxm\d$", "sxm", word) for word in name.split("-")}
    if boards := [board for board in names if wanted <= set(board.split("-"))]:
        return boards[0]
    raise CatalogError(f"gpu: {printed!r} is not in the catalog; {nearest(name, names)}")


def is_functional_test(notes: str) -> bool:
    """Whether a row is one of Megatron-LM's functional tests."""
    return notes.startswith("functional test")


def rank_of_functional_test(model: str) -> str:
    """The rank a functional test's memory is of: the last, which writes Megatron-LM's log.

    Peaks of tests of memory itself agree with the fullest. Source of the first: NVIDIA/Megatron-LM
    `megatron/training/global_vars.py`, the TensorBoard writer.
    """
    return "max" if "memory" in model else "last"


def keeps_scores(model: str, notes: str, kernels: str) -> bool:
    """Whether a functional test runs unfused attention, as deterministic mode asks for.

    Source: NVIDIA/Megatron-LM tests/functional_tests, `--attention-backend unfused`; without
    Transformer Engine there is no other. Peaks of tests that resume from a checkpoint are of either
    way.
    """
    other = any(word in model for word in ("nondeterministic", "resume", "memory_speed"))
    return is_functional_test(notes) and (kernels == "local" or not other)


def has_gpt2_vocabulary(model: str, notes: str) -> bool:
    """Whether a functional test's BPE file of unstated size is known to be GPT-2's 50,257 tokens.

    Without checkpoints their peaks agree with that within 1 %.
    """
    return is_functional_test(notes) and "resume" not in model


def chunks_of_functional_test(model: str, notes: str, layers_per_stage: int) -> int:
    """Virtual stages of a functional test, whose name says `vp` and the layers of each; else 1."""
    named = re.search(r"_vp(\d{1,2})(?:_|$)", model) if is_functional_test(notes) else None
    return max(layers_per_stage // max(int(named[1]), 1), 1) if named else 1


def compiles_loss(source: str) -> bool:
    """Whether torchtitan's compiled runs of a source compile the loss too: those since 2025.

    Assumed from peaks: compiled runs of December 2024 hold three fp32 copies of the logits,
    those of June 2025 none.
    """
    dated = re.search(r"(?:^|\D)(20\d\d)-?\d\d(?:\D|$)|arXiv:(\d\d)\d\d\.", source)
    year = int(dated[1] or f"20{dated[2]}") if dated else 2025
    return year >= 2025
