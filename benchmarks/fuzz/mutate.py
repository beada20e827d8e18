"""Structured mutations: a file taken apart, one thing in it made odd, and put together again.

Random bytes rarely get past a parser. Half of the inputs are made here, so that what lies behind it
is met too: values of the wrong kind, keys that are missing, repeated or unknown, numbers at the
edges, deep nesting, files cut short, a byte-order mark, other line ends.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from typing import Any

import yaml

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 1e-300, -1e300, 0.5, 1e999, float("nan"), 2**31, 2**63),
    *(-(2**63), 2**70, 10**400, 1e18, "", " ", "0", "-1", "nan", "1e999", "true", "null", "~"),
    *("\0", "\x1b[31m", "\u202e", "\ud83d", "\ufeff", "é" * 20, "x" * 5000, "${oc.env:HOME}"),
    *("_target_", "!!python/object:os.system", "../../etc/passwd", "tp8", "tp0 mbs1", "=", "#"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": []}}, ["x"] * 50, [1e999]),
)
PIECES = (
    *(b"\0", b"\r\n", b"\r", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b'"', b"'", b",", b":", b"- "),
    *(b"\t", b"{", b"[", b"}", b"&a ", b"*a", b"!!int ", b"<<: ", b"---\n", b"# ", b"1e400", b"-0"),
    *(b"NaN", b"Infinity", b"9" * 400, b"[" * 3000, b"{a: " * 300, b"\n\n"),
)


def mutated(data: bytes, form: str, rng: random.Random) -> bytes:
    """`data` with something odd in it."""
    if rng.random() < 0.35:
        return _bytes(data, rng)
    try:
        made = _FORMS[form](data.decode("utf-8"), rng)
    except (ValueError, OverflowError, yaml.YAMLError, RecursionError, csv.Error, IndexError):
        return _bytes(data, rng)
    out = made.encode("utf-8", "surrogatepass")
    return _bytes(out, rng) if rng.random() < 0.1 else out


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Cut, repeat, insert or change bytes; other line ends."""
    at, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    choice = rng.randrange(7)
    if choice == 0:
        return data[:at]
    if choice == 1:
        return data[:at] + data[end:]
    if choice == 2:
        return data[:at] + data[at : at + 200] + data[at:]
    if choice == 3:
        return data.replace(b"\n", b"\r\n")
    if choice == 4:
        return b"\xef\xbb\xbf" + data
    if choice == 5:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    return data[:at] + rng.choice(PIECES) + data[at:]


def _tree(data: Any, rng: random.Random) -> Any:
    """Plain data with one node changed."""
    path = [data]
    while isinstance(path[-1], dict | list) and path[-1] and rng.random() < 0.85:
        node = path[-1]
        path.append(rng.choice(list(node.values()) if isinstance(node, dict) else node))
    holders = [node for node in path if isinstance(node, dict | list) and node]
    if not holders:
        return rng.choice(ODD)
    _change(holders[-1], rng)
    return data


def _change(node: Any, rng: random.Random) -> None:
    key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
    choice = rng.randrange(6)
    if choice == 0:
        del node[key]
    elif choice == 1 and isinstance(node, dict):
        node[str(rng.choice(ODD))[:50]] = rng.choice(ODD)
    elif choice == 2 and isinstance(node[key], int | float):
        node[key] = node[key] * rng.choice((-1, 0, 0.5, 2, 1e6, 1e-9, 1e300))
    elif choice == 3 and isinstance(node[key], str):
        node[key] = node[key] + str(rng.choice(ODD))
    elif choice == 4:
        node[key] = [node[key]]
    else:
        node[key] = rng.choice(ODD)


def _json(text: str, rng: random.Random) -> str:
    made = json.dumps(_tree(json.loads(text), rng), ensure_ascii=rng.random() < 0.5)
    return made.replace("{", '{"hidden_size": 1, ', 1) if rng.random() < 0.02 else made


def _yaml(text: str, rng: random.Random) -> str:
    data = _tree(yaml.load(text, Loader=_Loader), rng)
    dumped: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return dumped


def _csv(text: str, rng: random.Random) -> str:
    rows = list(csv.reader(io.StringIO(text)))
    row = rng.choice(rows)
    if rng.random() < 0.2:
        rows.append(list(row))
    else:
        row[rng.randrange(len(row))] = str(rng.choice(ODD))[:200]
    if rng.random() < 0.1:
        row.append("1")
    stream = io.StringIO()
    csv.writer(stream, lineterminator=rng.choice(("\n", "\r\n"))).writerows(rows)
    return stream.getvalue()


def _text(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    at = rng.randrange(len(words))
    choice = rng.randrange(4)
    if choice == 0:
        words[at] = str(rng.choice(ODD))[:200]
    elif choice == 1:
        words[at] += str(rng.choice(ODD))[:50]
    elif choice == 2:
        words.insert(at, rng.choice(words))
    else:
        digits = [i for i, c in enumerate(words[at]) if c.isdigit()]
        if digits:
            i = rng.choice(digits)
            words[at] = words[at][:i] + str(rng.choice((0, -1, 3, 64, 10**20))) + words[at][i + 1 :]
    return " ".join(words)


_FORMS: dict[str, Callable[[str, random.Random], str]] = {
    "json": _json,
    "yaml": _yaml,
    "csv": _csv,
    "text": _text,
}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
