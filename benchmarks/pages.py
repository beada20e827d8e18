"""The command line of scripts that make one page: `[--out FILE]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def publish(name: str, about: str | None, page: Callable[[], str]) -> None:
    """Print a page and write it to benchmarks/<name>_<yyyy-mm>.md, or to `--out`."""
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    usual = FOLDER / f"{name}_{datetime.now(UTC):%Y-%m}.md"
    parser.add_argument("--out", type=Path, default=usual)
    arguments = parser.parse_args()
    text = page()
    print(text, end="")
    arguments.out.write_text(text, encoding="utf-8")
