"""Runs that were launched elsewhere: a folder of logs, matched to the jobs they are of.

A log belongs to the `args.txt` beside or above it, where the run was started from exported files;
else to the arguments that Megatron-LM prints at its start. What it must share with a job is what
makes the layout, the model's size and the batch: not length, data or learning rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from autoparallel.errors import bad_value
from autoparallel.files import read_text
from autoparallel.profiling.command import ARGUMENTS_FILE
from autoparallel.profiling.job import Job, Result
from autoparallel.profiling.logs import read_lines, result_of
from autoparallel.profiling.logs.lines import lines_of

SUFFIXES = (".log", ".out", ".err", ".txt")
MAX_FILES = 20_000
_ARGUMENTS_BYTES = 1 << 20
_HEAD_LINES = 5_000
_PRINTED = re.compile(r"^(?:.*\s)?(\w+) \.{2,} (.*?)\s*$")
_SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
)
_OTHERS = (
    "num_layers",
    "hidden_size",
    "seq_length",
    "micro_batch_size",
    "global_batch_size",
    "num_virtual_stages_per_pipeline_rank",
    "pipeline_model_parallel_layout",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
    "recompute_modules",
)
_SWITCHES = (
    "sequence_parallel",
    "use_distributed_optimizer",
    "use_megatron_fsdp",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "tp_comm_overlap",
    "optimizer_cpu_offload",
)
IDENTITY: Mapping[str, str] = {
    **dict.fromkeys(_SIZES, "1"),
    **dict.fromkeys(_OTHERS, "None"),
    **dict.fromkeys(_SWITCHES, "False"),
}
"""What two runs of one layout share, in Megatron-LM's names -> its value when it is not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One run of a folder: its logs, and the job they are of or why there is none."""

    logs: tuple[Path, ...]
    job: Job | None = None
    result: Result | None = None
    why: str = ""


def read_runs(
    folder: Path, jobs: Sequence[Job], exported: Callable[[Job], Sequence[str]]
) -> list[Found]:
    """Every run in `folder`, matched or not.

    Args:
        folder: Looked through with all folders below it.
        jobs: What the runs may be of.
        exported: Gives a job's arguments, as its run was started with.

    Raises:
        ConfigError: no such folder, no logs in it, or far too many files.
    """
    wanted = [(job, of_arguments(exported(job))) for job in jobs]
    words = {job.trial: tuple(exported(job)) for job in jobs}
    found = [_matched(logs, arguments, wanted) for logs, arguments in _groups(folder)]
    return [_with_result(one, words) for one in found]


def of_arguments(words: Sequence[str]) -> dict[str, str]:
    """The identity that a list of arguments gives."""
    given: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            given[name] = ""
        elif name:
            given[name] = f"{given[name]} {word}".strip()
    known = {key: given[key] or "True" for key in IDENTITY if key in given}
    return _settled({**IDENTITY, **known})


def of_printed(lines: Sequence[str]) -> dict[str, str]:
    """The identity that Megatron-LM prints between `arguments ---` and `end of arguments`.

    Empty where a log does not print them.
    """
    found: dict[str, str] = {}
    for line in lines:
        if match := _PRINTED.match(line):
            name, value = match.groups()
            if name in IDENTITY or name == "world_size":
                found.setdefault(name, re.sub(r"[\[\]',]", "", value))
    return _settled({**IDENTITY, **found}) if set(_SIZES[:2]) <= found.keys() else {}


def _settled(values: dict[str, str]) -> dict[str, str]:
    """Without what has no meaning: modules of no selective recomputation, sp of one rank."""
    if values["recompute_granularity"] != "selective":
        values["recompute_modules"] = "None"
    if values["tensor_model_parallel_size"] == "1":
        values["sequence_parallel"] = "False"
    return values


def _groups(folder: Path) -> Iterator[tuple[tuple[Path, ...], Path | None]]:
    """Logs that belong together, with the file of their arguments."""
    if not folder.is_dir():
        raise bad_value("--from-logs", str(folder), "is not a folder")
    alone: list[Path] = []
    together: dict[Path, list[Path]] = {}
    for count, path in enumerate(sorted(folder.rglob("*"))):
        if count >= MAX_FILES:
            raise bad_value("--from-logs", str(folder), f"holds more than {MAX_FILES} files")
        if path.suffix not in SUFFIXES or path.name == ARGUMENTS_FILE or not path.is_file():
            continue
        above = _arguments_above(path, folder)
        if above is None:
            alone.append(path)
        else:
            together.setdefault(above, []).append(path)
    if not alone and not together:
        hint = f"files ending in {', '.join(SUFFIXES)} are read"
        raise bad_value("--from-logs", str(folder), "holds no logs", hint)
    yield from (((path,), None) for path in alone)
    yield from ((tuple(paths), arguments) for arguments, paths in together.items())


def _arguments_above(path: Path, folder: Path) -> Path | None:
    """The nearest `args.txt` from the log's folder up to `folder`."""
    for place in path.parents:
        if (found := place / ARGUMENTS_FILE).is_file():
            return found
        if place == folder:
            return None
    return None


def _matched(
    logs: tuple[Path, ...],
    arguments: Path | None,
    wanted: Sequence[tuple[Job, dict[str, str]]],
) -> Found:
    identity, world = _identity(logs, arguments)
    if not identity:
        return Found(logs=logs, why="no args.txt with it, and no arguments printed in it")
    fitting = [job for job, own in wanted if own == identity and world in ("", str(job.num_gpus))]
    if len(fitting) != 1:
        return Found(logs=logs, why=_why(identity, wanted) if not fitting else "of several layouts")
    return Found(logs=logs, job=fitting[0])


def _with_result(found: Found, words: Mapping[str, tuple[str, ...]]) -> Found:
    """What the logs of a matched run measured; its arguments name the kernels."""
    if found.job is None:
        return found
    log = read_lines(chain.from_iterable(lines_of(path) for path in found.logs))
    read = result_of(log, replace(found.job, arguments=words[found.job.trial]))
    return replace(found, result=replace(read, trial=found.job.trial, launcher="elsewhere"))


def _identity(logs: Sequence[Path], arguments: Path | None) -> tuple[dict[str, str], str]:
    """What the run says of itself, and its world size where it says that."""
    if arguments is not None:
        return of_arguments(read_text(arguments, _ARGUMENTS_BYTES).split("\n")), ""
    head = [line for line, _ in _first(lines_of(logs[0]), _HEAD_LINES)]
    printed = of_printed(head)
    return printed, printed.pop("world_size", "")


def _first(lines: Iterator[tuple[str, bool]], count: int) -> Iterator[tuple[str, bool]]:
    for _, line in zip(range(count), lines, strict=False):
        yield line


def _why(identity: Mapping[str, str], wanted: Sequence[tuple[Job, dict[str, str]]]) -> str:
    """How it differs from the job it is nearest to."""
    if not wanted:
        return "there is no job to match"
    off = [
        ([key for key in IDENTITY if own[key] != identity[key]], job, own) for job, own in wanted
    ]
    keys, job, own = min(off, key=lambda one: len(one[0]))
    if not keys:
        return f"another number of GPUs than {job.num_gpus}"
    said = ", ".join(f"{key} {identity[key]}, not {own[key]}" for key in keys[:4])
    return f"no layout of the plan; nearest {job.layout}: {said}"
