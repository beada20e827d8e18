"""Figures and shares as a person reads them."""

from __future__ import annotations

from typing import Any

from autoparallel.units import GIB, MS


def percent(share: float, *, sign: bool = True) -> str:
    """`+2.4 %`; two digits below one percent; `unchanged` when those are zeros."""
    value = 100 * share
    if sign and abs(value) < 0.005:
        return "unchanged"
    digits = 1 if abs(value) >= 1 else 2
    return f"{value:+.{digits}f} %" if sign else f"{value:.{digits}f} %"


def figure_text(name: str, value: float) -> str:
    """A figure in the unit that its name ends in."""
    if name.endswith("_bytes"):
        return f"{value / GIB:.2f} GiB"
    if name.endswith("_ms"):
        return f"{value:.4g} ms"
    if name.endswith("_s") and "_per_s" not in name:
        return f"{value:.4g} s" if value >= 1 else f"{value / MS:.4g} ms"
    return f"{value:.4g}"


def value_text(value: Any) -> str:
    """A number, flag, text or list of a catalog file or profile."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join(value_text(each) for each in value) + "]"
    return "absent" if value is None else str(value)
