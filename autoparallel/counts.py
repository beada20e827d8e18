"""Counts as people read them; light, since every verb says some."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A count with what it counts: `1 run`, `2,685 runs`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
