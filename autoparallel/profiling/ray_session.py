"""This process as a client of Ray: of a cluster that stands, or of a local one of its own.

A local Ray has no dashboard, a small object store, a temporary folder of its own, sends no usage
statistics, and runs its ranks at the driver's own priority.

Ray's client asks a head that has gone again and again, and after a minute ends the whole process in
whatever call it is. So every operation first knocks at the head's port, and is done on a thread of
its own (`ray_calls`): when nobody answers, the session lets go of Ray, and raises.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoparallel.errors import INSTALL_PROFILE, ConfigError, bad_value
from autoparallel.profiling.process_tree import descendants
from autoparallel.profiling.ray_calls import Calls
from autoparallel.profiling.ray_head import Head

OBJECT_STORE_BYTES = 80 * 2**20
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # else Ray prints what befell a worker on our output
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # else ranks run at 15, and whatever else runs slows them down
}


_TOKEN = secrets.token_hex(32)
"""Of every local Ray of this process; Ray would keep one for all in the user's home."""


class Session:
    """From joining or starting a Ray to leaving it.

    Args:
        address: A cluster's address, or `auto`; empty starts a local Ray that ends with `close`.
        cpus: Of a local Ray.
    """

    def __init__(self, address: str, *, cpus: int) -> None:
        self.ray = _imported()
        self._temporary: Path | None = None
        self._own = contextlib.ExitStack()
        self._below: list[int] = []
        if address:
            self._connect(address)
        else:
            self._start_local(cpus)
        self._head = Head(self.ray.get_runtime_context().gcs_address)
        self.calls = Calls(self._head)

    def note_processes(self) -> None:
        """Remember what a local Ray has started: a raylet that dies leaves its own behind."""
        if self._temporary is not None:
            self._below = descendants(os.getpid())

    def close(self) -> None:
        """End the local Ray with its files, or leave the cluster."""
        with contextlib.suppress(Exception):
            self.calls(self.ray.shutdown)
        if self._head.gone:
            self._let_go()
        self._own.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _let_go(self) -> None:
        """End what is left of a local Ray without asking it, and keep Ray from asking at exit."""
        atexit.unregister(self.ray.shutdown)
        worker = self.ray._private.worker
        atexit.unregister(worker.shutdown)
        if self._temporary is None:
            return
        if worker._global_node is not None:
            worker._global_node.kill_all_processes(check_alive=False, allow_graceful=False)
        for pid in self._below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _connect(self, address: str) -> None:
        hint = "start one with `ray start --head`; one with a token needs RAY_AUTH_MODE=token"
        if not _somebody_at(address):
            raise bad_value("--ray-address", address, "is a port where nobody answers", hint)
        try:
            self.ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise bad_value(
                "--ray-address", address, f"cannot be reached ({reason})", hint
            ) from error

    def _start_local(self, cpus: int) -> None:
        """Start a Ray with a token of its own, which no other process on this machine knows."""
        self._temporary = Path(tempfile.mkdtemp(prefix="ap-ray-"))
        if "RAY_AUTH_MODE" not in os.environ:
            token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
            self._own.callback(_read_settings, self.ray)
            self._own.enter_context(_environment(token))
            _read_settings(self.ray)
        # RAY_ADDRESS would send a local start to another cluster.
        self._own.enter_context(_environment({"RAY_ADDRESS": None}))
        self.ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(self._temporary),
        )


def _somebody_at(address: str) -> bool:
    """Whether a port answers; Ray itself asks for minutes. What is no HOST:PORT is left to Ray."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host or int(port) > 65535:
        return True
    return Head(address).answers(0.0)


@contextlib.contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Variables set, or taken away, for a while."""
    before = {name: os.environ.get(name) for name in values}

    def put(found: Mapping[str, str | None]) -> None:
        for name, value in found.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(values)
    try:
        yield
    finally:
        put(before)


def _read_settings(ray: Any) -> None:
    """Make Ray's client look at the variables again, which it reads when it is imported.

    And at its token: a Ray started later in this process has another one.
    """
    with contextlib.suppress(AttributeError):
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def _imported() -> Any:
    """Ray, told to be quiet before it is imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        hint = f"{INSTALL_PROFILE}, or use --launcher subprocess"
        raise ConfigError(f"--launcher: 'ray' needs Ray ({error}); {hint}") from error
    return ray
