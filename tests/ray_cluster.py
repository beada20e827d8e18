"""A Ray cluster of several nodes on this machine, for tests of what joins one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

READY_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(nodes: int, cpus: int = 1) -> Iterator[str]:
    """Raylets with `cpus` each; gives the head's address, and ends all of them afterwards."""
    folder = tempfile.mkdtemp(prefix="ap-rc-")  # short: Ray's sockets lie in it
    address = f"127.0.0.1:{free_port()}"
    started = []
    try:
        for number in range(nodes):
            started.append(node(address, Path(folder), head=number == 0, cpus=cpus))
            await_nodes(address, number + 1)
        yield address
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def node(
    address: str, folder: Path, *, head: bool, cpus: int, inside: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    """One raylet, with the head's processes beside the first; `inside` runs it elsewhere."""
    host, _, port = address.partition(":")
    role = ("--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false")
    words = [
        *inside,
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
        *(role if head else (f"--address={address}",)),
        *((f"--node-ip-address={host}",) if head else ()),
        *(f"--num-cpus={cpus}", "--object-store-memory=80000000", "--disable-usage-stats"),
    ]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    with (folder / f"start-{'head' if head else 'node'}.log").open("ab") as log:
        return subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


COUNT = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(sum(1 for node in ray.nodes() if node["Alive"]))
"""


def await_nodes(address: str, nodes: int) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        done = subprocess.run(
            [sys.executable, "-c", COUNT, address],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.stdout.strip() == str(nodes):
            return
        time.sleep(0.5)
    raise RuntimeError(f"no Ray of {nodes} nodes at {address} within {READY_S:g} s")
