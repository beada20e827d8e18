"""What a long verb is doing, on stderr."""

from __future__ import annotations

import sys


class Progress:
    """One line written over on a terminal, one line a step where it is none."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._over = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        """Say what is going on now."""
        if self._shown:
            line, end = (f"\r\x1b[K{text}", "") if self._over else (text, "\n")
            print(line, end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clear the line."""
        if self._shown and self._over:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
