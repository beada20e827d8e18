"""The user's own job as a trial: `torchrun ... pretrain_gpt.py @{args_file}`.

The command is a list of words, never a line for a shell. Words in braces are filled in:
`{args_file}` is the path of a file with one argument a line, and a word that is `@{args_file}` or
`{arguments}` becomes the arguments themselves (which is what `@file` means to argparse; Megatron-LM
does not switch that form on). `{num_gpus}`, `{num_nodes}`, `{gpus_per_node}` and `{folder}` are the
job's. torchrun's own settings need no words at all: it reads them from `PET_...` variables, which
every launcher here sets.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoparallel.errors import bad_value, nearest
from autoparallel.files import write_text
from autoparallel.profiling.errand import Work
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.launcher import Progress
from autoparallel.profiling.logs import read_log, result_of
from autoparallel.profiling.process_tree import GRACE_S, dies_with_parent, end_tree
from autoparallel.profiling.ranks import start_folder

ARGUMENTS_FILE, LOG_FILE = "args.txt", "command.log"
_SPLICED = ("@{args_file}", "{arguments}")
_WORD = re.compile(r"\{(\w+)\}")
_OLD_TORCHRUN = "torch.distributed.launch"
_NAMES = ("args_file", "num_gpus", "num_nodes", "gpus_per_node", "folder")


def command_words(command: str) -> tuple[str, ...]:
    """The words of `--command`, as a shell would split them, and nothing else a shell does.

    Raises:
        ConfigError: nothing in it, a quote left open, or a word in braces that has no meaning.
    """
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise bad_value("--command", command, f"cannot be split into words ({error})") from error
    if not words:
        raise bad_value("--command", command, "is empty", "give the program and its arguments")
    for name in (name for word in words for name in _WORD.findall(word)):
        if name not in (*_NAMES, "arguments"):
            raise bad_value("--command", f"{{{name}}}", "is not known", nearest(name, _NAMES))
    if not any("{args_file}" in word or word in _SPLICED for word in words):
        rule = "does not say where the layout's arguments go"
        raise bad_value("--command", command, rule, "end it with @{args_file}")
    return words


def with_command(
    job: Job,
    command: Sequence[str],
    exported: Callable[[Job], Sequence[str]],
    environment: Mapping[str, str] | None = None,
) -> Job:
    """`job` as the user's own command.

    Args:
        job: What is to be measured.
        command: Words from `command_words`.
        exported: Gives the job's arguments in the words of the command's program.
        environment: Variables of every rank: the site's and those of the exporter.
    """
    variables = {**job.environment, **(environment or {})}
    return replace(
        job, command=tuple(command), arguments=tuple(exported(job)), environment=variables
    )


def refuse_torchrun(words: Sequence[str]) -> None:
    """Raise where one process cannot stand for a whole world, because torchrun says who it is.

    Raises:
        ConfigError: a word that starts torchrun.
    """
    for word in words:
        if Path(word).name == "torchrun" or word in ("torch.distributed.run", _OLD_TORCHRUN):
            rule = "gives every rank a world of its own, and in --mode rank one process stands for"
            hint = "write 'python pretrain_gpt.py @{args_file}'"
            raise bad_value("--command", word, f"{rule} a rank of the whole world", hint)


def made_up_place(job: Job) -> dict[str, str]:
    """Who a process is that stands for one rank of a world; nothing of other jobs.

    Megatron-LM's `--fake-process-group` takes rank and size from torchrun's variables (core_v0.16.1
    megatron/training/initialize.py); nobody is met at the address.
    """
    if job.mode != "rank":
        return {}
    return {
        "RANK": str(job.rank or 0),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(job.num_gpus),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }


def argv(job: Job, folder: Path, gpus_per_node: int) -> list[str]:
    """The command of `job`, every word filled in."""
    per_node = min(gpus_per_node, job.processes)
    values = {
        "args_file": str(folder / ARGUMENTS_FILE),
        "num_gpus": str(job.num_gpus),
        "num_nodes": str(-(-job.processes // per_node)),
        "gpus_per_node": str(per_node),
        "folder": str(folder),
    }
    found: list[str] = []
    for word in job.command:
        if word in _SPLICED:
            found += job.arguments
        else:
            found.append(_WORD.sub(lambda at: values.get(at.group(1), at.group(0)), word))
    return found


def write_arguments(job: Work, folder: Path) -> None:
    """The arguments of a job's command into the trial's folder, one a line; none of a worker's.

    Raises:
        ConfigError: an argument that holds a line end.
    """
    if broken := [word for word in job.arguments if "\n" in word or "\0" in word]:
        raise bad_value("argument", broken[0], "holds a line end, which a file of lines cannot")
    if job.command:
        write_text(folder, ARGUMENTS_FILE, "".join(f"{word}\n" for word in job.arguments))


def torchrun_variables(processes: int, gpus_per_node: int) -> dict[str, str]:
    """What torchrun needs to know on every node, as it reads it from the environment.

    Source: pytorch torch/distributed/argparse_util.py, `env`.
    """
    per_node = min(gpus_per_node, processes)
    return {
        "PET_NNODES": str(-(-processes // per_node)),
        "PET_NPROC_PER_NODE": str(per_node),
    }


@dataclass(slots=True, kw_only=True)
class CommandLauncher:
    """Runs a job's command on this machine, one program at a time, and reads what it prints.

    Attributes:
        grace_s: How long a program that is told to end may take before it is killed.
    """

    name: str = "command"
    grace_s: float = GRACE_S
    _running: dict[str, _Running] = field(default_factory=dict)

    def submit(self, job: Work, folder: Path) -> str:
        """Start the command with its output in `command.log`; see `Launcher`."""
        if not isinstance(job, Job):
            raise bad_value("errand", job.errand, "is not a command", "use another launcher")
        start_folder(job, folder)
        write_arguments(job, folder)
        words = argv(job, folder, job.processes)
        variables = torchrun_variables(job.processes, job.processes)
        with (folder / LOG_FILE).open("wb") as log:
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **variables, **job.environment},
                    start_new_session=True,
                    preexec_fn=dies_with_parent(),
                )
            except (OSError, ValueError) as error:
                rule = f"cannot be started ({error})"
                raise bad_value("--command", words[0], rule, "give its full path") from error
        ticket = str(folder)
        self._running[ticket] = _Running(job=job, log=folder / LOG_FILE, process=process)
        return ticket

    def poll(self, ticket: str) -> Progress:
        """See `Launcher`."""
        return self._running[ticket].progress()

    def collect(self, ticket: str) -> Result:
        """See `Launcher`."""
        run = self._running[ticket]
        return result_of(read_log(run.log), run.job, run.process.poll())

    def cancel(self, ticket: str) -> None:
        """See `Launcher`."""
        if run := self._running.get(ticket):
            end_tree(run.process, self.grace_s if run.process.poll() is None else 0.0)

    def close(self) -> None:
        """See `Launcher`."""
        for ticket in list(self._running):
            self.cancel(ticket)


@dataclass(slots=True, kw_only=True)
class _Running:
    job: Job
    log: Path
    process: subprocess.Popen[bytes]
    read_bytes: int = -1
    step_s: tuple[float, ...] = ()

    def progress(self) -> Progress:
        """Read the log again only when it has grown."""
        state = "running" if self.process.poll() is None else "done"
        size = self.log.stat().st_size if self.log.is_file() else 0
        if size != self.read_bytes:
            self.read_bytes = size
            self.step_s = result_of(read_log(self.log), self.job).step_s
        return Progress(state=state, step_s=self.step_s)
