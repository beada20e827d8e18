"""How a lock file is written: one figure a line where a review reads it, compact elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from autoparallel.strict_yaml import PlainDumper

WIDTH = 110
_HEADER = """\
# A plan pinned by `autoparallel regress pin`. `note` and `tolerance` are yours to edit; the
# checksum covers the rest. `autoparallel regress check FILE` holds today's search against it,
# `autoparallel regress check FILE --update` pins it again.
"""
_ABOUT = {
    "tolerance": "Shares that pass: of step time, memory, P(fits), lead of another layout, runs.",
    "used": "What the prediction rests on, in the words of the catalog and the profile.",
}


class _Compact(dict[str, Any]):
    """A mapping to be written on as few lines as it takes."""


class _Dumper(PlainDumper):
    """Indented lists, and `_Compact` mappings in flow style."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        """Indent the items of a list below its key."""
        return super().increase_indent(flow, False)


def _flow(dumper: yaml.SafeDumper, data: Mapping[str, Any]) -> yaml.MappingNode:
    node = dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True)
    for _, value in node.value:
        if isinstance(value, yaml.CollectionNode):
            value.flow_style = True
    return node


def _list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.SequenceNode:
    plain = all(not isinstance(item, dict) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


_Dumper.add_representer(_Compact, _flow)
_Dumper.add_representer(list, _list)


def lock_text(data: Mapping[str, Any]) -> str:
    """The file: a section a key, blank lines between."""
    shown = dict(data)
    shown["pinned"] = _entry(data["pinned"], brief=False)
    shown["runners_up"] = [_entry(entry, brief=True) for entry in data["runners_up"]]
    shown["used"] = {k: _Compact(v) if k == "space" else v for k, v in data["used"].items()}
    sections = [_section(key, value) for key, value in shown.items()]
    return _HEADER + "".join(sections)


def _entry(entry: Mapping[str, Any], *, brief: bool) -> dict[str, Any]:
    """An entry; only the pinned one has a line for every figure."""
    made = {**entry, "intervals": _Compact(entry["intervals"])}
    made["parts"] = {name: _Compact(block) for name, block in entry["parts"].items()}
    if brief:
        made["fields"] = _Compact(entry["fields"])
        made["predicted"] = _Compact(entry["predicted"])
    return made


def _section(key: str, value: Any) -> str:
    text = yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, width=WIDTH, allow_unicode=True)
    comment = f"# {_ABOUT[key]}\n" if key in _ABOUT else ""
    gap = "\n" if isinstance(value, dict | list) and value else ""
    return gap + comment + text
