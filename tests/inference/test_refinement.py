"""The short list in the simulator: how many clients of a closed loop it plays."""

from __future__ import annotations

import pytest

import autoparallel
from autoparallel.inference import refinement, simulator

ASK = {"model": "llama-3.1-8b", "gpus": 1, "input_tokens": 500, "output_tokens": 50, "top": 1}


def played(monkeypatch: pytest.MonkeyPatch, clients: int, most: int) -> tuple[int, float, float]:
    """Clients that were simulated, and mean and p99 of the first plan's TTFT in ms."""
    seen: list[int] = []

    def simulate(setting, instance, arrivals):
        seen.append(arrivals.clients)
        return simulator.simulate(setting, instance, arrivals)

    monkeypatch.setattr(refinement, "simulate", simulate)
    monkeypatch.setattr(refinement, "MOST_CLIENTS", most)
    plan = autoparallel.infer(**ASK, backend="vllm", concurrency=clients)
    first = plan.entries[0]
    return max(seen), first.ttft_ms, first.ttft_ms_p99


def test_a_long_line_is_played_by_fewer_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in line wait alike: the spread hardly depends on how many of them are simulated."""
    all_of_them, mean, p99 = played(monkeypatch, 20_000, 20_000)
    some, same, near = played(monkeypatch, 20_000, 3_000)
    assert (all_of_them, some) == (20_000, 3_000)
    assert same == mean
    assert near / same == pytest.approx(p99 / mean, rel=0.1)


def test_a_full_batch_is_played_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert played(monkeypatch, 100, 1)[0] == 100
