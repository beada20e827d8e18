"""Errors a user can meet.

    AutoparallelError             exit 70 unless a subclass says otherwise
    ├── ConfigError               exit 2: a field, flag, layout or file that cannot be used
    │   └── CatalogError          exit 2: an unknown or malformed catalog entry
    ├── ProfileError              exit 2: measured rows, constants or tables that cannot be used
    ├── NothingFitsError          exit 3: no layout fits or meets the constraints
    └── LaunchError               exit 4: every trial failed

A message has four parts: the field, its value, the rule with its numbers, and what to try.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12
_LONGEST_NAME = 200
INSTALL_PROFILE = "pip install 'autoparallel-planner[profile]'"
"""What to try where torch, megatron-core or Ray is missing."""


class AutoparallelError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 70


class ConfigError(AutoparallelError):
    """Input that cannot be used as given."""

    exit_code = 2


class CatalogError(ConfigError):
    """A model, GPU, cluster, framework or space that the catalog does not have or cannot read."""


class ProfileError(AutoparallelError):
    """Measured rows, calibrated constants or operator tables that cannot be used."""

    exit_code = 2


class NothingFitsError(AutoparallelError):
    """The request is valid, but no candidate is both legal and fitting."""

    exit_code = 3


class LaunchError(AutoparallelError):
    """Every trial failed."""

    exit_code = 4


def bad_value(field: str, value: object, rule: str, hint: str = "") -> ConfigError:
    """A `ConfigError` in the house form: field, value, rule, what to try."""
    return ConfigError(f"{field}: {shown(value)} {rule}" + (f"; {hint}" if hint else ""))


def shown(value: object) -> str:
    """A value as a message quotes it: its `repr`, with the middle left out of a long one."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge integer"
    return _SHORT.repr(value)


def one_line(text: str) -> str:
    """A file's own name or key as a message shows it: one printable line, not endless."""
    return "".join(c if c.isprintable() else "?" for c in text[:_LONGEST_NAME])


def nearest(word: str, known: Iterable[str]) -> str:
    """`"did you mean 'x'?"` for the closest known word, else the sorted list of them all."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(choices)
