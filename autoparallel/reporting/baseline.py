"""The user's own configuration: a layout, a launch script, a Bridge YAML or a Megatron-LM log.

Files are read, never run: variables of a script are filled in from its own plain assignments.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from autoparallel import files
from autoparallel.errors import bad_value
from autoparallel.layout import Layout
from autoparallel.planning import written
from autoparallel.reporting.megatron_fields import JOB, KNOWN, layout_of
from autoparallel.request import TrainingRequest

MAX_BYTES = 256 * 1024 * 1024
MAX_YAML_BYTES = 4 * 1024 * 1024
_SUFFIXES = (".sh", ".bash", ".txt", ".log", ".out", ".yaml", ".yml")
_LOG_LINE = re.compile(r"(?:^|\s)([a-z][a-z0-9_]+) \.{3,} (.*?)\s*$", re.MULTILINE)
_STEP = re.compile(r"elapsed time per iteration \(ms\): *([\d.]+)")
_ASSIGNMENT = re.compile(
    r"""^\s*(?:export\s+|local\s+)?([A-Za-z_]\w*)=(?:"([^"\n]*)"|'([^'\n]*)'|([^\s"'();|&]+))\s*$""",
    re.MULTILINE,
)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)(?::?-([^}]*))?\}|([A-Za-z_]\w*))")
_ALIASES = {
    "fp8_format": "fp8",
    "fp4_format": "fp4",
    "num_experts": "num_moe_experts",
    "microbatch_group_size_per_virtual_pipeline_stage": "microbatch_group_size_per_vp_stage",
    "context_parallel_comm_type": "cp_comm_type",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the user runs now.

    Attributes:
        source: The layout's text, or the name of the file it was read from.
        iteration_s: Median step time of the second half of a log; None elsewhere.
        notes: Where the file's job is not the request's.
    """

    layout: Layout
    source: str
    is_file: bool = False
    iteration_s: float | None = None
    notes: tuple[str, ...] = ()


def given(text: str, request: TrainingRequest) -> Given:
    """The layout `text` says, or the one in the file it names.

    Raises:
        ConfigError: no such file, a file without Megatron arguments, or an unknown word.
    """
    path = Path(text)
    if "\0" in text or not _is_file(path):
        if path.suffix in _SUFFIXES:
            raise bad_value("--baseline", text, "is not an existing file", "or write a layout")
        return Given(layout=written(text, request), source=text)
    found, iteration_s = _read(path)
    if not any(name in found for name in KNOWN):
        rule = "names none of Megatron-LM's parallel arguments"
        raise bad_value("--baseline", text, rule, "give a launch script, a Bridge YAML or a log")
    layout = layout_of(found, request.num_gpus, request.model.num_layers)
    return Given(
        layout=layout,
        source=path.name,
        is_file=True,
        iteration_s=iteration_s,
        notes=_notes(found, request),
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a layout can be longer than a file name may be
        return False


def _read(path: Path) -> tuple[dict[str, Any], float | None]:
    if path.suffix in (".yaml", ".yml"):
        return of_yaml(_yaml(path)), None
    text = files.read_text(path, MAX_BYTES)
    if printed := dict(_LOG_LINE.findall(text)):
        return {name: _value(value) for name, value in printed.items()}, step_s(text)
    return of_script(text), step_s(text)


def _yaml(path: Path) -> dict[str, Any]:
    """A file another program wrote: plain data, its `_target_` keys only text nobody follows."""
    text = files.read_text(path, MAX_YAML_BYTES)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise bad_value("--baseline", str(path), "repeats parts by alias", "write them out")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = f"is not plain YAML ({' '.join(str(error).split())[:160]})"
        raise bad_value("--baseline", str(path), reason) from None
    if not isinstance(content, dict):
        raise bad_value("--baseline", str(path), "is not a mapping", "give a Bridge or NeMo file")
    return content


def _value(text: str) -> Any:
    return {"None": None, "True": True, "False": False}.get(text, text)


def step_s(log: str) -> float | None:
    """Median step time of the second half of a log's steps, in seconds."""
    times = [float(ms) / 1e3 for ms in _STEP.findall(log)]
    return median(times[len(times) // 2 :]) if times else None


def of_script(text: str) -> dict[str, Any]:
    """The `--flags` of a shell script (or of a file of arguments) by Megatron's names."""
    text = text.replace("\\\n", " ")
    known = {name: a or b or c for name, a, b, c in _ASSIGNMENT.findall(text)}
    words = _tokens(_filled(text, known))
    found: dict[str, Any] = {}
    values: list[str] | None = None
    for word in words:
        word = word.strip("()")
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            values = [value] if equals else []
            found[flag.replace("-", "_")] = values
        elif values is not None and word:
            values.append(word)
    return _named(found)


def _filled(text: str, known: Mapping[str, str]) -> str:
    """`text` with its plain variables filled in; those that are not known stay."""

    def fill(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        return known.get(name, match[2] if match[2] is not None else match[0])

    for _ in range(4):  # a variable may name another
        text = _VARIABLE.sub(fill, text)
    return text


def _tokens(text: str) -> list[str]:
    try:
        words = shlex.split(text, comments=True)
        return [part for word in words for part in (word.split() if "--" in word else [word])]
    except ValueError:  # quotes that a shell joins in ways that are not needed here
        return text.replace('"', " ").replace("'", " ").split()


def _named(found: Mapping[str, list[str]]) -> dict[str, Any]:
    """Flags by field; a bare flag is a switch that is on."""
    named: dict[str, Any] = {}
    for flag, values in found.items():
        if flag == "no_overlap_p2p_communication":
            named["overlap_p2p_comm"] = False
            continue
        field = _ALIASES.get(flag, flag)
        listed = field in ("recompute_modules", "cuda_graph_scope")
        named[field] = (values if listed else values[0]) if values else True
    return named


def of_yaml(values: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a Megatron-Bridge (or NeMo) file by Megatron's names, wherever they stand.

    A switch that stands in several sections is on when one of them says so.
    """
    found: dict[str, Any] = {}
    for name, value in _leaves(values):
        own = _ALIASES.get(name, name)
        if value is not None and own in (*KNOWN, *JOB) and found.get(own) in (None, False):
            found[own] = value
    return found


def _leaves(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _leaves(value) if isinstance(value, dict) else [(str(name), value)]
    return found


def _notes(found: Mapping[str, Any], request: TrainingRequest) -> tuple[str, ...]:
    """Where the file's job differs from the request's, which is what is predicted."""
    asked = {
        "num_layers": request.model.num_layers,
        "hidden_size": request.model.hidden_size,
        "num_moe_experts": request.model.num_moe_experts or None,
        "seq_length": request.seq_length,
        "global_batch_size": request.global_batch_size,
        "world_size": request.num_gpus,
    }
    return tuple(
        f"{name}: the file has {found[name]}, the plan {ours}; the plan's is predicted."
        for name, ours in asked.items()
        if found.get(name) not in (None, "", "None")
        and str(found[name]) != str(ours)
        and not str(found[name]).startswith("$")
    )
