"""Data files, read strictly: a bounded YAML or JSON mapping in, typed values out.

A file is data, never code: no tags, no aliases, no interpolation, no duplicate keys, a bound on
size and depth. `Rule` says what one key may hold; whatever breaks a rule is a `CatalogError` that
names the field, the value, the rule and what to try. `PlainDumper` writes what reads back the same.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autoparallel.errors import CatalogError, ConfigError, nearest, one_line, shown
from autoparallel.files import read_text

MAX_FILE_BYTES = 1_000_000
MAX_DEPTH = 12
MAX_TEXT = 2_000
_FORBIDDEN_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")

_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def catalog_error(field: str, value: object, rule: str, hint: str = "") -> CatalogError:
    """A `CatalogError` in the house form, with a value too long to print cut short."""
    return CatalogError(f"{one_line(field)}: {shown(value)} {rule}" + (f"; {hint}" if hint else ""))


class _Loader(_BaseLoader):  # type: ignore[misc]
    """Safe YAML with YAML 1.2's scalars (`300e9` is a number, `no` a text) and every key once."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[object, object]:
        """The mapping of `node`, refusing a key that stands twice or is not text."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError("a key is not plain text")
            if key.value in seen:
                raise yaml.YAMLError(f"the key {shown(key.value)} stands twice")
            seen.add(key.value)
        mapping: dict[object, object] = super().construct_mapping(node, deep=True)
        return mapping


for _tag, _pattern, _first in (
    ("null", r"(?:~|null|)", ["~", "n", ""]),
    ("bool", r"(?:true|false)", list("tf")),
    ("int", r"[-+]?(?:0|[1-9]\d*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^{_pattern}$"), _first)


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping in the YAML file `path`."""
    text = _text(path)
    try:
        _refuse_tricks(text)
        content = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(path, "YAML", error) from None
    return _mapping(content, path)


def read_json(path: Path) -> dict[str, object]:
    """The object in the JSON file `path`."""
    text = _text(path)
    try:
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, "JSON", error) from None
    return _mapping(content, path)


def _text(path: Path) -> str:
    try:
        return read_text(path, MAX_FILE_BYTES)
    except ConfigError as error:
        raise CatalogError(str(error)) from None


def _unreadable(path: Path, kind: str, error: Exception) -> CatalogError:
    reason = " ".join(str(error).split())[:300]
    return catalog_error("file", str(path), f"is not {kind} this catalog reads: {reason}")


def _refuse_tricks(text: str) -> None:
    """Anchors, aliases, explicit tags and deep nesting, found before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.YAMLError("anchors and aliases are not allowed; write the values out")
        if tag := getattr(event, "tag", None):
            raise yaml.YAMLError(f"the tag {tag} is not allowed; write a plain value")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice")
    return content


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def _mapping(content: object, path: Path) -> dict[str, object]:
    if not isinstance(content, dict):
        form = '{"key": value, ...}' if path.suffix == ".json" else "`key: value` lines"
        raise catalog_error("file", str(path), "does not hold a mapping", f"write {form}")
    refuse_code(content, str(path))
    return content


def refuse_code(value: object, field: str, depth: int = 0) -> None:
    """Refuse keys that instantiate, `${...}` interpolation and non-finite numbers, at any depth."""
    if depth > MAX_DEPTH:
        raise CatalogError(f"{one_line(field)}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise catalog_error(field, key, "is not a text key", "quote it")
            if key in _FORBIDDEN_KEYS:
                raise catalog_error(field, key, "is not allowed: configuration is data, not code")
            refuse_code(inner, key, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            refuse_code(inner, field, depth + 1)
    elif isinstance(value, str) and "${" in value:
        raise catalog_error(field, value, "holds ${...}, which is not resolved", "write the value")
    elif isinstance(value, float) and not math.isfinite(value):
        raise catalog_error(field, value, "is not a finite number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What one key may hold.

    Attributes:
        kind: `int`, `float` (a whole number will do), `bool` or `str`.
        least, most: Bounds of a number, both allowed.
        choices: The only texts allowed; empty for any.
        factor: Multiplies a number, to turn a human unit into SI.
        into: Name of the record's field when it differs from the key.
        null: Whether the key may be null.
    """

    kind: type = float
    least: float = 0.0
    most: float = 1e18
    choices: Collection[str] = ()
    factor: float = 1.0
    into: str = ""
    null: bool = False

    def read(self, field: str, value: object) -> Any:
        """`value` checked and converted."""
        if value is None and self.null:
            return None
        if self.kind is bool:
            return _typed(field, value, bool, "true or false")
        if self.kind is str:
            return self._text(field, value)
        return self._number(field, value)

    def _text(self, field: str, value: object) -> str:
        text = str(_typed(field, value, str, "text"))
        if len(text) > MAX_TEXT or not all(c.isprintable() for c in text):
            raise catalog_error(field, text, f"is not one line of at most {MAX_TEXT} characters")
        if self.choices and text not in self.choices:
            raise catalog_error(
                field, text, "is not one of the choices", nearest(text, self.choices)
            )
        return text

    def _number(self, field: str, value: object) -> float:
        whole = self.kind is int
        if isinstance(value, float) and whole and value.is_integer() and abs(value) < 1e15:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            rule = f"is not {'an integer' if whole else 'a number'}"
            hint = "write it alone, without quotes or a unit" if isinstance(value, str) else ""
            raise catalog_error(field, value, rule, hint)
        if not self.least <= value <= self.most:
            rule = f"is not in {_bound(self.least)} to {_bound(self.most)}"
            raise catalog_error(field, value, rule, self._nearest(value))
        return value if whole else float(value) * self.factor

    def _nearest(self, value: float) -> str:
        """What to write in place of a number out of bounds."""
        if value < self.least:
            return f"the least is {_bound(self.least)}"
        return f"the most is {_bound(self.most)}" if value > self.most else "give a finite number"


def _bound(number: float) -> str:
    """`1,000,000`, `0.0001`; from eleven digits on, `1e+18`."""
    return f"{number:,.10g}"


def _typed(field: str, value: object, kind: type, words: str) -> Any:
    if not isinstance(value, kind):
        raise catalog_error(field, value, f"is not {words}")
    return value


def read_fields(
    values: Mapping[str, object],
    rules: Mapping[str, Rule],
    *,
    required: Iterable[str],
    where: str,
    beside: Iterable[str] = (),
) -> dict[str, Any]:
    """Record fields from `values`: every key known, typed and in bounds, nothing required missing.

    Args:
        values: Keys and values as written.
        rules: What each key may hold; a key that has none is an error.
        required: Keys that must stand there.
        where: Prefix of a field's name in messages.
        beside: Keys that others read from the same mapping; not in `values`.
    """
    for key in values:
        if key not in rules:
            raise catalog_error(
                f"{where}.{key}",
                values[key],
                "is set, but there is no such key",
                nearest(key, (*rules, *beside)),
            )
    if missing := [key for key in required if values.get(key) is None]:
        raise CatalogError(f"{where}.{missing[0]}: missing, and has no default; add it")
    return {
        rule.into or key: rule.read(f"{where}.{key}", values[key])
        for key, rule in rules.items()
        if key in values
    }


def submapping(values: Mapping[str, object], key: str, where: str) -> dict[str, object]:
    """The mapping under `key`; an empty one when the key is absent."""
    inner = values.get(key)
    if inner is None:
        return {}
    if not isinstance(inner, dict):
        raise catalog_error(f"{where}.{key}", inner, "is not a mapping", "indent its keys below it")
    return inner


def text_list(values: Mapping[str, object], key: str, where: str) -> tuple[str, ...]:
    """The list of texts under `key`; empty when the key is absent."""
    inner = values.get(key)
    if inner is None:
        return ()
    if not isinstance(inner, list) or not all(isinstance(item, str) for item in inner):
        raise catalog_error(f"{where}.{key}", inner, "is not a list of texts")
    return tuple(inner)


class PlainDumper(yaml.SafeDumper):
    """Plain YAML without aliases; text is quoted unless it is a simple word."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never write an anchor."""
        return True


_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:-[A-Za-z0-9_.]+)*")
_NOT_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def _text_node(dumper: PlainDumper, text: str) -> yaml.ScalarNode:
    simple = _WORD.fullmatch(text) and text.lower() not in _NOT_WORDS
    style = None if simple else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


PlainDumper.add_representer(str, _text_node)
