from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from cases import dense, moe
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.cost.case import Case
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
