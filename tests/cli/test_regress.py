"""`autoparallel regress` as a user meets it: pin, check, the reports, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from shutil import copytree
from xml.etree import ElementTree

import pytest
import yaml

from autoparallel.catalog import data_dir
from autoparallel.cli import main

Run = Callable[..., tuple[int, str, str]]
JOB = ("--model", "gpt-175b", "--gpus", "256", "--global-batch-size", "256", "--cluster", "my.yaml")
LOCK = "configs/a.lock.yaml"


def call(folder: Path, *argv: object) -> int:
    """The exit code of a command in `folder`."""
    with chdir(folder), pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    return int(stop.value.code or 0)


@pytest.fixture
def run(capfd, tmp_path) -> Run:
    def answer(*argv: object) -> tuple[int, str, str]:
        code = call(tmp_path, *argv)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return answer


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run on a cluster file of one's own, and its lock."""
    folder = tmp_path_factory.mktemp("made")
    shipped = data_dir() / "search_spaces" / "cluster" / "dgx-h100.yaml"
    (folder / "my.yaml").write_bytes(shipped.read_bytes())
    assert call(folder, "search", *JOB, "--out", "run", "--quiet") == 0
    assert call(folder, "regress", "pin", "run", "--to", LOCK, "--cluster", "my.yaml") == 0
    return folder


@pytest.fixture
def pinned(made: Path, tmp_path: Path) -> Path:
    """A lock of a plan on a cluster file of one's own."""
    copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / LOCK


def fabric(folder: Path, gb_per_s: float) -> None:
    path = folder / "my.yaml"
    text = re.sub(r"(inter_link:\n  bandwidth_gb_per_s:) \S+", rf"\1 {gb_per_s}", path.read_text())
    path.write_text(text)


def test_a_pinned_plan_holds(run, pinned):
    code, out, err = run("regress", "check", LOCK)
    assert (code, err) == (0, "")
    assert out == f"holds  {LOCK}  gpt-175b on 256 GPUs of ../my.yaml\n"


def test_a_fifth_less_bandwidth_in_the_cluster_file_fails_and_says_so(run, pinned, tmp_path):
    fabric(tmp_path, 40)
    code, out, err = run("regress", "check", LOCK, "--junit", "o/j.xml", "--markdown", "o/m.md")
    assert (code, err) == (1, "")
    reason = "cluster.inter_link.bandwidth_gb_per_s 50 -> 40 (-20.0 %)"
    assert "REGRESSED" in out
    assert f"because {reason}: with the old value it is" in out

    suite = ElementTree.parse(tmp_path / "o/j.xml").getroot()[0]
    failures = suite.findall("testcase/failure")
    assert int(suite.attrib["failures"]) == len(failures) > 0
    assert reason in (failures[0].text or "")
    assert {case.attrib["name"] for case in suite} >= {"legal", "fits", "iteration_s", "optimum"}

    summary = (tmp_path / "o/m.md").read_text()
    assert summary.startswith("<!-- autoparallel regress -->")
    assert "0 of 1 hold, 1 regressed" in summary
    assert reason.replace("_", r"\_").replace(">", "&gt;") in summary


def test_one_percent_less_bandwidth_passes(run, pinned, tmp_path):
    fabric(tmp_path, 49.5)
    assert run("regress", "check", LOCK)[0] == 0


def test_json_holds_findings_changes_and_causes(run, pinned, tmp_path):
    fabric(tmp_path, 40)
    code, out, _ = run("regress", "check", LOCK, "--json")
    answer = json.loads(out)
    assert (code, answer["passed"], answer["kind"]) == (1, False, "regression")
    (lock,) = answer["locks"]
    assert [c["name"] for c in lock["changes"]] == ["cluster.inter_link.bandwidth_gb_per_s"]
    assert (lock["changes"][0]["before"], lock["changes"][0]["after"]) == (50, 40)
    assert {f["rule"] for f in lock["findings"] if f["failed"]} >= {"iteration_s"}


def test_update_pins_again_and_keeps_what_a_human_wrote(run, pinned, tmp_path):
    text = pinned.read_text().replace('note: ""', "note: ours")
    pinned.write_text(text.replace("optimum: 0.01", "optimum: 0.03"))
    fabric(tmp_path, 40)
    code, out, _ = run("regress", "check", LOCK, "--update")
    assert code == 0
    assert "50 -> 40" in out
    assert f"pinned again {LOCK}" in out
    again = yaml.safe_load(pinned.read_text())
    assert (again["note"], again["tolerance"]["optimum"]) == ("ours", 0.03)
    assert again["used"]["cluster"]["inter_link.bandwidth_gb_per_s"] == 40
    assert run("regress", "check", LOCK)[0] == 0


def test_an_existing_lock_is_not_written_over(run, pinned):
    before = pinned.read_bytes()
    code, _, err = run("regress", "pin", "run", "--to", LOCK, "--cluster", "my.yaml")
    assert code == 2
    assert "--update" in err
    assert pinned.read_bytes() == before
    assert run("regress", "pin", "run", "--to", LOCK, "--cluster", "my.yaml", "--force")[0] == 0


def test_a_plan_of_a_file_needs_the_file(run, pinned, tmp_path):
    code, _, err = run("regress", "pin", "run", "--to", "b.lock.yaml")
    assert code == 2
    assert "give --cluster FILE" in err
    fabric(tmp_path, 40)
    code, _, err = run("regress", "pin", "run", "--to", "b.lock.yaml", "--cluster", "my.yaml")
    assert code == 2
    assert "cluster.inter_link.bandwidth_gb_per_s: 50 in the run, 40 in today's catalog" in err
    shipped = data_dir() / "search_spaces" / "model" / "gpt-tiny.yaml"
    (tmp_path / "mine.yaml").write_bytes(shipped.read_bytes())
    own = ("--model", "mine.yaml", "--cluster", "local-cpu", "--gpus", 2)
    assert run("search", *own, "--json", "--out", "own")[0] == 0
    code, _, err = run("regress", "pin", "own", "--to", "b.lock.yaml")
    assert code == 2
    assert "give --model FILE" in err


def test_a_broken_lock_does_not_hide_the_others(run, pinned, tmp_path):
    fabric(tmp_path, 40)
    (tmp_path / "cut.lock.yaml").write_text(pinned.read_text()[:500])
    code, out, err = run("regress", "check", "cut.lock.yaml", LOCK, "none.yaml", "--junit", "j.xml",
                         "--markdown", "m.md")  # fmt: skip
    assert code == 2
    assert "REGRESSED" in out
    assert "cut.lock.yaml" in err
    assert "none.yaml" in err
    root = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert len(root.findall("testsuite/testcase/error")) == 2
    assert "could not be checked" in (tmp_path / "m.md").read_text()


def test_a_lock_is_never_touched_by_a_check(run, pinned, tmp_path):
    before = pinned.read_bytes()
    fabric(tmp_path, 40)
    run("regress", "check", LOCK)
    assert pinned.read_bytes() == before


def test_measured_runs_are_pinned_and_compared(run, pinned, tmp_path):
    steady = "iteration_s\n" + "\n".join(["5.0", "5.01", "4.99", "5.02", "4.98"]) + "\n"
    (tmp_path / "then.csv").write_text(steady)
    slow = "iteration_s\n" + "\n".join(["6.0", "6.01", "5.99", "6.02", "5.98"]) + "\n"
    (tmp_path / "now.csv").write_text(slow)
    words = ("regress", "pin", "run", "--to", "m.lock.yaml", "--cluster", "my.yaml")
    assert run(*words, "--measured", "then.csv")[0] == 0
    assert run("regress", "check", "m.lock.yaml", "--measured", "then.csv")[0] == 0
    code, out, _ = run("regress", "check", "m.lock.yaml", "--measured", "now.csv")
    assert code == 1
    assert "FAILED measured.iteration_s: median 5 s of 5 runs -> 6 s of 5 (+20.0 %)" in out


@pytest.mark.parametrize(
    "words",
    [
        ("pin", "run", "--to", "lock.txt"),
        ("pin", "run", "--to", "b.yaml", "--rank", "999"),
        ("pin", "nowhere", "--to", "b.yaml"),
        ("check", "nowhere.yaml"),
        ("check", "my.yaml"),
        ("check", LOCK, "--measured", "nowhere.csv"),
        ("check", LOCK, "--config-dir", "nowhere"),
        ("check",),
    ],
)
def test_bad_input_is_exit_2_with_one_message(run, pinned, words):
    code, _, err = run("regress", *words)
    assert code == 2
    assert err.startswith("autoparallel: ")


@pytest.mark.slow
@pytest.mark.megatron
def test_short_profiles_are_pinned_and_held_against_each_other(run, tmp_path):
    """Real ranks on both sides; whether noise fails the check is not what is asked here."""
    job = ("--model", "gpt-tiny", "--cluster", "local-cpu", "--gpus", 1)
    short = ("--profile", "--runs", 5, "--steps", 2)
    assert run("search", *job, "--out", "tiny", "--quiet")[0] == 0
    assert run("regress", "pin", "tiny", "--to", "tiny.lock.yaml", *short)[0] == 0
    pinned = yaml.safe_load((tmp_path / "tiny.lock.yaml").read_text())["measured"]
    assert len(pinned["values"]["iteration_s"]) == 5
    code, out, _ = run("regress", "check", "tiny.lock.yaml", *short, "--json")
    found = {f["rule"]: f for f in json.loads(out)["locks"][0]["findings"]}
    held = found["measured.iteration_s"]
    assert code == int(held["failed"])
    assert held["before"] == pytest.approx(sorted(pinned["values"]["iteration_s"])[2])
    assert held["after"] > 0
