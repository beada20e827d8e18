"""A trace of requests: when each arrived, how long its prompt was and how long its answer.

A CSV file with the columns `arrival` (seconds from any start), `input` and `output` (tokens), in
any order, others ignored. Rows need not be sorted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path

from autoparallel.errors import ConfigError, bad_value
from autoparallel.files import read_text

COLUMNS = ("arrival", "input", "output")
MAX_BYTES = 64 * 1024 * 1024
MAX_REQUESTS = 1_000_000
MAX_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order of their arrival; the first arrives at 0.

    Attributes:
        digest: SHA-256 of the file, shortened.
    """

    arrival_s: tuple[float, ...]
    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    digest: str

    @property
    def request_rate(self) -> float | None:
        """Requests a second, mean; None when all arrive at once."""
        span = self.arrival_s[-1]
        return (len(self.arrival_s) - 1) / span if span > 0 else None

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest request, prompt and answer."""
        pairs = zip(self.input_tokens, self.output_tokens, strict=True)
        return max(i + o for i, o in pairs)


def read_trace(path: Path) -> Trace:
    """The requests in a CSV file.

    Raises:
        ConfigError: a file that cannot be read, a missing column, or a value that no request has.
    """
    text = read_text(path, MAX_BYTES)
    rows = csv.reader(io.StringIO(text, newline=""))
    head = [name.strip().lower() for name in next(rows, [])]
    if missing := [name for name in COLUMNS if name not in head]:
        rule = f"has no column {missing[0]!r}"
        raise bad_value("trace", str(path), rule, "its first line names arrival, input and output")
    places = [head.index(name) for name in COLUMNS]
    found = []
    for row in rows:
        if any(cell.strip() for cell in row):
            found.append(_request(f"{path} line {rows.line_num}", row, places))
        if len(found) > MAX_REQUESTS:
            raise bad_value("trace", str(path), f"has more than {MAX_REQUESTS:,} requests")
    if not found:
        raise bad_value("trace", str(path), "has no requests", "write one a line below the head")
    found.sort()
    first = found[0][0]
    return Trace(
        arrival_s=tuple(arrival - first for arrival, _, _ in found),
        input_tokens=tuple(tokens for _, tokens, _ in found),
        output_tokens=tuple(tokens for _, _, tokens in found),
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
    )


def _request(where: str, row: list[str], places: list[int]) -> tuple[float, int, int]:
    """Arrival, prompt and answer of one line."""
    if len(row) <= max(places):
        raise ConfigError(f"{where}: has {len(row)} cells, too few for its columns")
    arrival, prompt, answer = (
        _number(f"{where} {name}", row[place]) for name, place in zip(COLUMNS, places, strict=True)
    )
    if not 0 <= arrival <= 1e12:
        raise bad_value(f"{where} arrival", arrival, "is not in 0 to 1e12 s")
    for name, tokens in (("input", prompt), ("output", answer)):
        if not 1 <= tokens <= MAX_TOKENS or not tokens.is_integer():
            rule = f"is not a whole number of tokens in 1 to {MAX_TOKENS:,}"
            raise bad_value(f"{where} {name}", tokens, rule)
    return arrival, int(prompt), int(answer)


def _number(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise bad_value(where, text.strip()[:40], "is not a finite number")
    return value
