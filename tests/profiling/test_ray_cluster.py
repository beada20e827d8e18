"""A Ray cluster that stands already: several nodes, joined by its address, left as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray_cluster import cluster

from autoparallel.plan import load_plan
from autoparallel.profiling.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.megatron, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
LEFT = """
import sys, ray
from ray.util import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
total, free = ray.cluster_resources(), ray.available_resources()
groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
print(len(groups), total["CPU"] - free.get("CPU", 0))
"""


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("ray")
    pytest.importorskip("megatron.core")
    with cluster(nodes=2) as found:
        yield found


def program(folder, *words):
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=400,
    )


def autoparallel(folder, *words):
    return program(folder, "-m", "autoparallel", *words)


def test_ranks_of_one_trial_lie_on_two_nodes_and_nothing_is_left(address, tmp_path):
    words = ("--model", "gpt-tiny", "--cluster", "local-cpu", "--gpus", "2", "--quiet")
    assert autoparallel(tmp_path, "search", *words, "--out", "run").returncode == 0
    done = autoparallel(
        tmp_path,
        *("profile", "run", "--device", "cpu", "--top", "2", "--steps", "2"),
        *("--ray-address", address),
    )
    assert done.returncode == 0, done.stderr
    measured = [e for e in load_plan(tmp_path / "run").entries if e.measured]
    assert len(measured) == 2
    assert {t.result.launcher for t in Store(tmp_path / "run").trials()} == {"ray"}
    assert program(tmp_path, "-c", LEFT, address).stdout.split() == ["0", "0.0"]


def test_every_node_is_looked_at_and_measured_on(address, tmp_path):
    done = autoparallel(tmp_path, "discover", "--ray-address", address, "--nodes", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert '"gpu": "cpu"' in done.stdout
    more = autoparallel(tmp_path, "discover", "--ray-address", address, "--nodes", "3")
    assert more.returncode == 2
    assert "3 is more than the 2 nodes of this Ray; use at most 2" in more.stderr
    words = ("--only", "stream", "--device", "cpu", "--ray-address", address, "--out", "ops")
    assert "2 samples taken" in autoparallel(tmp_path, "measure-ops", *words).stdout


def test_an_address_where_nobody_answers_is_bad_input(tmp_path):
    done = autoparallel(tmp_path, "discover", "--ray-address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "--ray-address: '127.0.0.1:1'" in done.stderr
    assert "Traceback" not in done.stderr
