"""What ranks are sent to do besides training: look at their node, time operators.

An `Errand` goes through the same launchers as a `Job`, in the same file of a trial's folder. Its
answer comes back in the ends of its ranks (`RankEnd.found`), and samples also as they are taken, on
the lines that rank 0 streams. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from autoparallel import strict_json as check
from autoparallel.errors import ConfigError, bad_value
from autoparallel.profiling.job import DEVICES, SCHEMA_VERSION, Job

ERRANDS = ("look", "about", "kernels", "collectives")


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """Something short that ranks do on compute nodes.

    Attributes:
        errand: `look` reads every node's topology, `about` one node's with what torch says of its
            device, `kernels` times operators on one device, `collectives` among all ranks.
        keys: Samples to take, as `operators.samples` names them.
        processes: Ranks.
        budget_s: No sample is begun after this.
        timeout_s, collective_timeout_s, environment: As a job's.
    """

    errand: str
    keys: tuple[str, ...] = ()
    processes: int = 1
    device: str = "auto"
    budget_s: float = 86_400.0
    timeout_s: float = 600.0
    collective_timeout_s: float = 120.0
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Ranges."""
        if self.processes < 1:
            raise bad_value("errand processes", self.processes, "is below 1")
        if not self.timeout_s > 0 or not self.collective_timeout_s > 0:
            raise bad_value("errand timeout_s", self.timeout_s, "is not above 0")

    @property
    def trial(self) -> str:
        """Digest of what is asked: a name for the folder and the scheduler."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:16]

    @property
    def mode(self) -> str:
        """An errand is always the thing itself."""
        return "job"

    @property
    def command(self) -> tuple[str, ...]:
        """An errand is never the user's own command."""
        return ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """Nor has it arguments for one."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """The errand as plain data."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"schema_version": SCHEMA_VERSION} | {k: check.plain(k, v) for k, v in own.items()}

    def text(self) -> str:
        """What `job.json` holds."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"


Work: TypeAlias = Job | Errand
"""What a launcher takes."""


def spread(work: Work) -> bool:
    """Whether ranks take a whole node each, rather than a GPU."""
    return isinstance(work, Errand) and work.errand in ("look", "about")


def ranks_per_node(work: Work, gpus_per_node: int) -> int:
    """Ranks that a node takes at the most."""
    return 1 if spread(work) else min(gpus_per_node, work.processes)


def gpus_per_node(work: Work, at_most: int) -> int:
    """GPUs that a node gives: all of them to a rank that looks at the node."""
    return at_most if spread(work) else ranks_per_node(work, at_most)


def work_of(text: str) -> Work:
    """Read `job.json`.

    Raises:
        ConfigError: neither a job nor an errand, or not whole.
    """
    data = check.parsed(text)
    if not isinstance(data, dict) or "errand" not in data:
        return Job.parse(text)
    if data.get("schema_version") != SCHEMA_VERSION:
        version = data.get("schema_version")
        raise bad_value("errand schema_version", version, f"is not {SCHEMA_VERSION}")
    own = {name: value for name, value in data.items() if name != "schema_version"}
    return Errand(**check.record("", own, _ERRAND))


_ERRAND: dict[str, check.Check] = {
    "errand": check.choice(*ERRANDS),
    "keys": check.list_of(check.text),
    "processes": check.count,
    "device": check.choice(*DEVICES),
    **dict.fromkeys(("budget_s", "timeout_s", "collective_timeout_s"), check.number),
    "environment": check.map_of(check.text),
}


def sample_line(key: str, seconds: float) -> str:
    """What rank 0 streams once it has a sample."""
    return json.dumps({"key": key, "seconds": seconds}, allow_nan=False)


def samples_in(lines: Iterable[str]) -> Iterator[tuple[str, float]]:
    """The samples among streamed lines; a half-written last line is left out."""
    for line in lines:
        try:
            sample = check.record("", check.parsed(line), _SAMPLE)
        except ConfigError:
            continue
        yield sample["key"], sample["seconds"]


_SAMPLE: dict[str, check.Check] = {"key": check.text, "seconds": check.number}
