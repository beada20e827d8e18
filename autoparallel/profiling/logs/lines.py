r"""Whole lines out of a training log, however it was written.

A log is bytes from many processes: colour codes, progress bars that overwrite themselves with
carriage returns, `\r\n`, invalid UTF-8, a binary blob without line ends, an end cut off in the
middle of a number. What comes out is text lines of bounded length, and the last line only when it
was finished, so that no half-written number is ever read as a measurement.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from autoparallel.errors import bad_value

MAX_LINE_BYTES = 1 << 16
MAX_FILE_BYTES = 4 << 30
TAIL_LINES = 60
_CHUNK_BYTES = 1 << 20
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_ENDS = re.compile(rb"\r\n|\n|\r")


def lines_of(path: Path) -> Iterator[tuple[str, bool]]:
    """The lines of a log file, each with whether its end was seen.

    Raises:
        ConfigError: no such file, not a regular file, or larger than 4 GiB.
    """
    try:
        if not path.is_file():
            raise bad_value("log", str(path), "is not an existing regular file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise bad_value("log", str(path), f"is larger than {MAX_FILE_BYTES} bytes")
        with path.open("rb") as stream:
            yield from stream_lines(stream)
    except OSError as error:
        raise bad_value("log", str(path), f"cannot be read ({error.strerror})") from error


def stream_lines(stream: BinaryIO) -> Iterator[tuple[str, bool]]:
    """`lines_of` an open stream; of a line beyond 64 KiB only the beginning is kept."""
    rest, cut = b"", False
    while chunk := stream.read(_CHUNK_BYTES):
        data = rest + chunk
        hold = data.endswith(b"\r")  # the \n of a \r\n may come with the next chunk
        pieces = _ENDS.split(data[:-1] if hold else data)
        for piece in pieces[:-1]:
            yield from _shown(b"" if cut else piece, True)
            cut = False
        rest = pieces[-1] + (b"\r" if hold else b"")
        if len(rest) > MAX_LINE_BYTES:
            yield from _shown(b"" if cut else rest, False)
            rest, cut = b"\r" if hold else b"", True
    if rest and not cut:
        yield from _shown(rest.rstrip(b"\r"), rest.endswith(b"\r"))


def _shown(raw: bytes, ended: bool) -> Iterator[tuple[str, bool]]:
    """Decoded, without colours and control characters; empty lines are dropped."""
    text = _ANSI.sub("", raw[:MAX_LINE_BYTES].decode("utf-8", "replace"))
    plain = "".join(c if c.isprintable() or c == "\t" else " " for c in text).rstrip()
    if plain:
        yield plain, ended and len(raw) <= MAX_LINE_BYTES


def tail_of(path: Path, limit: int = TAIL_LINES) -> tuple[str, ...]:
    """The last lines of a log, for a person to read; empty when there is no such file."""
    if not path.is_file():
        return ()
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - limit * 1000))
        return tuple(line[:1000] for line, _ in deque(stream_lines(stream), maxlen=limit))
