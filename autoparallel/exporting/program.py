"""What an exporter gives back, and the script that starts it on one node."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from autoparallel.errors import bad_value


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One framework's job: its own files, and how `torchrun` starts it.

    Attributes:
        version: What the files are written for; other versions rename settings.
        files: Name beside the script -> text.
        command: Bash words after `torchrun ...`, from the exporter alone; `$here` is the folder.
        before: Bash lines in front of it.
        environment: Variables of every rank.
    """

    version: str
    files: Mapping[str, str]
    command: str
    before: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def node_script(program: Program, num_nodes: int, gpus_per_node: int) -> str:
    """A bash script that starts the job on one node; run it on every node.

    `NNODES`, `NODE_RANK`, `MASTER_ADDR` and `MASTER_PORT` come from its environment: one node needs
    none, several their rank and the first node's address. Files are found beside the script,
    wherever it is started.
    """
    several = num_nodes > 1
    node = "NODE_RANK:?the number of this node, from 0" if several else "NODE_RANK:-0"
    master = "MASTER_ADDR:?the address of node 0" if several else "MASTER_ADDR:-localhost"
    lines = [
        "#!/usr/bin/env bash",
        f"# Written for {program.version}; other versions rename settings.",
        "set -euo pipefail",
        'here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"',
        *exports(program.environment),
        *program.before,
        f'exec torchrun --nnodes "${{NNODES:-{num_nodes}}}" --node-rank "${{{node}}}" \\',
        f"  --nproc-per-node {gpus_per_node} \\",
        f'  --master-addr "${{{master}}}" --master-port "${{MASTER_PORT:-29500}}" \\',
        f"  {program.command}",
    ]
    return "\n".join(lines) + "\n"


def dns_name(text: str, suffix: str = "") -> str:
    """`text` as a DNS label of at most 50 letters, so that pod names stay below 63."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "job"
    return plain[: 50 - len(suffix)].strip("-") + suffix


def exports(environment: Mapping[str, str]) -> list[str]:
    """One quoted `export` a variable."""
    return [f"export {name}={shlex.quote(one_line(name, v))}" for name, v in environment.items()]


def one_line(field_name: str, text: str) -> str:
    """`text`, which a line of a launch file can carry.

    Raises:
        ConfigError: it holds a line end or a null.
    """
    if any(sign in text for sign in "\n\r\0"):
        rule = "holds a line end, which a launch file cannot carry"
        raise bad_value(field_name, text, rule, "write it on one line")
    return text
