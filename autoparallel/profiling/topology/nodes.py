"""Several nodes of a cluster, looked at through a launcher and held against each other."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from autoparallel import strict_json as check
from autoparallel.errors import ConfigError
from autoparallel.profiling.errand import Errand
from autoparallel.profiling.launcher import Launcher
from autoparallel.profiling.seen import Seen
from autoparallel.profiling.sending import send
from autoparallel.profiling.topology.cluster_file import TOLERANCE, Found, cluster_of
from autoparallel.units import GB


def nodes_of(
    launcher: Launcher, count: int, shared: Path | None, environment: Mapping[str, str]
) -> dict[str, Seen]:
    """Host -> what it shows of itself.

    Args:
        launcher: Where.
        count: Nodes to look at, one rank each.
        shared: A folder that the nodes see as well, for launchers that need one.
        environment: Variables of every rank.

    Raises:
        LaunchError: a node could not be looked at; the folder of the errand is left then.
    """
    errand = Errand(errand="look", processes=count, environment=environment)
    folder = Path(tempfile.mkdtemp(prefix="discover-", dir=shared))
    try:
        ends = send(launcher, errand, folder)
    except ConfigError:
        shutil.rmtree(folder)
        raise
    folder.rmdir()
    found: dict[str, Seen] = {}
    for end in ends:
        answer = check.record("", check.parsed(end.found), _ANSWER)
        host = answer["host"]
        found[f"{host} (rank {end.rank})" if host in found else host] = answer["node"]
    return found


def cluster_of_nodes(
    seen: Mapping[str, Seen], gpu: str | None = None, config_dir: Path | None = None
) -> Found:
    """The weakest node as a cluster of such nodes, with what the others have more.

    Training runs at the pace of its slowest rank.

    Args:
        seen: Host -> what it shows.
        gpu: See `cluster_of`.
        config_dir: See `cluster_of`.
    """
    found = {host: cluster_of(node, gpu, config_dir) for host, node in seen.items()}
    weakest = min(found, key=lambda host: _strength(found[host]))
    own = found[weakest]
    notes = [
        f"{host}: {difference}; the file is of {weakest}"
        for host, other in found.items()
        for difference in _differences(other, own)
    ]
    return replace(own, deviations=(*own.deviations, *notes))


def _strength(found: Found) -> tuple[float, ...]:
    return (
        found.gpus_per_node,
        found.nvlink_domain_gpus,
        found.intra_bytes_per_s,
        found.inter_bytes_per_s,
    )


def _differences(other: Found, own: Found) -> list[str]:
    """What one node has otherwise than the one that the file is of."""
    notes = [f"gpu {other.gpu}, not {own.gpu}"] if other.gpu != own.gpu else []
    pairs = (
        ("gpus_per_node", other.gpus_per_node, own.gpus_per_node, 1.0, ""),
        ("nvlink_domain_gpus", other.nvlink_domain_gpus, own.nvlink_domain_gpus, 1.0, ""),
        ("intra_link", other.intra_bytes_per_s, own.intra_bytes_per_s, GB, " GB/s a GPU"),
        ("inter_link", other.inter_bytes_per_s, own.inter_bytes_per_s, GB, " GB/s a GPU"),
    )
    return notes + [
        f"{name} {there / unit:g}{word}, not {here / unit:g}"
        for name, there, here, unit, word in pairs
        if abs(there / here - 1) > TOLERANCE
    ]


_ANSWER: dict[str, check.Check] = {"host": check.text, "node": Seen.parse}
