"""Versions of installed distributions, this one's among them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

OWN = "autoparallel-planner"


def version_of(distribution: str = OWN) -> str:
    """The installed version; `0+unknown` for a checkout on the path that is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "0+unknown"
