from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout
from autoparallel.operators import WIRE_FACTOR, load_operators, operators_for
from autoparallel.planning import estimate
from autoparallel.profiling.operators import KINDS, measure
from autoparallel.profiling.operators.measure import keys
from autoparallel.profiling.operators.samples import Samples, key_of
from autoparallel.profiling.operators.shapes import FULL, TINY
from autoparallel.profiling.operators.tables import Header, write_tables
from autoparallel.profiling.subprocess_launcher import SubprocessLauncher
from autoparallel.request import training_request

MADE = {"torch": "2.13"}
RATE = 5e12


def model_of_a_gpu(kind: str, words: tuple[str, ...], ranks_slower: float = 1.0) -> float:
    """A machine whose every operation takes a time that a formula gives."""
    if kind == "gemm":
        m, n, k = map(int, words[2:])
        slower = {"forward": 1.0, "dgrad": 1.1, "wgrad": 1.3}[words[1]]
        return 1e-6 + 2 * m * n * k / RATE * slower
    if kind == "attention":
        seq, heads, width = map(int, words[1:])
        backward = 1.0 if words[0] == "forward" else 3.0
        return heads * seq * seq * 2 * width / RATE * backward
    if kind == "collectives":
        op, ranks, log2 = words[0], int(words[1]), int(words[2])
        return ranks_slower * (2e-5 + WIRE_FACTOR[op] * (ranks - 1) / ranks * 2.0**log2 / 1e10)
    return 1e-3


def tables(tmp_path: Path, *, most: int = 2, slower: float = 1.0) -> Path:
    samples = Samples(tmp_path / "operators" / "samples.jsonl", MADE)
    for kind in KINDS:
        for words in keys(kind, TINY, fp8=False, most=most):
            samples.add(key_of(kind, *words), model_of_a_gpu(kind, words, slower))
    gpu = catalog.gpu("h200-sxm-141gb")
    header = Header(gpu=gpu, link_bytes_per_s=450e9, device="a GPU", made_with=MADE, shapes=TINY)
    write_tables(tmp_path / "operators", samples, header)
    return tmp_path / "operators"


def test_the_tables_give_back_what_was_measured(tmp_path: Path) -> None:
    found = load_operators("h200-sxm-141gb", tables(tmp_path, most=4))
    assert found.nature == "measured"
    assert found.gemm.seconds(128, 256, 64) == pytest.approx(
        model_of_a_gpu("gemm", ("bf16", "forward", "128", "256", "64")), rel=1e-3
    )
    assert found.gemm.pass_factor["wgrad"] > found.gemm.pass_factor["dgrad"] > 1.0
    for op in WIRE_FACTOR:
        for ranks in (2, 4):
            seconds = model_of_a_gpu("collectives", (op, str(ranks), "16"))
            assert found.collectives.seconds(op, 2.0**16, ranks) == pytest.approx(seconds, rel=1e-3)
    assert found.collectives.assumed_beyond_ranks == 4
    assert found.attention.seconds(256.0, 8.0, 64.0, 64.0) == pytest.approx(
        model_of_a_gpu("attention", ("forward", "256", "8", "64")), rel=1e-2
    )


def test_other_gpus_keep_their_shipped_tables(tmp_path: Path) -> None:
    folder = tables(tmp_path)
    shipped = catalog.data_dir() / "profiles" / "operators"
    for gpu in ("a100-sxm-80gb", "b200-sxm-180gb"):
        mine, theirs = load_operators(gpu, folder), load_operators(gpu, shipped)
        assert mine.gemm.seconds(4096, 4096, 4096) == theirs.gemm.seconds(4096, 4096, 4096)


def test_one_gpu_alone_borrows_its_collectives(tmp_path: Path) -> None:
    found = load_operators("h200-sxm-141gb", tables(tmp_path, most=1))
    assert "collectives assumed: as h200-sxm-141gb" in found.nature
    shipped = operators_for(
        "h200-sxm-141gb", "hopper", catalog.data_dir() / "profiles" / "operators"
    )
    assert found.collectives.seconds("all_reduce", 1e6, 8) == pytest.approx(
        shipped.collectives.seconds("all_reduce", 1e6, 8)
    )


def test_profiles_dir_uses_them(tmp_path: Path) -> None:
    def seconds(folder: Path | None) -> float:
        request = training_request(
            model="llama-2-7b", num_gpus=8, cluster="dgx-h200", profiles_dir=folder
        )
        found = estimate(request, Layout.parse("tp8 sp")).entry.parts
        return found["tp_comm_s"]

    tables(tmp_path / "fast", slower=1.0)
    tables(tmp_path / "slow", slower=4.0)
    assert seconds(tmp_path / "slow") > 2 * seconds(tmp_path / "fast") > 0
    assert seconds(tmp_path / "fast") != seconds(None)


def test_samples_survive_half_a_line_and_refuse_another_machine(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    first = Samples(path, MADE)
    first.add("gemm a", 1.5)
    with path.open("a") as stream:
        stream.write('{"key": "gemm b", "sec')
    again = Samples(path, MADE)
    assert (again["gemm a"], "gemm b" in again) == (1.5, False)
    again.add("gemm b", 2.0)
    assert Samples(path, MADE)["gemm b"] == 2.0
    with pytest.raises(ConfigError, match="another machine or software"):
        Samples(path, {"torch": "2.14"})


def test_every_kind_has_keys_of_its_own() -> None:
    wanted = [
        key_of(k, *w) for k in KINDS for s in (FULL, TINY) for w in keys(k, s, fp8=True, most=8)
    ]
    assert len(wanted) > 1000
    for kind in KINDS:
        assert len(set(keys(kind, FULL, fp8=True, most=8))) == len(
            list(keys(kind, FULL, fp8=True, most=8))
        )


@pytest.mark.megatron
def test_a_cpu_is_measured_in_pieces(tmp_path: Path) -> None:
    said: list[str] = []
    first = measure(
        tmp_path, SubprocessLauncher(), device="cpu", kinds=("stream",), progress=said.append
    )
    assert (first.taken, first.files, len(said)) == (2, (), 2)
    again = measure(tmp_path, SubprocessLauncher(), device="cpu", kinds=("stream",))
    assert (again.taken, again.left) == (0, first.left)
    none = measure(tmp_path, SubprocessLauncher(), device="cpu", kinds=("gemm",), budget_s=0.0)
    assert none.taken == 0


@pytest.mark.megatron
@pytest.mark.parametrize("kind", ["gemm", "attention", "experts"])
def test_every_operation_runs_on_a_cpu(kind: str) -> None:
    import torch

    from autoparallel.profiling.worker import kernels

    torch.set_num_threads(1)
    words = {
        "gemm": [("bf16", p, "8", "16", "32") for p in kernels.PASSES],
        "attention": [(p, "64", "2", "32") for p in ("forward", "backward")],
        "experts": [("2", "4", "8", "16")],
    }[kind]
    results = [partial(kernels.call_of, kind, w, "cpu")()() for w in words]
    shapes = {"gemm": (8, 16), "attention": (1, 2, 64, 32), "experts": (4, 8)}
    for found in results:
        tensors = [found] if hasattr(found, "shape") else found
        assert all(tuple(t.shape) == shapes[kind] for t in tensors)


@pytest.mark.megatron
def test_two_ranks_time_every_collective(tmp_path: Path) -> None:
    found = measure(tmp_path, SubprocessLauncher(), device="cpu", kinds=("collectives",))
    samples = Samples(tmp_path / "operators" / "samples.jsonl", found_with(tmp_path))
    wanted = [key_of("collectives", *w) for w in keys("collectives", TINY, fp8=False, most=2)]
    assert found.taken == len(wanted)
    assert all(0 < samples[key] < 5 for key in wanted)


def found_with(folder: Path) -> dict[str, str]:
    first = (folder / "operators" / "samples.jsonl").read_text().splitlines()[0]
    return json.loads(first)["made_with"]


def test_bad_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'gemm'"):
        measure(tmp_path, SubprocessLauncher(), kinds=("gem",))
    with pytest.raises(ConfigError, match="is not a device"):
        measure(tmp_path, SubprocessLauncher(), device="tpu")
    assert not list(tmp_path.iterdir())
