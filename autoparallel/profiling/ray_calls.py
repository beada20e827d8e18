"""Calls to a Ray cluster on a thread of their own, given up once the cluster has gone.

A call that meets a head which has just died does not return: Ray asks again and again. Whoever
waits for the call knocks meanwhile, and leaves it behind when nobody answers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from autoparallel.profiling.launcher import ClusterGoneError
from autoparallel.profiling.ray_head import Head

KNOCK_S = 1.0
_Answer = TypeVar("_Answer")


class Calls:
    """One call after the other.

    Args:
        head: Of the cluster.
        every_s: How long a call may take before somebody knocks.
    """

    def __init__(self, head: Head, every_s: float = KNOCK_S) -> None:
        self._head = head
        self._every_s = every_s
        self._waiting: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]]
        self._waiting = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def __call__(self, call: Callable[[], _Answer]) -> _Answer:
        """Make a call and wait for its answer.

        Raises:
            ClusterGoneError: the cluster has gone, before the call or during it.
            Exception: whatever the call raises.
        """
        self.check(self._every_s)
        answer: Future[_Answer] = Future()
        self._waiting.put((call, answer))
        while not wait([answer], self._every_s).done:
            self.check(0.0)
        if answer.exception() is not None:
            self.check(0.0)  # what a call says of a head that has gone is not the cause
        return answer.result()

    def check(self, every_s: float) -> None:
        """Raise when nobody answers, and nobody answered less than `every_s` ago either."""
        if not self._head.answers(every_s):
            raise ClusterGoneError("--launcher: the Ray cluster went away; run again to go on")

    def _serve(self) -> None:
        while True:
            call, answer = self._waiting.get()
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)
