"""Numbers of GPUs that divide badly, and what a smaller one would do."""

from __future__ import annotations

import pytest

from autoparallel.planning import search, solved
from autoparallel.ranking.spare import AWKWARD, better_with_fewer, cofactor, smaller_counts
from autoparallel.request import training_request


@pytest.mark.parametrize(
    ("count", "rest"), [(1024, 1), (960, 5), (1000, 125), (992, 31), (1008, 7), (1, 1), (72, 1)]
)
def test_cofactor(count: int, rest: int) -> None:
    assert cofactor(count) == rest


def test_smaller_counts_are_whole_nodes_near_by_and_divide_better_first() -> None:
    found = smaller_counts(1000, 8)
    assert found[0] == 960
    assert all(900 <= n < 1000 and n % 8 == 0 for n in found)
    assert [cofactor(n) for n in found] == sorted(cofactor(n) for n in found)
    assert smaller_counts(8, 8) == []
    assert smaller_counts(11, 8) == []
    assert smaller_counts(88, 8) == [80]


def test_a_thousand_gpus_without_a_layout_have_one_on_fewer() -> None:
    request = training_request(model="gpt-175b", num_gpus=1000)
    assert search(request).entries == ()
    found = better_with_fewer(request, None, solved)
    assert found is not None
    assert (found.num_gpus, found.spare_nodes, found.gain) == (960, 5, None)
    best = search(training_request(model="gpt-175b", num_gpus=960)).entries[0]
    assert best.layout == found.layout
    assert best.iteration_s == pytest.approx(found.iteration_s)


def test_what_divides_well_or_is_fast_enough_is_left_alone() -> None:
    def never(_: object) -> None:
        raise AssertionError("searched")

    even = training_request(model="gpt-tiny", num_gpus=8)
    assert cofactor(even.num_gpus) <= AWKWARD
    assert better_with_fewer(even, 1.0, never) is None  # type: ignore[arg-type]
    odd = training_request(model="llama-3.1-8b", num_gpus=104)
    assert better_with_fewer(odd, 1e-9, solved) is None
    gain = better_with_fewer(odd, 1e9, solved)
    assert gain is not None
    assert gain.gain == pytest.approx(1.0)
