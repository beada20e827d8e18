from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import DENSE, MOE, SMALL_CLUSTER

from autoparallel.inference import backend, setting
from autoparallel.inference.options import Demand, Limits
from autoparallel.inference.search import (
    Question,
    binding,
    front,
    goal,
    miss,
    searched,
    short_list,
)
from autoparallel.inference.space import ServingSpace

SPACE = ServingSpace(max_batch_size=(1, 4, 16, 64), max_num_tokens=(2048,))
DEMAND = Demand(input_tokens=1000, output_tokens=200, longest_tokens=1200)


def question(model=DENSE, **changes) -> Question:
    settings = tuple(setting(model, SMALL_CLUSTER, backend(b), "bf16") for b in ("vllm", "sglang"))
    asked = Question(
        settings=settings,
        space=SPACE,
        demand=DEMAND,
        limits=Limits(),
        objective="throughput",
        kv_dtypes=("bf16",),
        gpus=8,
    )
    return replace(asked, **changes)


def block(found, rows):
    return found.options.take(rows)


@pytest.mark.parametrize("model", [DENSE, MOE])
def test_good_rows_keep_every_limit_and_the_best_is_first(model):
    everything = searched(question(model))
    tpot = float(np.median(block(everything, everything.good).tpot_s[0]))
    ttft = float(np.median(block(everything, everything.good).ttft_s[0]))
    found = searched(question(model, limits=Limits(ttft_s=ttft, tpot_s=tpot)))
    good = block(found, found.good)
    assert 0 < found.good.size < everything.good.size
    assert np.all(good.tpot_s[0] <= tpot)
    assert np.all(good.ttft_s[0] <= ttft)
    assert np.all(good.fits)
    assert np.all(np.diff(good.tokens_per_s) <= 1e-6 * good.tokens_per_s[0])
    assert found.considered == found.evaluated + sum(found.pruned.values())
    assert found.evaluated == found.options.size


def test_a_limit_binds_the_percentile_it_is_about():
    found = searched(question())
    p99 = found.options.ttft_s[3]
    limit = float(np.median(p99[found.good]))
    kept = searched(question(limits=Limits(ttft_s=limit, percentile="p99")))
    assert np.all(block(kept, kept.good).ttft_s[3] <= limit)


def test_deployments_never_use_more_gpus_than_there_are():
    for gpus in (1, 3, 8):
        assert np.all(searched(question(gpus=gpus)).options.gpus <= gpus)


def test_more_gpus_never_serve_less_and_looser_limits_never_less():
    def best(**changes) -> float:
        found = searched(question(**changes))
        return float(found.options.tokens_per_s[found.good[0]]) if found.good.size else 0.0

    assert best(gpus=4) <= best(gpus=8) <= best(gpus=16)
    tight, loose = Limits(tpot_s=0.01), Limits(tpot_s=0.02)
    assert best(limits=tight) <= best(limits=loose)


def test_modes_are_kept_apart():
    together = searched(question(modes=("aggregated",))).options
    apart = searched(question(modes=("disaggregated",))).options
    assert np.all(together.prefill_count == 0)
    assert np.all(apart.prefill_count >= 1)
    assert np.all(apart.count >= 1)


def test_workers_apart_carry_no_more_than_they_can_and_make_the_rest_wait():
    free = searched(question(modes=("disaggregated",)))
    most = float(np.max(free.options.requests_per_s))
    demand = replace(DEMAND, request_rate=2 * most)
    swamped = searched(question(demand=demand, modes=("disaggregated",))).options
    assert np.all(swamped.utilization > 1)
    assert np.all(swamped.requests_per_s <= 1.1 * most)
    assert np.all(np.isinf(swamped.ttft_s))
    easy = replace(DEMAND, request_rate=0.1 * most)
    served = searched(question(demand=easy, modes=("disaggregated",)))
    good = block(served, served.good)
    assert good.size
    assert np.all(np.isfinite(good.ttft_s))
    np.testing.assert_allclose(good.requests_per_s, 0.1 * most)


def test_one_token_answers_are_not_disaggregated():
    demand = Demand(input_tokens=1000, output_tokens=1, longest_tokens=1001)
    found = searched(question(demand=demand))
    assert found.good.size
    assert np.all(found.options.prefill_count == 0)
    assert np.all(found.options.tpot_s == 0)


def test_prefill_on_other_gpus_stays_within_their_number():
    other = replace(SMALL_CLUSTER, name="other")
    prefill = tuple(setting(DENSE, other, backend(b), "bf16") for b in ("vllm", "sglang"))
    found = searched(
        question(prefill_settings=prefill, prefill_gpus=4, gpus=2, modes=("disaggregated",))
    )
    options = block(found, found.good)
    assert np.all(options.prefill_count * options.prefill.gpus <= 4)
    assert np.all(options.count * options.worker.gpus <= 2)
    names = {options.settings[int(i)].cluster.name for i in options.prefill_setting}
    assert names == {"other"}


def test_a_rate_is_carried_or_the_row_is_not_good():
    demand = replace(DEMAND, request_rate=3.0)
    found = searched(question(demand=demand))
    good = block(found, found.good)
    assert found.good.size
    assert np.all(good.utilization < 1)
    assert np.allclose(good.requests_per_s, 3.0)
    assert not searched(question(demand=replace(DEMAND, request_rate=1e6))).good.size


def test_objectives_order_by_what_they_say():
    for objective in ("latency", "cost"):
        asked = question(objective=objective)
        found = searched(asked)
        goals = goal(block(found, found.good), asked)
        assert np.all(np.diff(goals) >= -1e-5 * goals[:-1])


def test_the_short_list_has_every_layout_once():
    found = searched(question())
    rows = short_list(found, 100)
    assert rows[0] == found.good[0]
    assert len(set(rows.tolist())) == rows.size
    assert short_list(found, 3).tolist() == rows[:3].tolist()


def test_nothing_beats_the_front():
    found = searched(question())
    good, best = block(found, found.good), block(found, front(found))
    user, gpu = 1 / best.tpot_s[0], best.tokens_per_s / best.gpus
    all_user, all_gpu = 1 / good.tpot_s[0], good.tokens_per_s / good.gpus
    assert np.all(np.diff(user) <= 0)
    assert np.all(np.diff(gpu) > 0)
    for u, g in zip(user, gpu, strict=True):
        assert not np.any((all_user > u * (1 + 1e-9)) & (all_gpu > g * (1 + 1e-6)))


def test_the_binding_constraint_is_what_the_next_batch_breaks():
    found = searched(question(modes=("aggregated",)))
    tpot = float(np.min(found.options.tpot_s[0][found.good])) * 1.05
    tight = searched(question(modes=("aggregated",), limits=Limits(tpot_s=tpot)))
    assert binding(tight, int(tight.good[0])) == "tpot_ms"
    loaded = searched(question(demand=replace(DEMAND, concurrency=4)))
    assert binding(loaded, int(loaded.good[0])) == "load"


def test_the_nearest_miss_fits_and_is_the_least_over():
    found = searched(question(limits=Limits(tpot_s=1e-4)))
    row = miss(found)
    assert not found.good.size
    assert row is not None
    assert found.options.fits[row]
    fitting = found.options.tpot_s[0][found.options.fits]
    assert found.options.tpot_s[0][row] == fitting.min()


def test_a_model_that_fits_nowhere_has_no_nearest_miss():
    wide = replace(DENSE, ffn_hidden_size=14336 * 64)
    assert miss(searched(question(wide, gpus=1))) is None
