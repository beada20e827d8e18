"""What a launcher is given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from autoparallel.errors import bad_value
from autoparallel.exporting.program import one_line
from autoparallel.request import Site

RUN, PROFILE = "run.sh", "profile.sh"
"""Names of the node scripts: the job, and the same job for a few steps on mock data."""

_WORD = re.compile(r"[A-Za-z0-9._:@,+=-]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A job to start on whole nodes.

    Attributes:
        name: Of the job, for people to find it by.
        files: Name -> text of everything beside the launcher's own files, node scripts among them.
    """

    name: str
    num_nodes: int
    gpus_per_node: int
    site: Site
    files: Mapping[str, str]

    def word(self, field_name: str) -> str:
        """A setting of the site that a scheduler reads as one bare word; empty when not set.

        Raises:
            ConfigError: it holds anything but letters, digits and `._:@,+=-`.
        """
        value = str(getattr(self.site, field_name))
        if value and not _WORD.fullmatch(value):
            rule = "is not one word of letters, digits and ._:@,+=-"
            raise bad_value(f"site.{field_name}", value, rule, "correct the site")
        return value

    def mounts(self) -> tuple[tuple[str, str, str], ...]:
        """Source, place in the container, and options (`ro`) of every mount.

        Raises:
            ConfigError: a mount that is not SOURCE:CONTAINER[:OPTIONS].
        """
        return tuple(_mount(text) for text in self.site.mounts)


def _mount(text: str) -> tuple[str, str, str]:
    source, *rest = one_line("site.mounts", text).split(":")
    whole = 1 <= len(rest) <= 2 and source and rest[0].startswith("/") and "," not in text
    if not whole:
        rule = "is not SOURCE:/PLACE or SOURCE:/PLACE:OPTIONS without commas"
        raise bad_value("site.mounts", text, rule, "write it as /data:/data or /data:/data:ro")
    return source, rest[0], rest[1] if len(rest) > 1 else ""
