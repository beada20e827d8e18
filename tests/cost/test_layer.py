from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from cases import dense, moe, with_constants
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.cost.case import Case
from autoparallel.cost.context import STEP_LAUNCH, more_steps
from autoparallel.cost.layer import layer_time, smooth_max


@pytest.mark.parametrize("of", [dense(), moe()], ids=["dense", "moe"])
def test_a_layer_is_the_sum_of_its_causes(of: Case) -> None:
    layer = layer_time(of)
    causes = [f.name for f in fields(layer) if f.name not in ("forward_s", "weight_s")]
    np.testing.assert_allclose(sum(getattr(layer, n) for n in causes), layer.total_s, rtol=1e-12)
    assert np.all(layer.forward_s > 0)
    assert np.all(layer.forward_s + layer.weight_s < layer.total_s)


@given(st.floats(0, 1e3), st.floats(0, 1e3), st.floats(0, 1e3))
@settings(deadline=None)
def test_smooth_max(a: float, b: float, more: float) -> None:
    found = smooth_max(a, b)
    assert max(a, b) <= found <= max(a, b, 1e-12) * 2**0.25 * (1 + 1e-12)
    assert found == smooth_max(b, a)
    assert smooth_max(a + more, b) >= found * (1 - 1e-12)


def test_host_time_grows_with_every_tensor_parallel_rank() -> None:
    """Where nothing else takes time, a layer of tp ranks takes 1 + f (tp - 1) of one rank's.

    Further steps of a context-parallel ring come on top.
    """
    free = with_constants(dense(), launch_s_per_layer=1.0, launch_tp_factor=0.5)
    seconds = layer_time(free).total_s
    tp = np.broadcast_to(np.asarray(free.knobs.tp), np.shape(seconds))
    plain = np.asarray(free.knobs.granularity) != 2
    expected = 1 + 0.5 * (tp - 1) + STEP_LAUNCH * more_steps(free)
    assert np.asarray(seconds)[plain] == pytest.approx(expected[plain], rel=0.02)
