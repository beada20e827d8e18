"""A trial's two records: the `Job` that goes in and the `Result` that comes out, as strict JSON.

Neither Ray nor torch is imported here: the same module is read by the driver on a laptop and by
every rank on a bare machine. A job's `trial` is a digest of what it measures, so that the same
question asked twice finds its answer.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from autoparallel import strict_json as check
from autoparallel.errors import ConfigError, bad_value
from autoparallel.layout import Layout
from autoparallel.model import Model, Training

SCHEMA_VERSION = 1
MODES = ("job", "proxy", "rank")
OUTCOMES = ("ok", "out_of_memory", "timeout", "crash", "invalid")
DEVICES = ("auto", "cpu", "cuda")
IMPLS = ("auto", "te", "sdpa", "local")
MEMORY_KINDS = ("", "allocated", "reserved", "device", "rss")
LOG_TAIL_CHARACTERS = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One short training run.

    Attributes:
        model: What is trained; in `proxy` mode already with fewer layers.
        layout: How; in `proxy` mode already for fewer replicas.
        num_gpus: Ranks of the layout. In `rank` mode the size of the world that one process stands
            in.
        mode: `job` the real thing, `proxy` a smaller one, `rank` one rank of a fake process group.
        rank: Which rank of the world, in `rank` mode; null otherwise.
        device: `auto` takes CUDA where there is any.
        impl: Attention and kernels: `te` TransformerEngine, `sdpa` torch's flash attention,
            `local` megatron-core's own unfused one; `auto` takes the first that runs.
        steps, warmup_steps: Timed training steps, and those before them that are left out.
        timeout_s: From the first sign of life of the ranks to their end.
        collective_timeout_s: What one collective may take before a rank gives up.
        comparable: Train in fp32 from weights that do not depend on the layout, so that losses of
            layouts can be compared.
        command: The user's own argv; empty for the built-in worker.
        arguments: Megatron-LM arguments that a command is fed with.
        environment: Variables of every rank.
    """

    model: Model
    layout: Layout
    num_gpus: int
    global_batch_size: int
    seq_length: int
    mode: str = "job"
    rank: int | None = None
    device: str = "auto"
    impl: str = "auto"
    steps: int = 3
    warmup_steps: int = 1
    timeout_s: float = 600.0
    collective_timeout_s: float = 120.0
    seed: int = 1234
    comparable: bool = False
    command: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Ranges, and what must hold between fields."""
        for name in ("num_gpus", "global_batch_size", "seq_length", "steps"):
            if getattr(self, name) < 1:
                raise bad_value(f"job {name}", getattr(self, name), "is below 1")
        if not self.timeout_s > 0 or not self.collective_timeout_s > 0:
            raise bad_value("job timeout_s", self.timeout_s, "is not above 0")
        world = self.layout.model_parallel_size
        if self.num_gpus % world:
            rule = f"is not a multiple of tp x pp x cp = {world}"
            raise bad_value("job num_gpus", self.num_gpus, rule, "change the layout")
        if (self.mode == "rank") != (self.rank is not None):
            raise bad_value("job rank", self.rank, f"does not go with mode {self.mode!r}")
        if self.rank is not None and not 0 <= self.rank < self.num_gpus:
            raise bad_value("job rank", self.rank, f"is not in 0..{self.num_gpus - 1}")

    @property
    def processes(self) -> int:
        """Processes that run: one a GPU, or one alone in `rank` mode."""
        return 1 if self.mode == "rank" else self.num_gpus

    @property
    def data_parallel_size(self) -> int:
        """Replicas of the model."""
        return self.layout.data_parallel_size(self.num_gpus)

    @property
    def trial(self) -> str:
        """Digest of everything that the measurement depends on: time limits are left out."""
        own = self.to_json()
        for name in ("timeout_s", "collective_timeout_s"):
            del own[name]
        text = json.dumps(own, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def subject(self) -> str:
        """Digest of what is measured, however many steps it takes."""
        return replace(self, steps=1, warmup_steps=0).trial

    def to_json(self) -> dict[str, Any]:
        """The job as plain data."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own |= {"model": asdict(self.model), "layout": str(self.layout)}
        return {"schema_version": SCHEMA_VERSION} | {k: check.plain(k, v) for k, v in own.items()}

    def text(self) -> str:
        """What `job.json` holds."""
        return _text(self.to_json())

    @classmethod
    def parse(cls, text: str) -> Job:
        """Read what `text` wrote.

        Raises:
            ConfigError: not whole JSON, a field unknown, missing or of the wrong kind.
        """
        return cls(**_own("job", check.parsed(text), _JOB))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """What one rank saw; memory is null where the device does not say.

    Attributes:
        peak_allocated_bytes, peak_reserved_bytes: Maxima of torch's CUDA allocator.
        peak_rss_bytes: On a CPU, growth of the resident set from before the model was built.
        parameters: Held by this rank.
        import_s, build_s: Libraries; process groups, model and optimizer.
        forward_backward_s, optimizer_s: Medians over the timed steps.
    """

    rank: int
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_rss_bytes: int | None = None
    parameters: int = 0
    import_s: float = 0.0
    build_s: float = 0.0
    forward_backward_s: float = 0.0
    optimizer_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a trial ended and what it measured.

    Attributes:
        trial: Of its job.
        outcome: One of `OUTCOMES`.
        message: Why it is not `ok`; empty when it is.
        device, backend, impl: What was really used.
        step_s: Timed steps, warm-up left out (`warmup_step_s`).
        iteration_s, iteration_s_mad: Median and median absolute deviation of `step_s`; of a command
            that prints averages only, its last one.
        peak_memory_bytes, memory_kind: Of the fullest rank, and what it counts.
        losses: One a step, warm-up included; null where a loss is not finite.
        deviations: Where the run was not exactly the layout, in words.
        stopped_early: Ended on purpose before its last step: clearly beaten.
        log_tail: The last lines of the failed rank, or of rank 0.
        started_at: UTC, ISO 8601.
        wall_s: From submission to the end.
    """

    trial: str
    outcome: str
    message: str = ""
    mode: str = "job"
    launcher: str = ""
    device: str = ""
    backend: str = ""
    impl: str = ""
    step_s: tuple[float, ...] = ()
    warmup_step_s: tuple[float, ...] = ()
    iteration_s: float | None = None
    iteration_s_mad: float | None = None
    tokens_per_s_per_gpu: float | None = None
    peak_memory_bytes: float | None = None
    memory_kind: str = ""
    losses: tuple[float | None, ...] = ()
    ranks: tuple[RankReport, ...] = ()
    deviations: tuple[str, ...] = ()
    stopped_early: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    log_tail: str = ""
    started_at: str = ""
    wall_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it measured a step time."""
        return self.outcome == "ok" and self.iteration_s is not None

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own["ranks"] = [asdict(rank) for rank in self.ranks]
        return {"schema_version": SCHEMA_VERSION} | {k: check.plain(k, v) for k, v in own.items()}

    def text(self) -> str:
        """What `result.json` holds."""
        return _text(self.to_json())

    @classmethod
    def parse(cls, text: str) -> Result:
        """Read what `text` wrote.

        Raises:
            ConfigError: not whole JSON, a field unknown, missing or of the wrong kind.
        """
        return cls(**_own("result", check.parsed(text), _RESULT))


def timing(job: Job, step_s: tuple[float, ...]) -> dict[str, Any]:
    """The fields of a `Result` that follow from the timed steps; none without steps."""
    if not step_s:
        return {}
    middle = statistics.median(step_s)
    tokens = job.global_batch_size * job.seq_length
    return {
        "step_s": step_s,
        "iteration_s": middle,
        "iteration_s_mad": statistics.median(abs(s - middle) for s in step_s),
        "tokens_per_s_per_gpu": tokens / middle / job.num_gpus,
    }


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _own(kind: str, data: Any, checks: Mapping[str, check.Check]) -> dict[str, Any]:
    """The record's fields, once its version is the one this program writes."""
    found = check.mapping(kind, data)
    version = found.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise bad_value(f"{kind} schema_version", version, f"is not {SCHEMA_VERSION}")
    rest = {name: value for name, value in found.items() if name != "schema_version"}
    return check.record("", rest, checks)


def _layout(path: str, value: Any) -> Layout:
    try:
        return Layout.parse(check.text(path, value))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


_BY_TYPE: dict[str, check.Check] = {
    "str": check.text,
    "bool": check.flag,
    "int": check.count,
    "float": check.number,
}
_TRAINING = {f.name: _BY_TYPE[str(f.type)] for f in fields(Training)}
_MODEL = {f.name: _BY_TYPE[str(f.type)] for f in fields(Model) if f.name != "training"} | {
    "training": check.or_null(check.built(Training, _TRAINING))
}
_JOB: dict[str, check.Check] = {
    "model": check.built(Model, _MODEL),
    "layout": _layout,
    **dict.fromkeys(("num_gpus", "global_batch_size", "seq_length"), check.count),
    "mode": check.choice(*MODES),
    "rank": check.or_null(check.count),
    "device": check.choice(*DEVICES),
    "impl": check.choice(*IMPLS),
    **dict.fromkeys(("steps", "warmup_steps"), check.count),
    **dict.fromkeys(("timeout_s", "collective_timeout_s"), check.number),
    "seed": check.count,
    "comparable": check.flag,
    **dict.fromkeys(("command", "arguments"), check.list_of(check.text)),
    "environment": check.map_of(check.text),
}
_BYTES = dict.fromkeys(
    ("peak_allocated_bytes", "peak_reserved_bytes", "peak_rss_bytes"), check.or_null(check.count)
)
_SECONDS = dict.fromkeys(("import_s", "build_s", "forward_backward_s", "optimizer_s"), check.number)
RANK_CHECKS: dict[str, check.Check] = {
    "rank": check.count,
    **_BYTES,
    "parameters": check.count,
    **_SECONDS,
}
_RESULT: dict[str, check.Check] = {
    "trial": check.text,
    "outcome": check.choice(*OUTCOMES),
    "message": check.text,
    "mode": check.choice(*MODES),
    **dict.fromkeys(("launcher", "device", "backend", "impl"), check.text),
    **dict.fromkeys(("step_s", "warmup_step_s"), check.list_of(check.number)),
    **dict.fromkeys(
        ("iteration_s", "iteration_s_mad", "tokens_per_s_per_gpu", "peak_memory_bytes"),
        check.or_null(check.number),
    ),
    "memory_kind": check.choice(*MEMORY_KINDS),
    "losses": check.list_of(check.or_null(check.number)),
    "ranks": check.list_of(check.built(RankReport, RANK_CHECKS)),
    "deviations": check.list_of(check.text),
    "stopped_early": check.flag,
    "versions": check.map_of(check.text),
    **dict.fromkeys(("log_tail", "started_at"), check.text),
    "wall_s": check.number,
}
