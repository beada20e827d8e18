"""Start one script on every node of a Ray cluster: `python ray_nodes.py SCRIPT NODES GPUS`.

One actor a node holds its GPUs. The script gets NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT; the
first failure ends all of them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

PLACEMENT_TIMEOUT_S = 1800
GRACE_S = 30


@ray.remote(max_restarts=0, max_task_retries=0, num_cpus=1, max_concurrency=2)
class Node:
    """The script of one node, in a process group of its own."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def address(self) -> tuple[str, str]:
        """This node's address and a port that is free on it."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), str(probe.getsockname()[1])

    def run(self, script: str, environment: dict[str, str]) -> int:
        """Run the script to its end; its exit code."""
        self.process = subprocess.Popen(
            ["bash", str(Path(script).resolve())],
            env={**os.environ, **environment},
            start_new_session=True,
        )
        return self.process.wait()

    def stop(self) -> None:
        """End what runs: torchrun ends its ranks when it is asked to, and is killed when not."""
        if self.process is None or self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


def main() -> int:
    """Place the actors, start the scripts, wait for all or the first failure."""
    script, nodes, gpus = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if not Path(script).is_file():
        print(f"no {script} here", file=sys.stderr)
        return 2
    ray.init(address=os.environ.get("RAY_ADDRESS"))
    bundle = {"CPU": 1.0} | ({"GPU": float(gpus)} if gpus else {})
    group = placement_group([bundle] * nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready(), timeout=PLACEMENT_TIMEOUT_S)
    places = [PlacementGroupSchedulingStrategy(group, i) for i in range(nodes)]
    actors = [Node.options(num_gpus=gpus, scheduling_strategy=p).remote() for p in places]
    address, port = ray.get(actors[0].address.remote())
    shared = {"NNODES": str(nodes), "MASTER_ADDR": address, "MASTER_PORT": port}
    running = [
        actor.run.remote(script, {**shared, "NODE_RANK": str(rank)})
        for rank, actor in enumerate(actors)
    ]
    while running:
        done, running = ray.wait(running)
        if code := ray.get(done[0]):
            ray.get([actor.stop.remote() for actor in actors])
            return int(code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
