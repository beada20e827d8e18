"""Trials on two separate hosts: network namespaces, nothing shared but a wire.

    PYTHONPATH=. python benchmarks/remote_ranks.py        # as root, on Linux, with iproute2

Each host is a network namespace with an address of its own on a veth pair and a name of its own.
The second has its own `/tmp` and `/var/tmp` as well, so that it sees no file of the head, as on a
cluster without a shared file system. A Ray head runs on the first, a second raylet on the other,
and `autoparallel` beside the head. Everything is ended and removed afterwards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HOSTS = {"apr-head": "10.231.77.1", "apr-node": "10.231.77.2"}
PORT = 26379
TOKENS = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
LEFT = f"""
import ray
from ray.util import placement_group_table
ray.init(address="{HOSTS["apr-head"]}:{PORT}", log_to_driver=False, logging_level="ERROR")
total, free = ray.cluster_resources(), ray.available_resources()
groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
print("left over:", len(groups), "placement groups,", total["CPU"] - free.get("CPU", 0), "CPUs")
"""


def main() -> int:
    """Search, discover, measure operators and profile across the two hosts."""
    address = f"{HOSTS['apr-head']}:{PORT}"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, wired(), raylets(address):
        run = Path(folder) / "run"
        search = ("search", "--model", "gpt-tiny", "--cluster", "local-cpu", "--gpus", "2")
        verb(*search, "--out", str(run), "--quiet", shown=False)
        verb("discover", "--nodes", "2", "--ray-address", address, "--out", f"{folder}/two.yaml")
        ops = ("measure-ops", "--only", "stream", "--device", "cpu", "--quiet")
        verb(*ops, "--ray-address", address, "--out", f"{folder}/ops")
        trials = ("--device", "cpu", "--top", "3", "--steps", "3", "--ray-address", address)
        code = verb("profile", str(run), *trials)
        inside("apr-head", sys.executable, "-c", LEFT)
    return code


def verb(*words: str, shown: bool = True) -> int:
    """One command of the head."""
    print("$ autoparallel " + " ".join(words), flush=True)
    return inside("apr-head", sys.executable, "-m", "autoparallel", *words, shown=shown)


def inside(host: str, *words: str, shown: bool = True) -> int:
    """Run to the end on a host; its exit code."""
    start = time.monotonic()
    output = None if shown else subprocess.DEVNULL
    environment = {**os.environ, **TOKENS}
    done = subprocess.run(
        [*on(host), *words], env=environment, stdout=output, check=False, timeout=240
    )
    print(f"[exit {done.returncode} after {time.monotonic() - start:.0f} s]", flush=True)
    return done.returncode


def on(host: str) -> list[str]:
    """Words that put a program on a host: its network, its name, its temporary files."""
    script = f'hostname {host} && exec "$@"'
    if host != "apr-head":
        script = f"mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /var/tmp && {script}"
    return [
        *("ip", "netns", "exec", host),
        *("unshare", "--mount", "--uts", "sh", "-c", script, "sh"),
    ]


@contextmanager
def wired() -> Iterator[None]:
    """Two network namespaces on one wire."""
    for host in HOSTS:
        subprocess.run(["ip", "netns", "add", host], check=True)
    try:
        ends = [f"{host}-e" for host in HOSTS]
        pair = ["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]]
        subprocess.run(pair, check=True)
        for (host, address), end in zip(HOSTS.items(), ends, strict=True):
            subprocess.run(["ip", "link", "set", end, "netns", host], check=True)
            link = ["ip", "-n", host]
            subprocess.run([*link, "addr", "add", f"{address}/24", "dev", end], check=True)
            subprocess.run([*link, "link", "set", end, "up"], check=True)
            subprocess.run([*link, "link", "set", "lo", "up"], check=True)
            subprocess.run([*link, "route", "add", "default", "dev", end], check=True)
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False)


@contextmanager
def raylets(address: str) -> Iterator[None]:
    """A head on the first host and a node on the second, one CPU each."""
    running = []
    try:
        for host, ip in HOSTS.items():
            head = host == "apr-head"
            role = ["--head", f"--port={PORT}", "--include-dashboard=false"] if head else []
            role += [] if head else [f"--address={address}"]
            words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *role]
            words += [f"--node-ip-address={ip}", "--num-cpus=1", "--object-store-memory=80000000"]
            quiet = subprocess.DEVNULL
            running.append(
                subprocess.Popen(
                    [*on(host), *words, "--disable-usage-stats"],
                    env={**os.environ, **TOKENS},
                    stdin=quiet,
                    stdout=quiet,
                    stderr=quiet,
                    start_new_session=True,
                )
            )
            time.sleep(15)
        yield
    finally:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, sent)
            time.sleep(5)
        for process in running:
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
