"""The frozen records of a request, and their saved form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from autoparallel.catalog_schema import MODEL_RULES, TRAINING_RULES, check_model
from autoparallel.errors import ConfigError, bad_value, nearest, shown
from autoparallel.files import write_text
from autoparallel.hardware import Cluster, Gpu, Link
from autoparallel.layout import PRECISIONS
from autoparallel.model import Model, Training
from autoparallel.strict_yaml import PlainDumper, Rule, read_fields, read_yaml, refuse_code

OBJECTIVES = ("iteration_s", "cost_usd", "energy_kwh", "memory_bytes")
"""What the ranking makes small; the names are those of a plan's fields."""
OBJECTIVE_WORDS = dict(zip(("time", "cost", "energy", "headroom"), OBJECTIVES, strict=True))
"""Short words for them; headroom is the memory that a layout leaves."""

SCHEMA_VERSION = 1
MAX_GPUS = 1_000_000
MAX_TOP = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a place needs to launch a job; every export and trial uses it.

    Attributes:
        mounts: `HOST:CONTAINER` pairs.
        data_path: Megatron's blend: weights and prefixes; empty means mock data.
        time_limit: Of one job, as the scheduler writes it (`04:00:00`).
        environment: Variables set for every rank, NCCL settings among them.
    """

    name: str = "local"
    image: str = ""
    mounts: tuple[str, ...] = ()
    data_path: tuple[str, ...] = ()
    partition: str = ""
    account: str = ""
    qos: str = ""
    time_limit: str = ""
    namespace: str = ""
    queue: str = ""
    work_dir: str = ""
    megatron_dir: str = ""
    tokenizer_type: str = ""
    tokenizer_model: str = ""
    checkpoint_dir: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


class SavedRequest:
    """What requests of every kind do: they become plain data and YAML, and come back.

    Attributes:
        KIND: Of the plans that answer it.
        VERB: Of the command line, whose flags it holds.
    """

    __slots__ = ()
    KIND: ClassVar[str]
    VERB: ClassVar[str]
    config_dir: str
    profiles_dir: str
    model: Model

    @property
    def config_path(self) -> Path | None:
        """The user's folder in front of the shipped data; None without one."""
        return Path(self.config_dir) if self.config_dir else None

    @property
    def profiles_path(self) -> Path | None:
        """The user's folder of calibrated constants; None without one."""
        return Path(self.profiles_dir) if self.profiles_dir else None

    def to_mapping(self) -> dict[str, Any]:
        """The request as plain data, for `request.yaml` and the `request` block of a plan."""
        record: Any = self
        return {"schema_version": SCHEMA_VERSION, "kind": self.KIND, **plain(asdict(record))}

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], where: str = "request") -> Self:
        """The request that `to_mapping` described.

        Raises:
            ConfigError: another kind or version; an unknown, missing or impossible value.
        """
        rest = dict(values)
        if "request" in rest:
            hint = "give the request.yaml that stands beside it"
            raise bad_value("file", where, "holds a plan, not its request", hint)
        version, found = rest.pop("schema_version", None), rest.pop("kind", None)
        if version != SCHEMA_VERSION or found != cls.KIND:
            rule = f"is not a {cls.KIND} request of schema_version {SCHEMA_VERSION}"
            hint = f"give a request.yaml that `autoparallel {cls.VERB} --out` wrote"
            raise bad_value(where, f"{found} {version}", rule, hint)
        refuse_code(rest, where)
        request: Self = record_of(cls, rest, where)
        check_model(request.model.name, asdict(request.model))
        return request

    def write_yaml(self, path: Path) -> None:
        """Save as YAML, whole or not at all."""
        write_text(path.parent, path.name, yaml_text(self.to_mapping()))

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """The request saved at `path`; equal to the one that was written.

        Raises:
            ConfigError: a file that cannot be read or does not hold a request.
        """
        return cls.from_mapping(read_yaml(path), str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRequest(SavedRequest):
    """One training question with nothing left open.

    Attributes:
        tokens: Tokens of the whole run; None when unknown (then a plan has no days and no cost).
        space_name, space: The chosen entry of `space/`, and its content after overrides.
        allow_numerics: Whether the search may move knobs that change the mathematics.
        baseline: A layout to compare with, in the layout grammar; empty for none.
        config_dir, profiles_dir: The user's folders in front of the shipped data; empty for none.
        overrides: The overrides as given.
        assumptions: What was taken from a default, for the answer's first line.
    """

    KIND: ClassVar[str] = "training"
    VERB: ClassVar[str] = "search"

    model: Model
    cluster: Cluster
    num_gpus: int
    framework: str
    precision: str
    global_batch_size: int
    seq_length: int
    tokens: float | None
    space_name: str
    space: Mapping[str, Any]
    site: Site
    objective: str = OBJECTIVES[0]
    allow_numerics: bool = False
    baseline: str = ""
    config_dir: str = ""
    profiles_dir: str = ""
    overrides: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)


def objective_name(word: str) -> str:
    """The objective that a word stands for: its own name, or a short one.

    Raises:
        ConfigError: neither.
    """
    name = OBJECTIVE_WORDS.get(word, word)
    if name not in OBJECTIVES:
        known = (*OBJECTIVE_WORDS, *OBJECTIVES)
        raise bad_value("objective", word, "is not an objective", nearest(word, known))
    return name


def whole(field_name: str, value: object, least: int, most: float) -> int:
    """`value` as an integer in `least..most`."""
    return int(Rule(kind=int, least=least, most=most).read(field_name, value))


def _check(request: TrainingRequest) -> None:
    """Ranges, and rules between the request's own fields."""
    whole("num_gpus", request.num_gpus, 1, MAX_GPUS)
    whole("global_batch_size", request.global_batch_size, 1, 1e8)
    whole("seq_length", request.seq_length, 1, 1e9)
    Rule(least=1.0, most=1e18, null=True).read("tokens", request.tokens)
    limit = request.cluster.max_gpus
    if limit and request.num_gpus > limit:
        rule = f"is more than the {limit} GPUs of {request.cluster.name}"
        raise bad_value("num_gpus", request.num_gpus, rule, "ask for fewer, or another cluster")
    if request.objective not in OBJECTIVES:
        objective_name(request.objective)
        rule = "is a short word, and a record holds the name"
        raise bad_value("objective", request.objective, rule, "known: " + ", ".join(OBJECTIVES))
    _check_precision(request.precision, request.cluster.gpu)


def _check_precision(precision: str, gpu: Gpu) -> None:
    """The GPU must have the arithmetic: a recipe such as `fp8-blockwise` runs at the fp8 peak."""
    peak = precision.split("-")[0]
    if peak in gpu.peak_flops_per_s or (peak == "mxfp8" and "fp8" in gpu.peak_flops_per_s):
        return
    known = [name for name in gpu.peak_flops_per_s if name in PRECISIONS]
    rule = f"is not what {gpu.name} computes in (it has {', '.join(known)})"
    raise bad_value("precision", precision, rule, f"take --precision {known[0]}")


def plain(value: Any) -> Any:
    """Mappings as dicts and tuples as lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


_NESTED: dict[str, type] = {
    "model": Model,
    "cluster": Cluster,
    "prefill_cluster": Cluster,
    "site": Site,
    "gpu": Gpu,
    "intra_link": Link,
    "inter_link": Link,
    "training": Training,
}
_SCALARS: dict[str, Rule] = {
    "str": Rule(kind=str),
    "bool": Rule(kind=bool),
    "int": Rule(kind=int),
    "float": Rule(),
    "float | None": Rule(null=True),
}
_POSITIVE = Rule(least=1e-12)
_RULES: dict[type, dict[str, Rule]] = {
    Model: MODEL_RULES,
    Training: TRAINING_RULES,
    Link: {"bandwidth_bytes_per_s": _POSITIVE},
    Gpu: {
        "memory_bytes": _POSITIVE,
        "memory_bandwidth_bytes_per_s": _POSITIVE,
        "streaming_multiprocessors": Rule(kind=int, least=1),
        "tdp_w": _POSITIVE,
    },
    Cluster: {
        "gpus_per_node": Rule(kind=int, least=1, most=MAX_GPUS),
        "nvlink_domain_gpus": Rule(kind=int, least=1, most=MAX_GPUS),
        "pue": Rule(least=1.0, most=5.0),
    },
}


def record_of(kind: type, values: object, where: str) -> Any:
    """A record of `kind` from plain data: no key unknown or missing, each value of its type."""
    if not isinstance(values, Mapping):
        raise bad_value(where, values, "is not a mapping", "indent its keys below it")
    known = {f.name: f for f in fields(kind)}
    if odd := [key for key in values if key not in known]:
        raise ConfigError(f"{where}: unknown key {shown(odd[0])}; {nearest(str(odd[0]), known)}")
    if missing := [key for key in known if key not in values]:
        raise ConfigError(f"{where}.{missing[0]}: missing; add it")
    read = {
        key: _value(kind, key, str(known[key].type), value, f"{where}.{key}")
        for key, value in values.items()
    }
    return kind(**read)


def _value(kind: type, key: str, annotation: str, value: object, where: str) -> Any:
    rules = _RULES.get(kind, {})
    if key in rules or annotation in _SCALARS:
        return (rules.get(key) or _SCALARS[annotation]).read(where, value)
    if key in _NESTED:
        return (
            None
            if value is None and "None" in annotation
            else record_of(_NESTED[key], value, where)
        )
    if annotation == "tuple[str, ...]":
        return tuple(texts(value, where))
    if not isinstance(value, dict):
        raise bad_value(where, value, "is not a mapping")
    if annotation == "Mapping[str, str]":
        return text_mapping(value, where)
    return (
        read_fields(value, dict.fromkeys(value, _POSITIVE), required=(), where=where)
        if (annotation == "dict[str, float]")
        else value
    )


def texts(value: object, where: str) -> list[str]:
    """A list of one-line texts."""
    if not isinstance(value, list | tuple):
        raise bad_value(where, value, "is not a list of texts")
    return [_SCALARS["str"].read(where, item) for item in value]


def text_mapping(value: object, where: str) -> dict[str, str]:
    """A mapping of variable names to texts; numbers are written as text."""
    if not isinstance(value, Mapping):
        raise bad_value(where, value, "is not a mapping of NAME: value")
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", str(name)):
            raise bad_value(where, name, "is not a name: letters, digits and underscores")
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise bad_value(f"{where}.{name}", text, "is not text", "quote it")
    return {name: _SCALARS["str"].read(where, str(text)) for name, text in value.items()}


def yaml_text(values: Mapping[str, Any]) -> str:
    """A saved request as text."""
    return yaml.dump(values, Dumper=PlainDumper, sort_keys=False, width=10_000, allow_unicode=True)
