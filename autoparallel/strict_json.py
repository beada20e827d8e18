"""JSON read strictly: checked key by key, with the path in every message.

Take a text, return plain data (`parsed`), then hold it against checks built from the small ones
here: `record("", data, {"steps": count, "trial": text})`. Anything but whole, finite, unrepeated,
expected data is a `ConfigError` that names the field. `plain` is the way out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from autoparallel.errors import AutoparallelError, ConfigError, bad_value, nearest, one_line

LARGEST_INTEGER = 2**63

Check: TypeAlias = Callable[[str, Any], Any]
"""Takes path and value; returns the value as the record wants it, or raises `ConfigError`."""


def parsed(text: str) -> Any:
    """JSON without the liberties: no repeated key, no NaN, no infinity, no giant integer."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_not_a_number,
            parse_float=_finite,
            parse_int=_integer,
        )
    except RecursionError as error:
        raise ConfigError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise ConfigError(f"is not whole JSON ({error}); run the search again") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{one_line(twice)}: the key stands twice in one object")
    return found


def _not_a_number(word: str) -> float:
    raise ConfigError(f"{word}: is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_a_number(text[:40])


def _integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= LARGEST_INTEGER:
        raise ConfigError(f"{text[:40]}: is not an integer below 2**63")
    return int(text)


def record(path: str, value: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    """An object with exactly the keys of `checks`, each value checked."""
    if not isinstance(value, dict):
        raise wrong(path, value, "is not an object")
    prefix = f"{path}." if path else ""
    if unknown := sorted(value.keys() - checks.keys()):
        name = one_line(unknown[0])
        raise ConfigError(f"{prefix}{name}: unknown field; {nearest(name, checks)}")
    if missing := [name for name in checks if name not in value]:
        raise ConfigError(f"{prefix}{missing[0]}: the field is missing")
    return {name: check(f"{prefix}{name}", value[name]) for name, check in checks.items()}


def wrong(path: str, value: Any, rule: str) -> ConfigError:
    """The error for a value that breaks `rule`."""
    return bad_value(path or "file", value, rule)


def number(path: str, value: Any) -> float:
    """A finite number; `true` is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(path, value, "is not a number")
    return value


def fraction(path: str, value: Any) -> float:
    """A number in [0, 1]."""
    if not 0 <= number(path, value) <= 1:
        raise wrong(path, value, "is not between 0 and 1")
    return float(value)


def count(path: str, value: Any) -> int:
    """A whole number, zero or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise wrong(path, value, "is not a whole number >= 0")
    return value


def flag(path: str, value: Any) -> bool:
    """True or false; 0 and 1 are not."""
    if not isinstance(value, bool):
        raise wrong(path, value, "is not true or false")
    return value


def choice(*known: str) -> Check:
    """One of the words `known`."""

    def check(path: str, value: Any) -> str:
        if text(path, value) not in known:
            raise bad_value(path, value, "is not a choice", nearest(value, known))
        return str(value)

    return check


def list_of(item: Check) -> Check:
    """A list of `item`s, as a tuple."""
    return lambda path, value: tuple(
        item(f"{path}[{i}]", each) for i, each in enumerate(sequence(path, value))
    )


def text(path: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise wrong(path, value, "is not text")
    return value


def mapping(path: str, value: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise wrong(path, value, "is not an object")
    return value


def sequence(path: str, value: Any) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise wrong(path, value, "is not a list")
    return value


def interval(path: str, value: Any) -> tuple[float, float]:
    """A pair [p5, p95] in order."""
    if not isinstance(value, list) or len(value) != 2:
        raise wrong(path, value, "is not a pair [p5, p95]")
    low, high = (number(f"{path}[{i}]", item) for i, item in enumerate(value))
    if low > high:
        raise wrong(path, value, "is not in order: p5 is above p95")
    return low, high


def map_of(item: Check, suffix: str = "") -> Check:
    """An object of any keys that end in `suffix`, each value an `item`."""

    def check(path: str, value: Any) -> dict[str, Any]:
        found = mapping(path, value)
        for name in found:
            if not name.endswith(suffix):
                raise ConfigError(f"{path}.{one_line(name)}: the name does not end in {suffix}")
        return {name: item(f"{path}.{one_line(name)}", each) for name, each in found.items()}

    return check


def or_null(check: Check) -> Check:
    """`check`, or null."""
    return lambda path, value: None if value is None else check(path, value)


def built(make: Callable[..., Any], checks: Mapping[str, Check]) -> Check:
    """An object with exactly the keys of `checks`, made into a record by `make`."""
    return lambda path, value: make(**record(path, value, checks))


def plain(name: str, value: Any) -> Any:
    """`value` as JSON data: NumPy scalars as Python numbers, tuples as lists, all finite."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool) or (isinstance(number, int) and abs(number) < LARGEST_INTEGER):
        return number
    if isinstance(number, float) and math.isfinite(number):
        return number
    raise AutoparallelError(f"{name}: {value!r} is not a finite number or plain data")
