"""The journal: what ended is there for good, what is damaged is left out and counted."""

import errno
import os
import threading
from dataclasses import replace

import pytest
from trials import JOB, RESULT

from autoparallel.errors import ConfigError
from autoparallel.profiling.job import timing
from autoparallel.profiling.store import RESERVE, Store, Trial, handed_on, taken_up


def job(steps):
    return replace(JOB, steps=steps)


def result(steps, outcome="ok"):
    times = timing(JOB, tuple(0.1 for _ in range(steps))) if outcome == "ok" else {}
    empty = {"step_s": (), "iteration_s": None, "iteration_s_mad": None}
    return replace(RESULT, trial=job(steps).trial, outcome=outcome, **(times or empty))


def test_trials_come_back_in_order(tmp_path):
    store = Store(tmp_path)
    for steps in (3, 5, 9):
        store.append(job(steps), result(steps))
    assert [t.job.steps for t in Store(tmp_path).trials()] == [3, 5, 9]
    assert store.trials()[1].result == result(5)
    assert store.damaged == 0


def test_more_steps_answer_for_fewer_and_not_the_other_way(tmp_path):
    store = Store(tmp_path)
    store.append(job(5), result(5))
    assert store.find(job(3)) == store.find(job(5)) == result(5)
    assert store.find(job(9)) is None
    assert store.find(replace(JOB, seed=9)) is None


@pytest.mark.parametrize(
    ("outcome", "reused"),
    [("out_of_memory", True), ("invalid", True), ("crash", False), ("timeout", False)],
)
def test_what_would_end_the_same_way_again_is_not_tried_again(tmp_path, outcome, reused):
    store = Store(tmp_path)
    store.append(job(3), result(3, outcome))
    assert (store.find(job(9)) is not None) == reused


def test_reading_leaves_no_trace(tmp_path):
    assert Store(tmp_path / "run").trials() == []
    assert Store(tmp_path / "run").find(JOB) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 20, 300])
def test_a_line_cut_by_a_killed_driver_is_left_out_and_later_ones_stand(tmp_path, cut):
    store = Store(tmp_path)
    store.append(job(3), result(3))
    whole = store.journal.read_bytes()
    store.journal.write_bytes(whole + whole[:cut])
    store.append(job(5), result(5))
    assert [t.job.steps for t in store.trials()] == [3, 5]
    assert store.damaged == 1


def test_no_changed_byte_passes(tmp_path):
    store = Store(tmp_path)
    store.append(job(3), result(3))
    whole = bytearray(store.journal.read_bytes())
    for place in range(0, len(whole) - 1, 37):
        changed = bytearray(whole)
        changed[place] ^= 1
        store.journal.write_bytes(bytes(changed))
        assert store.trials() == [], place
        assert store.damaged >= 1


def test_junk_is_counted_not_trusted(tmp_path):
    store = Store(tmp_path)
    store.prepare()
    store.journal.write_bytes(b"\xff\xfe\n{}\n0 0\n" + b"x" * 100_000)
    assert store.trials() == []
    assert store.damaged == 4


def test_two_drivers_lose_nothing(tmp_path):
    def work():
        own = Store(tmp_path)
        for _ in range(20):
            own.append(job(3), result(3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Store(tmp_path).trials()) == 80


def test_a_full_disk_keeps_the_trial_in_the_reserve(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.prepare()
    store.append(job(3), result(3))
    own, reserve = os.write, store.folder / RESERVE

    def write(descriptor, data):
        if reserve.exists():
            own(descriptor, bytes(data)[:7])  # half a line, as a filling disk leaves it
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(ConfigError, match="still saved"):
        store.append(job(5), result(5))
    assert [t.job.steps for t in store.trials()] == [3, 5]
    assert store.damaged == 0


def test_a_disk_that_stays_full_loses_nothing_that_stood_there(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.append(job(3), result(3))
    before = store.journal.read_bytes()

    def write(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(ConfigError, match="could not be saved"):
        store.append(job(5), result(5))
    assert store.journal.read_bytes() == before


def test_a_trial_is_handed_on_without_what_only_its_own_folder_needs():
    trial = Trial(job=JOB, result=replace(RESULT, log_tail="much"))
    text = handed_on(trial)
    assert taken_up(text) == Trial(job=JOB, result=replace(RESULT, log_tail="", ranks=()))
    with pytest.raises(ConfigError, match="damaged"):
        taken_up(text.replace("gpt-tiny", "gpt-175b"))
