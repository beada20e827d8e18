"""What a rank holds: layers add up to the model, shards to its parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import DENSE, MOE, assert_never_less, case
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel import catalog
from autoparallel.cost.case import Case
from autoparallel.cost.partition import (
    chunks,
    embedding_parameters,
    layer_parameters,
    rank_layers,
    rank_parameters,
    single_stage,
)
from autoparallel.model import Model, parameters


def with_layers(of: Case, layers: int) -> Case:
    return replace(of, model=replace(of.model, L=float(layers)))


@given(st.integers(1, 130), st.integers(1, 16), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_chunks_cover_the_layers(layers: int, pp: int, vpp: int) -> None:
    n = pp * vpp
    found = chunks(with_layers(case([f"pp{pp} vpp{vpp} mbs1"]), layers))
    first, middle, last = (float(np.max(x)) for x in (found.first, found.middle, found.last))
    assert first == last <= middle == int(middle)
    assert middle >= layers / n
    assert middle < layers / n + 1
    if layers % n == 0:
        assert first == middle == layers / n
    elif (layers + 2) % n == 0:
        assert first + middle * (n - 2) + last == layers


@pytest.mark.parametrize(
    ("layers", "pp", "vpp", "expected"),
    [
        (96, 8, 1, (12, 12, 12)),
        (96, 8, 3, (4, 4, 4)),
        (126, 16, 1, (7, 8, 7)),
        (94, 8, 2, (5, 6, 5)),
        (61, 16, 1, (3, 4, 3)),
        (24, 1, 1, (24, 24, 24)),
    ],
)
def test_known_splits(layers: int, pp: int, vpp: int, expected: tuple[float, float, float]) -> None:
    """126 and 94 layers: embedding and loss take a slot each; 61 divides by nothing."""
    found = chunks(with_layers(case([f"pp{pp} vpp{vpp} mbs1"]), layers))
    assert tuple(float(np.max(x)) for x in (found.first, found.middle, found.last)) == expected


@given(st.lists(st.integers(1, 30), min_size=2, max_size=8))
@settings(max_examples=50, deadline=None)
def test_stages_as_given(stages: list[int]) -> None:
    text = ",".join(map(str, stages))
    of = case([f"pp{len(stages)} mbs1 stages={text}", "pp2 mbs1"])
    found = chunks(of)
    assert found.first.tolist() == [stages[0], 12]
    assert found.middle.tolist() == [max(stages), 12]
    assert found.last.tolist() == [stages[-1], 12]
    assert rank_layers(of).tolist() == [max(stages), 12]


@pytest.mark.parametrize("name", ["gpt-175b", "llama-3.1-8b", "mixtral-8x7b", "deepseek-v3"])
def test_one_rank_holds_the_whole_model(name: str) -> None:
    """Layers and vocabulary matrices of an unsplit model, but for padding and the final norm."""
    model = catalog.model(name)
    of = case(["tp1 pp1 mbs1"], model=model)
    held = rank_parameters(of, of.model.L, 2 - of.model.tied).total[0]
    padding = (embedding_parameters(of)[0] - of.model.V * of.model.h) * (2 - of.model.tied)
    exact = float(parameters(of.model)) - of.model.norm * of.model.h - of.model.extra
    np.testing.assert_allclose(held - padding, exact, rtol=1e-9)


@pytest.mark.parametrize("model", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize(
    ("small", "large"),
    [("tp1", "tp2"), ("tp2", "tp8"), ("pp1", "pp2"), ("pp2", "pp8"), ("ep1", "ep8")],
)
def test_weights_of_a_rank_fall_as_the_model_is_split(model: Model, small: str, large: str) -> None:
    of = case([f"{small} mbs1", f"{large} mbs1"], model=model)
    held = rank_parameters(of, rank_layers(of), 1.0 + single_stage(of)).total
    if large.startswith("ep") and model is DENSE:
        assert held[0] == held[1]
    else:
        assert held[1] < held[0]


@pytest.mark.parametrize("model", [DENSE, MOE], ids=["dense", "moe"])
def test_all_shards_hold_the_model_at_least_once(model: Model) -> None:
    of = case([f"tp{n} ep{n} etp1 mbs1" for n in (1, 2, 4, 8)], model=model)
    layer, k = layer_parameters(of), of.knobs
    assert_never_less(layer.dense * k.tp, layer.dense[0])
    np.testing.assert_allclose(layer.expert * k.ep * k.etp, layer.expert[0])
    replicated = layer.dense * k.tp - layer.dense[0]
    assert np.all(replicated <= 0.01 * layer.dense[0] * k.tp)


def test_experts_leave_dense_weights_alone() -> None:
    of = case(["tp4 ep1 etp4 mbs1", "tp4 ep8 etp4 mbs1", "tp4 ep8 etp1 mbs1"], model=MOE)
    layer = layer_parameters(of)
    assert len(set(layer.dense.tolist())) == 1
    np.testing.assert_allclose(layer.expert / layer.expert[0], [1, 1 / 8, 1 / 2])


def test_single_stage() -> None:
    assert single_stage(case(["pp1 mbs1", "pp2 mbs1"])).tolist() == [1, 0]
