"""Collectives: groups of ranks as processes of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

from autoparallel.errors import ConfigError
from autoparallel.profiling.operators.samples import key_of
from autoparallel.profiling.parcel import PACKAGE
from autoparallel.profiling.process_tree import dies_with_parent, end_tree
from autoparallel.profiling.ranks import free_port

COLLECTIVE_TIMEOUT_S = 480.0
Work: TypeAlias = Iterator[tuple[str, Callable[[], float]]]
"""Keys of samples, and what measures each."""


def group_work(words: list[tuple[str, ...]], device: str, log2_bytes: tuple[int, int]) -> Work:
    """The samples named by `words` (operation, ranks, log2 of the size).

    A group is started once, when its first missing sample is asked for, and times everything.
    """
    done: dict[int, dict[str, float]] = {}

    def seconds(key: str, count: int) -> float:
        if count not in done:
            done[count] = _group(device, count, *log2_bytes)
        return done[count][key]

    for op, count, log2 in words:
        key = key_of("collectives", op, count, log2)
        yield key, partial(seconds, key, int(count))


def _group(device: str, count: int, first: int, last: int) -> dict[str, float]:
    """Start `count` ranks, wait for all, and read what rank 0 printed."""
    port = free_port()
    ranks = [_rank(device, rank, count, port, first, last) for rank in range(count)]
    try:
        deadline = time.monotonic() + COLLECTIVE_TIMEOUT_S
        text, complaint = ranks[0].communicate(timeout=COLLECTIVE_TIMEOUT_S)
        codes = [rank.wait(max(deadline - time.monotonic(), 1.0)) for rank in ranks]
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"collectives: {count} ranks were not done in {error.timeout:g} s"
        ) from error
    finally:
        for rank in ranks:
            end_tree(rank, 0.0)
    if any(codes):
        raise ConfigError(f"collectives: {count} ranks failed: {complaint.decode()[-400:]}")
    samples = [json.loads(line) for line in text.decode().splitlines() if line.startswith("{")]
    return {key_of("collectives", s["op"], count, s["log2"]): s["seconds"] for s in samples}


def _rank(
    device: str, rank: int, count: int, port: int, first: int, last: int
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            part for part in (str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")) if part
        ),
    }
    words = [sys.executable, "-m", "autoparallel.profiling.operators.collectives"]
    quiet = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
    return subprocess.Popen(
        [*words, device, str(first), str(last)],
        stdin=subprocess.DEVNULL,
        stdout=quiet,
        stderr=quiet,
        env=environment,
        start_new_session=True,
        preexec_fn=dies_with_parent(),
    )
