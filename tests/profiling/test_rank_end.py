"""Ranks' ends become one result: the cause is named, half-written files are no measurements."""

import pytest
from trials import JOB

from autoparallel.errors import ConfigError
from autoparallel.profiling.job import RankReport
from autoparallel.profiling.rank_end import RankEnd, joined, step_line, timed_steps
from autoparallel.profiling.worker.rank import failed_end


def end(rank, outcome="ok", **more):
    return RankEnd(rank=rank, outcome=outcome, **more)


def test_reads_back_what_it_writes():
    one = end(1, step_s=(0.5,), losses=(None, 2.0), report=RankReport(rank=1))
    assert RankEnd.parse(one.text()) == one
    for length in range(len(one.text())):
        with pytest.raises(ConfigError):
            RankEnd.parse(one.text()[:length])


def test_half_a_line_is_no_step():
    lines = [step_line(0.5, warmup=True), step_line(0.25, warmup=False), '{"s": 0.1, "wa']
    assert timed_steps(lines) == (0.25,)


def test_all_ranks_make_one_result():
    ends = [
        end(
            r, step_s=(1.0 + r, 3.0), losses=(4.0 + r,), report=RankReport(rank=r, peak_rss_bytes=r)
        )
        for r in range(4)
    ]
    result = joined(JOB, ends)
    assert result.ok
    assert result.step_s == (1.0, 3.0)
    assert result.losses == (5.5,)
    assert (result.peak_memory_bytes, result.memory_kind) == (3.0, "rss")


def test_allocated_memory_is_taken_before_anything_else():
    report = RankReport(rank=0, peak_allocated_bytes=7, peak_reserved_bytes=9, peak_rss_bytes=99)
    result = joined(JOB, [end(r, report=report) for r in range(4)])
    assert (result.peak_memory_bytes, result.memory_kind) == (7.0, "allocated")


@pytest.mark.parametrize(
    ("ends", "lost", "outcome", "words"),
    [
        ([end(0, "timeout", message="gloo"), end(1, "out_of_memory", message="no room")], {},
         "out_of_memory", "rank 1: no room"),
        ([end(0, "crash", message="peer reset")], {1: ("crash", "was killed by SIGKILL")},
         "crash", "rank 1: was killed"),
        ([end(0, "timeout"), end(1, "crash", message="bug")], {}, "crash", "rank 1: bug"),
        ([end(0), end(1)], {}, "crash", "only 2 of 4"),
        ([], {}, "crash", "only 0 of 4"),
    ],
)  # fmt: skip
def test_the_most_telling_failure_is_the_outcome(ends, lost, outcome, words):
    result = joined(JOB, ends, lost=lost)
    assert result.outcome == outcome
    assert words in result.message
    assert not result.ok


def test_streamed_steps_stand_in_for_a_rank_that_never_ended():
    assert joined(JOB, [], steps=(0.5, 0.7)).step_s == (0.5, 0.7)


def test_a_machine_without_the_extra_is_told_how_to_install_it():
    missing = failed_end(1, ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert missing.outcome == "crash"
    assert missing.message.startswith("torch: not installed on ")
    assert missing.message.endswith("pip install 'autoparallel-planner[profile]'")
    own = failed_end(1, ModuleNotFoundError("No module named 'x'", name="x"))
    assert own.message == "ModuleNotFoundError: No module named 'x'"
