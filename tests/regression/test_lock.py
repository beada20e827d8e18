"""Lock files: what is written reads back; what is cut, merged, edited or newer is refused."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.errors import ConfigError
from autoparallel.regression.kinds import TRAINING
from autoparallel.regression.lock import Lock, Samples, checksum, load_lock
from autoparallel.regression.pin import pinned_lock
from autoparallel.regression.training import asked, resolved, training_today
from autoparallel.request import training_request

SMALL = ("space.micro_batch_size=[1]", "space.recompute=[none]")


@cache
def lock() -> Lock:
    request = training_request(
        model="llama-3.1-8b", num_gpus=16, global_batch_size=64, overrides=SMALL
    )
    ask = asked(request, Path(), {})
    today = training_today(resolved(ask, Path(), {}))
    return pinned_lock(TRAINING, ask, today, today.entries[0].layout, versions={"numpy": "2"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lock().write(tmp_path / "a.lock.yaml")
    return tmp_path / "a.lock.yaml"


def refused(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_lock(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_reads_back_what_was_written(path):
    again = load_lock(path)
    assert again.to_mapping() == lock().to_mapping()
    assert again.text() == path.read_text()


def test_runs_are_kept(path):
    runs = Samples(source="runs.csv", values={"iteration_s": (1.5, 1.25)})
    replace(lock(), measured=runs, note="two\nlines").write(path)
    again = load_lock(path)
    assert (again.measured, again.note) == (runs, "two\nlines")


def test_a_human_may_edit_note_and_tolerance(path):
    text = path.read_text()
    edited = text.replace('note: ""', 'note: "why @team: see #12"')
    path.write_text(re.sub(r"iteration_s: 0\.\d+", "iteration_s: 0.25", edited, count=1))
    again = load_lock(path)
    assert again.note == "why @team: see #12"
    assert again.tolerance["iteration_s"] == 0.25
    assert again.tolerance["memory_bytes"] == TRAINING.tolerance["memory_bytes"]


def test_a_tolerance_left_out_keeps_its_default(path):
    text = re.sub(r"tolerance:\n(  .*\n)+", "tolerance: {iteration_s: 0.1}\n", path.read_text())
    path.write_text(text)
    assert load_lock(path).tolerance == {**TRAINING.tolerance, "iteration_s": 0.1}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_comments_line_ends_and_a_byte_order_mark_are_free(path, line_end):
    text = "\ufeff# mine\n" + path.read_text().replace("used:", "# what\nused:")
    path.write_bytes(text.replace("\n", line_end).encode())
    assert load_lock(path) == lock()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("num_gpus: 16", "num_gpus: 32", "checksum"),
        ("schema_version: 1", "schema_version: 2", "upgrade autoparallel-planner"),
        ("schema_version: 1", "schema_version: true", "schema_version"),
        ("kind: training", "kind: cooking", "training"),
        ("  num_gpus: 16\n", "", "request.num_gpus: the field is missing"),
        ("  num_gpus: 16\n", "  num_gpus: 16\n  num_gpu: 16\n", "did you mean 'num_gpus'"),
        ("  num_gpus: 16\n", "  num_gpus: 16\n  num_gpus: 16\n", "stands twice"),
        ("iteration_s: 0.005", "iteration_s: -1", "tolerance.iteration_s"),
        ("iteration_s: 0.005", "iteration: 0.005", "did you mean 'iteration_s'"),
        ("kind: training", "<<<<<<< HEAD\nkind: training", "YAML"),
        ("objective: iteration_s", "objective: [iteration_s]", "objective"),
        ("num_gpus: 16", "num_gpus: .nan", "num_gpus"),
        ('note: ""', 'note: "\\e[31m"', "note"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(path, old, new, says):
    text = path.read_text()
    assert old in text
    assert says in refused(path, text.replace(old, new, 1))


def test_any_cut_is_refused(path):
    text = path.read_text()
    for end in range(0, len(text) - 10, 211):
        refused(path, text[:end])


def test_the_checksum_covers_every_block_but_two():
    data = lock().to_mapping()
    whole = checksum(data)
    for name in data:
        changed = {**data, name: "other"}
        assert (checksum(changed) == whole) == (name in ("note", "tolerance"))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=5,
)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_one_odd_value_anywhere_is_refused_or_free(tmp_path_factory, data):
    content = yaml.load(lock().text(), Loader=yaml.CSafeLoader)
    place, key = content, data.draw(st.sampled_from(sorted(content)))
    if isinstance(content[key], dict) and content[key] and data.draw(st.booleans()):
        place, key = content[key], data.draw(st.sampled_from(sorted(content[key])))
    place[key] = data.draw(JUNK)
    path = tmp_path_factory.mktemp("junk") / "a.yaml"
    path.write_text(yaml.dump(content, Dumper=yaml.CSafeDumper, allow_unicode=False))
    with suppress(ConfigError):
        load_lock(path)
