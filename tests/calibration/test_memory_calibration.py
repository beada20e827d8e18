"""The memory fit on peaks that the model itself made, and what is said of rows left out."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from autoparallel.calibration.memory import FITTED, fit_families, fit_memory, lender, lent
from autoparallel.calibration.memory_left_out import left_out
from autoparallel.calibration.memory_rows import (
    forecast,
    memory_data,
    memory_family,
    predicted,
)
from autoparallel.calibration.run import moved
from autoparallel.constants import MemoryConstants
from autoparallel.measured.cases import read
from autoparallel.measured.rows import MeasuredRun
from autoparallel.units import GIB

RUN = MeasuredRun(
    framework="Megatron-LM",
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    vocab_size=32000,
    seq_length=4096,
    gpu="h100-sxm-80gb",
    num_gpus=64,
    tensor_model_parallel_size=1,
    pipeline_model_parallel_size=1,
    micro_batch_size=1,
    global_batch_size=256,
    recompute="none",
    memory_kind="reserved",
    memory_rank="max",
)
RUNS = [
    replace(
        RUN,
        hidden_size=h,
        num_attention_heads=h // 128,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        micro_batch_size=mbs,
        split_group=f"h{h}",
    )
    for h in (1024, 2048, 4096)
    for tp, pp, mbs in ((1, 1, 1), (1, 1, 4), (2, 1, 2), (4, 2, 1), (4, 4, 4), (8, 1, 8))
]
TRUE = replace(MemoryConstants(), fragmentation=0.2, residual_copies=2.0, workspace_bytes=0.2e9)


def made(runs=RUNS, constants=TRUE):
    """The runs with the peaks that the model gives them under `constants`."""
    bytes_ = predicted(memory_data([read(r) for r in runs]), constants)[0]
    peaks = [replace(r, peak_memory_gib=float(b / GIB)) for r, b in zip(runs, bytes_, strict=True)]
    return memory_data([read(r) for r in peaks])


def test_the_fit_explains_the_peaks_that_it_was_given():
    data = made()
    found = fit_memory(data, MemoryConstants())
    assert np.abs(np.log(predicted(data, found)[0] / data.peak_bytes)).max() < 0.02
    assert float(found.fragmentation) == pytest.approx(0.2, abs=0.05)
    assert float(found.residual_copies) == pytest.approx(2.0, abs=0.6)
    before = np.log(predicted(data, MemoryConstants())[0] / data.peak_bytes)
    assert np.abs(before).max() > 0.1


def test_what_few_code_bases_hold_is_not_fitted_from_few_peaks():
    found = fit_memory(made(), MemoryConstants())
    assert "held_tensors" in FITTED
    assert found.held_tensors == MemoryConstants().held_tensors


def test_what_no_run_shows_of_memory_is_assumed():
    found = fit_memory(made(), MemoryConstants())
    assert "fragmentation" in moved(found)
    assert "held_tensors" not in moved(found)
    assert moved(MemoryConstants()) == ()


def test_what_streams_hold_is_told_by_nodes_and_not_by_releases():
    run = replace(RUN, framework="nanotron", sequence_parallel=True)
    slow = replace(run, measured_allreduce_busbw_intra_gbps=425.0)
    for notes in ("", "after_pp_fix=False"):
        families = [memory_family(read(replace(r, notes=notes))) for r in (run, slow)]
        assert families == ["nanotron", "nanotron-slow-nodes"]


def test_a_relative_lends_what_streams_hold_but_not_copies_of_its_own():
    own = replace(TRUE, held_tensors=50.0, extra_gradient_bytes=2.0)
    found = lent("nanotron-slow-nodes", {"nanotron": own})
    assert found.held_tensors == 50
    assert found.extra_gradient_bytes == found.residual_copies == 0


def test_labels_alone_tell_the_deviation():
    """Runs that fail and run in turn around the same size leave a wide one, sharp ones a narrow."""
    sizes = np.linspace(20, 60, 41)
    runs = [replace(RUN, micro_batch_size=1, num_layers=int(n)) for n in sizes]
    peaks = predicted(memory_data([read(r) for r in runs]), MemoryConstants())[0]
    edge = np.median(peaks)
    gpu = memory_data([read(runs[0])]).case.machine.memory_bytes
    factor = float(np.ravel(gpu)[0]) / edge

    def deviation(noise):
        fails = peaks * factor * np.exp(noise * (-1.0) ** np.arange(len(peaks))) > edge * factor
        labelled = [replace(r, out_of_memory=bool(f)) for r, f in zip(runs, fails, strict=True)]
        return float(fit_memory(memory_data([read(r) for r in labelled]), TRUE).error_sigma)

    assert deviation(0.0) < deviation(0.3)


def test_a_left_out_group_is_never_seen():
    data = made()
    families = np.full(len(RUNS), "megatron")
    right = left_out(data, families, data.groups)
    held = data.groups == "h2048"
    wrong = replace(data, peak_bytes=np.where(held, 7 * data.peak_bytes, data.peak_bytes))
    again = left_out(wrong, families, data.groups)
    assert np.array_equal(right.bytes[held], again.bytes[held])
    assert not np.allclose(right.bytes[~held], again.bytes[~held], rtol=1e-3)


def test_a_family_left_out_whole_takes_its_relatives_constants_and_is_wider():
    data = made()
    families = np.where(np.arange(len(RUNS)) % 2 == 0, "megatron", "nemo")
    found = left_out(data, families, families)
    fitted = fit_families(data.take(families == "nemo"), families[families == "nemo"], TRUE)
    rows = families == "megatron"
    expected = forecast(data.take(rows), lent("megatron", fitted))
    assert found.bytes[rows] == pytest.approx(expected.bytes, rel=0.05)
    own, other = fitted["nemo"], lent("megatron", fitted)
    assert other.error_sigma == pytest.approx(1.5 * own.error_sigma)
    assert other.residual_copies == 0
    assert other.fragmentation == own.fragmentation


def test_relatives_in_order_and_nobody():
    assert lender("nemo", {"megatron", "fsdp"}) == "megatron"
    assert lender("megatron", {"megatron", "nemo"}) == "megatron"
    assert lender("yafsdp", {"nemo", "fsdp"}) == "fsdp"
    assert lender("fsdp", {"nanotron"}) == ""


def test_a_family_that_tells_little_starts_from_its_relative():
    data = made()
    few = memory_data([read(replace(RUN, framework="NeMo/Megatron"))])
    both = memory_data([read(replace(RUN, framework="NeMo/Megatron")), *map(read, RUNS)])
    names = np.array(["nemo", *["megatron"] * len(RUNS)])
    peaks = np.array([np.nan, *data.peak_bytes])
    found = fit_families(replace(both, peak_bytes=peaks), names, MemoryConstants())
    alone = fit_families(few, np.array(["nemo"]), MemoryConstants())
    near = abs(found["nemo"].fragmentation - found["megatron"].fragmentation)
    assert near < abs(alone["nemo"].fragmentation - found["megatron"].fragmentation)


def test_what_a_row_leaves_open_of_recomputation_was_chosen_to_fit():
    big = replace(RUN, micro_batch_size=8, num_gpus=64)
    said, silent = (
        forecast(memory_data([read(r)]), MemoryConstants())
        for r in (
            big,
            replace(big, recompute=""),
        )
    )
    assert said.fits[0] < 0.5 < silent.fits[0]
    assert said.bytes[0] == silent.bytes[0]


def test_what_a_row_leaves_open_of_sharding_was_chosen_to_fit():
    big = replace(RUN, framework="Megatron-DeepSpeed", recompute="full")
    whole, silent, sharded = (
        forecast(memory_data([read(replace(big, zero_stage=stage))]), MemoryConstants())
        for stage in (0, None, 1)
    )
    assert whole.fits[0] < 0.5 < silent.fits[0] == sharded.fits[0]
    assert whole.bytes[0] == silent.bytes[0] > sharded.bytes[0]


def test_a_framework_that_shards_unasked_leaves_nothing_open():
    said, silent = (read(replace(RUN, zero_stage=stage)) for stage in (1, None))
    assert silent.layout.zero_stage == 1
    assert memory_data([said, silent]).sharding_stated.all()


def test_labels_alone_teach_the_same_whatever_deviation_the_prior_has():
    sizes = [replace(RUN, micro_batch_size=m, split_group="") for m in range(1, 7)] * 8
    needed = predicted(memory_data([read(r) for r in sizes]), TRUE)[1]
    room = memory_data([read(RUN)]).case.machine.memory_bytes - needed.context_bytes
    failed = np.ravel(needed.needed_bytes > room)
    assert 0 < failed.sum() < len(failed)
    runs = [replace(r, out_of_memory=int(f)) for r, f in zip(sizes, failed, strict=True)]
    data = memory_data([read(r) for r in runs])
    sure, unsure = (fit_memory(data, MemoryConstants(error_sigma=s)) for s in (0.06, 0.3))
    assert sure.fragmentation == pytest.approx(unsure.fragmentation, rel=1e-3)
    assert ((forecast(data, unsure).fits < 0.5) == failed).all()


def test_an_interval_is_wider_by_a_guessed_vocabulary():
    def width(run):
        found = forecast(memory_data([read(run)]), MemoryConstants())
        return float(found.high[0] / found.low[0])

    small = replace(RUN, num_layers=4, hidden_size=512, num_attention_heads=8)
    assert width(replace(small, vocab_size=None)) > 1.2 * width(small)
    large = replace(RUN, num_layers=80, hidden_size=8192, num_attention_heads=64)
    assert width(replace(large, vocab_size=None)) < 1.1 * width(large)


@pytest.mark.parametrize(
    ("name", "notes", "stage"),
    [
        ("gpt/tp1_pp4", "functional test; flags", "last"),
        ("gpt/memory_speed", "functional test; flags", "max"),
        ("a model", "", "first"),
    ],
)
def test_functional_tests_log_on_their_last_rank(name, notes, stage):
    run = replace(RUN, model=name, notes=notes, memory_rank="0", pipeline_model_parallel_size=4)
    assert memory_data([read(run)]).rank[0] == stage


def test_peaks_of_the_last_rank_hold_the_logits():
    run = replace(RUN, pipeline_model_parallel_size=4, vocab_size=256000, memory_rank="0")
    logged = replace(run, notes="functional test", model="gpt")
    first, last = (predicted(memory_data([read(r)]), TRUE)[0][0] for r in (run, logged))
    more = replace(logged, vocab_size=512000), replace(run, vocab_size=512000)
    grown = [predicted(memory_data([read(r)]), TRUE)[0][0] for r in more]
    assert grown[0] - last > grown[1] - first > 0


def test_a_row_is_forecast_the_same_alone_and_among_others():
    together = forecast(made(), TRUE)
    for at in (0, 7, 17):
        alone = forecast(made().take(np.array([at])), TRUE)
        for f in fields(alone):
            assert getattr(alone, f.name)[0] == pytest.approx(getattr(together, f.name)[at])
