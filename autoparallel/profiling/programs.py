"""Helper programs of a cluster (sbatch, kubectl, nvidia-smi), run as lists of words."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from autoparallel.errors import ConfigError

TIMEOUT_S = 60.0
UNANSWERED = 124


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a program said; `code` is `UNANSWERED` when it did not answer in time."""

    code: int
    text: str
    error: str

    @property
    def ok(self) -> bool:
        """Whether it ended with 0."""
        return self.code == 0

    @property
    def said(self) -> str:
        """Its complaint, in one line."""
        return " ".join((self.error or self.text).split())[:400]


def ask(words: Sequence[str], *, given: str = "", timeout_s: float = TIMEOUT_S) -> Answer:
    """Run a program to its end.

    Args:
        words: The program and its arguments.
        given: Its standard input.
        timeout_s: After which it is ended and counts as unanswered.

    Raises:
        ConfigError: there is no such program.
    """
    try:
        done = subprocess.run(
            list(words),
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(code=UNANSWERED, text="", error=f"{words[0]}: no answer in {timeout_s:g} s")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{words[0]}: cannot be run ({error}); install it, or start from a machine that has it"
        ) from error
    return Answer(code=done.returncode, text=done.stdout, error=done.stderr)
