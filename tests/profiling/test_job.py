"""Job and Result: what goes in comes out, junk is a ConfigError, schemas agree, digests hold."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from autoparallel import catalog
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout
from autoparallel.profiling.job import Job, RankReport, Result, timing

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
JOB = Job(
    model=catalog.model("gpt-tiny"),
    layout=Layout.parse("tp2 pp1 mbs2 sp zero1 recompute=full/block/2"),
    num_gpus=4,
    global_batch_size=16,
    seq_length=64,
    environment={"A": "b"},
)
RESULT = Result(
    trial=JOB.trial,
    outcome="ok",
    device="cpu",
    impl="local",
    losses=(5.5, None),
    ranks=(RankReport(rank=0, peak_rss_bytes=10),),
    versions={"torch": "2.6"},
    **timing(JOB, (0.2, 0.1, 0.4)),
)


@pytest.mark.parametrize("record", [JOB, RESULT], ids=["job", "result"])
def test_reads_back_what_it_writes(record):
    assert type(record).parse(record.text()) == record


@pytest.mark.parametrize("record", [JOB, RESULT], ids=["job", "result"])
def test_the_schema_names_exactly_what_is_written(record):
    schema = json.loads((SCHEMAS / f"{type(record).__name__.lower()}.schema.json").read_text())
    assert list(schema["properties"]) == schema["required"] == list(record.to_json())
    inner = {"job": ("model", "model"), "result": ("rank", "ranks")}
    name, field = inner[type(record).__name__.lower()]
    written = record.to_json()[field]
    written = written[0] if isinstance(written, list) else written
    assert list(schema["$defs"][name]["properties"]) == list(written)


@pytest.mark.parametrize("record", [JOB, RESULT], ids=["job", "result"])
def test_a_field_that_is_missing_unknown_or_of_another_kind_is_refused(record):
    data = record.to_json()
    for name in data:
        rest = {k: v for k, v in data.items() if k != name}
        with pytest.raises(ConfigError, match=name):
            type(record).parse(json.dumps(rest))
        with pytest.raises(ConfigError):
            type(record).parse(json.dumps(data | {name: {"x": 1.5}}))
    with pytest.raises(ConfigError, match="unknown"):
        type(record).parse(json.dumps(data | {"stepz": 1}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 2}', "{} {}"])
def test_half_files_are_refused(text):
    for kind in (Job, Result):
        with pytest.raises(ConfigError):
            kind.parse(text)


def test_a_trial_is_named_for_what_it_measures():
    assert replace(JOB, timeout_s=1.0, collective_timeout_s=2.0).trial == JOB.trial
    assert replace(JOB, steps=9).trial != JOB.trial
    assert replace(JOB, steps=9).subject == JOB.subject
    for f in fields(Job):
        if f.name in ("seed", "comparable", "device", "impl"):
            other = {"seed": 5, "comparable": True, "device": "cpu", "impl": "te"}[f.name]
            assert replace(JOB, **{f.name: other}).subject != JOB.subject


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_gpus": 3}, "multiple"),
        ({"steps": 0}, "steps"),
        ({"mode": "rank"}, "rank"),
        ({"rank": 1}, "rank"),
        ({"mode": "rank", "rank": 4}, "rank"),
        ({"timeout_s": 0.0}, "timeout"),
    ],
)
def test_impossible_jobs_are_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        replace(JOB, **changes)


def test_timing_is_the_median_and_its_deviation():
    found = timing(JOB, (0.2, 0.1, 0.4))
    assert found["iteration_s"] == 0.2
    assert found["iteration_s_mad"] == pytest.approx(0.1)
    assert found["tokens_per_s_per_gpu"] == pytest.approx(16 * 64 / 0.2 / 4)
    assert timing(JOB, ()) == {}


def test_a_rank_of_a_large_world_is_one_process():
    assert JOB.processes == 4
    assert replace(JOB, mode="rank", rank=3).processes == 1
