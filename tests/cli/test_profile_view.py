"""What `profile` says of trials."""

from __future__ import annotations

import pytest

from autoparallel.cli.profile_view import _said
from autoparallel.profiling.job import Result


@pytest.mark.parametrize(("seconds", "said"), [((0.1,), "1 step"), ((0.1, 0.1), "2 steps")])
def test_one_step_is_not_many(seconds: tuple[float, ...], said: str) -> None:
    result = Result(trial="x", outcome="ok", step_s=seconds, iteration_s=0.1)
    assert _said(result).endswith(f" a step, {said}")
