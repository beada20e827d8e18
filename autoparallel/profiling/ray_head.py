"""Whether a Ray cluster is still there, found out without Ray."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

_KNOCK_PATIENCE_S = 5.0
_UNANSWERED = 3
"""Knocks in a row without an answer after which a cluster counts as gone."""
_PAUSE_S = 0.2


@dataclass(slots=True)
class Head:
    """The port of a cluster's control store; `gone` once it no longer answers."""

    address: str
    gone: bool = False
    knocked_at: float = 0.0

    def answers(self, every_s: float) -> bool:
        """Knock, unless somebody answered less than `every_s` ago."""
        if self.gone or time.monotonic() - self.knocked_at < every_s:
            return not self.gone
        host, _, port = self.address.rpartition(":")
        for _ in range(_UNANSWERED):
            try:
                socket.create_connection((host.strip("[]"), int(port)), _KNOCK_PATIENCE_S).close()
            except OSError:
                time.sleep(_PAUSE_S)
            else:
                self.knocked_at = time.monotonic()
                return True
        self.gone = True
        return False
