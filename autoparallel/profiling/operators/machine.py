"""The machine that is measured, as a rank on it has found it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoparallel import strict_json as check
from autoparallel.errors import bad_value
from autoparallel.profiling.errand import Errand
from autoparallel.profiling.launcher import Launcher
from autoparallel.profiling.seen import Seen
from autoparallel.profiling.sending import send
from autoparallel.profiling.topology.cluster_file import gpu_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One node.

    Attributes:
        host: Its name.
        device: `cuda` or `cpu`.
        name: The device's own name.
        fp8: Whether it multiplies fp8 by itself.
        torch, cuda: Versions; `cuda` is empty on a CPU.
        node: Its GPUs and links.
    """

    host: str
    device: str
    name: str
    fp8: bool
    torch: str
    cuda: str
    node: Seen

    @property
    def catalog_name(self) -> str:
        """The catalog's entry of the device.

        Raises:
            ConfigError: a GPU that the catalog does not have.
        """
        if self.device == "cpu":
            return "cpu"
        if not (found := gpu_id(self.name)):
            rule = "is no GPU of the catalog"
            raise bad_value("gpu", self.name, rule, "say which one it is with --gpu")
        return found


def machine(launcher: Launcher, errand: Errand, folder: Path) -> Machine:
    """What the rank that was sent with an `about` errand says."""
    (end,) = send(launcher, errand, folder)
    return Machine(**check.record("", check.parsed(end.found), _MACHINE))


_MACHINE: dict[str, check.Check] = {
    **dict.fromkeys(("host", "name", "torch", "cuda"), check.text),
    "device": check.choice("cpu", "cuda"),
    "fp8": check.flag,
    "node": Seen.parse,
}
