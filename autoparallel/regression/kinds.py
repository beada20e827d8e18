"""What the gate has to know of a kind of plan: its figures, which way is worse, its tolerances.

`Today` is a request answered with today's code, catalog and profiles; `training` and `serving` make
one. Everything else here works on it without knowing which kind it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from autoparallel import strict_json as check
from autoparallel.errors import ConfigError, bad_value, nearest

Numbers: TypeAlias = Mapping[str, Any]
"""Dotted name, as a catalog file or a profile writes it -> number, text or list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockEntry:
    """One choice of the short list, as a lock keeps it.

    Attributes:
        layout: What names it; for training a layout in the grammar.
        fields: The launch arguments that it means, by Megatron's (or the engine's) names.
        predicted: Figure -> value.
        intervals: Figure -> 5th and 95th percentile.
        parts: Block (`parts`, `memory_parts`) -> part -> amount.
    """

    rank: int
    layout: str
    fields: Mapping[str, Any]
    predicted: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]]
    parts: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What one choice is worth under some set of numbers; no figures when it is not legal."""

    legal: bool
    reasons: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    fits_probability: float | None = None


class Today(Protocol):
    """A request answered with today's code, catalog and profiles."""

    @property
    def objective(self) -> str:
        """The figure that the search makes best."""

    @property
    def entries(self) -> tuple[LockEntry, ...]:
        """The short list, best first; empty when nothing fits."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Candidates after each sieve."""

    @property
    def used(self) -> Numbers:
        """The numbers that the answer rests on."""

    @property
    def digests(self) -> Mapping[str, str]:
        """Tables and rooms of code behind the answer -> digest."""

    def standing(self, layout: str, changes: Numbers) -> Standing:
        """What `layout` is worth with some of the numbers changed."""

    def entry(self, layout: str) -> LockEntry:
        """Any legal layout as a lock keeps it, with its place among all."""

    def best(self, changes: Numbers) -> str:
        """The best layout with some of the numbers changed; empty when nothing fits."""

    def tied(self, layout: str) -> bool:
        """Whether the model cannot tell `layout` from the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of plan.

    Attributes:
        worse: Figure -> 1 when more of it is worse, -1 when less is; those that are held against
            the pin have a tolerance.
        tolerance: The tolerances that a lock states, with their defaults.
        request: What the `request` block of a lock holds.
    """

    name: str
    worse: Mapping[str, int]
    tolerance: Mapping[str, float]
    request: Mapping[str, check.Check]


_SHARED = {"memory_bytes": 0.01, "fits_probability": 0.1, "optimum": 0.01, "measured": 0.05}
_TEXT_OR_NULL = check.or_null(check.text)


def _texts(path: str, value: Any) -> list[str]:
    return [check.text(f"{path}[{i}]", each) for i, each in enumerate(check.sequence(path, value))]


TRAINING = Kind(
    name="training",
    worse={"iteration_s": 1, "memory_bytes": 1},
    tolerance={"iteration_s": 0.005, **_SHARED},
    request={
        "model": check.text,
        "num_gpus": check.count,
        "cluster": check.text,
        "gpu": _TEXT_OR_NULL,
        "framework": check.text,
        "precision": check.text,
        "global_batch_size": check.count,
        "seq_length": check.count,
        "tokens": check.or_null(check.number),
        "space": check.text,
        "objective": check.text,
        "allow_numerics": check.flag,
        "overrides": _texts,
        "config_dir": _TEXT_OR_NULL,
        "profiles_dir": _TEXT_OR_NULL,
    },
)
SERVING = Kind(
    name="serving",
    worse={
        **{"ttft_ms": 1, "tpot_ms": 1, "tokens_per_s_per_gpu": -1, "memory_bytes": 1},
        **{"tokens_per_s": -1, "e2e_ms": 1, "usd_per_million_tokens": 1},
    },
    tolerance={"ttft_ms": 0.02, "tpot_ms": 0.01, "tokens_per_s_per_gpu": 0.01, **_SHARED},
    request={
        "model": check.text,
        "num_gpus": check.count,
        "cluster": check.text,
        "gpu": _TEXT_OR_NULL,
        "prefill_cluster": _TEXT_OR_NULL,
        "prefill_gpus": check.count,
        "backends": _texts,
        "precisions": _texts,
        "kv_dtypes": _texts,
        **dict.fromkeys(("input_tokens", "output_tokens", "longest_tokens"), check.count),
        "prefix_tokens": check.count,
        "accepted_tokens": check.number,
        "request_rate": check.or_null(check.number),
        "concurrency": check.count,
        "trace": _TEXT_OR_NULL,
        **dict.fromkeys(("ttft_ms", "tpot_ms", "e2e_ms"), check.or_null(check.number)),
        **dict.fromkeys(("percentile", "objective", "disaggregated"), check.text),
        "overrides": _texts,
        "config_dir": _TEXT_OR_NULL,
        "profiles_dir": _TEXT_OR_NULL,
    },
)
KINDS = {TRAINING.name: TRAINING, SERVING.name: SERVING}


def kind_of(name: object) -> Kind:
    """The kind called `name`.

    Raises:
        ConfigError: no such kind.
    """
    if not isinstance(name, str) or name not in KINDS:
        rule = "is not a kind of plan this version pins"
        raise check.wrong("kind", name, f"{rule}: {', '.join(KINDS)}")
    return KINDS[name]


def tolerances(kind: Kind, path: str, value: Any) -> dict[str, float]:
    """The `tolerance` block, which a human edits: what is left out keeps its default.

    Raises:
        ConfigError: an unknown name, or a value that is not a share from 0 to 10.
    """
    found = dict(kind.tolerance)
    for name, given in check.mapping(path, value).items():
        if name not in found:
            raise ConfigError(f"{path}.{name}: unknown tolerance; {nearest(str(name), found)}")
        if not 0 <= check.number(f"{path}.{name}", given) <= 10:
            hint = "write 0.02 for 2 %"
            raise bad_value(f"{path}.{name}", given, "is not a share from 0 to 10", hint)
        found[name] = float(given)
    return found
