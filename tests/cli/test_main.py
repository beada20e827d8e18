from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoparallel import __version__
from autoparallel.cli import common, main, search
from autoparallel.errors import AutoparallelError, LaunchError, NothingFitsError


@pytest.fixture
def run(capfd):
    """Run the command line; gives exit code, stdout and stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
        out, err = capfd.readouterr()
        return stop.value.code, out, err

    return call


@pytest.fixture
def requests(monkeypatch):
    """The requests that reach the search, which is not run."""
    seen = []
    monkeypatch.setattr(search, "_answer", lambda request, **kwargs: seen.append(request))
    return seen


def raising(error):
    def answer(*args, **kwargs):
        raise error

    return answer


SEARCH = ("search", "--model", "gpt-175b", "--gpus", "1024")


def test_version_and_help(run):
    assert run("--version") == (0, f"autoparallel {__version__}\n", "")
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert "search" in out
    assert run() == run("-h") == (code, out, err)


def test_python_m_runs_it_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "autoparallel", "--version"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"autoparallel {__version__}\n")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["serach"], ("'serach'", "'search'")),
        (["search", "--modle", "gpt-175b"], ("--modle", "'--model'")),
        (["search", "--model"], ("--model", "requires an argument")),
        ([*SEARCH[:3]], ("--gpus: missing",)),
        (["search", "--gpus", "8"], ("--model: missing",)),
        (
            ["search", "--model", "x", "--gpus", "many"],
            ("--gpus: 'many' should be a valid integer;",),
        ),
        (["search", "--model", "meta-llama/Llama-3.1-8B", "--gpus", "8"], ("has 'llama-3.1-8b'",)),
        (
            ["search", "--model", "here/mine.yaml", "--gpus", "8"],
            ("'here/mine.yaml' is not a file",),
        ),
        (["sweep", "--gpus", "8"], ("--model: missing",)),
        (["sweep", "--model", "gpt-175b", "--gpus", "9" * 5000], ("--gpus", "256,512,1024")),
        (["regress"], ("a command is missing", "check, pin")),
        (["catalog"], ("a command is missing", "list, show")),
        ([*SEARCH, "--out", ""], ("--out: '' names no folder",)),
        (["search", "--model", "gpt-17b", "--gpus", "8"], ("'gpt-17b'", "'gpt-175b'")),
        ([*SEARCH[:3], "--gpus", "0"], ("num_gpus", "1 to 1,000,000")),
        ([*SEARCH, "--cluster", "dgx-h10"], ("'dgx-h10'", "'dgx-h100'")),
        ([*SEARCH, "--framework", "megatron-cor"], ("'megatron-cor'", "'megatron-core'")),
        ([*SEARCH, "--precision", "bf61"], ("'bf61'", "bf16")),
        ([*SEARCH, "--space", "defualt"], ("'defualt'", "'default'")),
        ([*SEARCH, "--allow", "numeric"], ("--allow", "numerics")),
        ([*SEARCH, "--objective", "tiem"], ("'tiem'", "'time'")),
        ([*SEARCH, "--baseline", "tp8 qq2"], ("'qq2'",)),
        ([*SEARCH, "--tokens", "nan"], ("tokens",)),
        ([*SEARCH, "--tokens", "15X"], ("--tokens: '15X'", "15T")),
        ([*SEARCH, "--top", "0"], ("top: 0 is not in 1 to 100,000",)),
        ([*SEARCH, "--config-dir", "/nowhere"], ("config_dir", "/nowhere")),
        ([*SEARCH, "--profiles-dir", "/nowhere"], ("profiles_dir", "/nowhere")),
        (["validate", __file__, "--profiles-dir", "/nowhere"], ("profiles_dir", "/nowhere")),
        (["explain", "x", "tp1", "--profiles-dir", "/"], ("profiles_dir: '/' holds none of",)),
        ([*SEARCH, "foo"], ("'foo'", "KEY=VALUE")),
        ([*SEARCH, "space.tensor_model_parallel=[4]"], ("'tensor_model_parallel_size'",)),
        ([*SEARCH, "space.micro_batch_size=[0]"], ("micro_batch_size",)),
        ([*SEARCH, "--from", "request.yaml"], ("--model", "--from")),
        (["search", "--from", "/nowhere/request.yaml"], ("/nowhere/request.yaml",)),
        (["estimate", "--model", "gpt-175b", "--gpus", "8"], ("layout: missing",)),
        (["estimate", "tp8", "--layout", "tp4"], ("layout: given twice",)),
        (["estimate", "--zz"], ("--zz; known: --allow", "--tokens; see")),
        (["estimate", "mbs99999999"], ("'mbs99999999'", "from 1 to 9,999,999")),
        (["estimate", "tp8 zreo1", *SEARCH[1:]], ("'zreo1'", "'zero'")),
        (["validate"], ("FILE",)),
        (["validate", "/nowhere.csv"], ("/nowhere.csv",)),
        (["catalog", "lits"], ("'lits'", "'list'")),
        (["catalog", "list", "modles"], ("'modles'", "'models'")),
        (["catalog", "show", "models", "gpt-17b"], ("'gpt-175b'",)),
        (["catalog", "show", "gpus", "../config"], ("config",)),
    ],
)
def test_bad_input_is_exit_2_and_one_message(run, argv, words):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("autoparallel: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_flags_become_a_request(run, requests):
    code, _, _ = run(
        *SEARCH, "--cluster", "dgx-a100-80gb", "--global-batch-size", "512", "--tokens", "1e9",
        "--allow", "numerics", "--baseline", "tp8 pp8 mbs1 zero1",
        "space.tensor_model_parallel_size=[4,8]", "workload.seq_length=4096",
    )  # fmt: skip
    (request,) = requests
    assert code == 0
    assert (request.cluster.name, request.num_gpus) == ("dgx-a100-80gb", 1024)
    assert (request.global_batch_size, request.seq_length, request.tokens) == (512, 4096, 1e9)
    assert request.allow_numerics
    assert request.space["tensor_model_parallel_size"] == [4, 8]
    assert request.baseline == "tp8 pp8 mbs1 zero1"


def test_from_repeats_the_request(run, requests, tmp_path):
    run(*SEARCH, "--gpu", "h200-sxm-141gb", "workload=sft")
    requests[0].write_yaml(tmp_path / "request.yaml")
    assert run("search", "--from", tmp_path / "request.yaml")[0] == 0
    assert requests[1] == requests[0]


def test_layout_words_and_overrides_are_told_apart():
    words = ["tp8", "recompute=full/block/4", "space.x=1", "pp8 mbs1", "+space.y=2", "workload=sft"]
    assert common.split_words(words) == (
        "tp8 recompute=full/block/4 pp8 mbs1",
        ("space.x=1", "+space.y=2", "workload=sft"),
    )


def test_first_line_says_the_job_and_what_was_assumed(run, requests):
    run(*SEARCH)
    line = common.first_line(requests[0])
    for word in ("gpt-175b on 1024 x h100-sxm-80gb", "dgx-h100*", "batch 1536*", "300B tokens*"):
        assert word in line
    run(*SEARCH, "--cluster", "dgx-h100", "--global-batch-size", "1536")
    line = common.first_line(requests[1])
    assert "dgx-h100," in line
    assert "batch 1536," in line
    assert "sequence 2048*" in line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NothingFitsError("nothing fits"), 3),
        (LaunchError("every trial failed"), 4),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "Permission denied", "plan.json"), 2),
    ],
)
def test_errors_have_their_exit_code(run, monkeypatch, error, code):
    monkeypatch.setattr(search, "_answer", raising(error))
    got, out, err = run(*SEARCH)
    assert (got, out) == (code, "")
    assert err.startswith("autoparallel: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), AutoparallelError("broken")])
def test_our_own_error_leaves_a_crash_file(run, monkeypatch, tmp_path, error):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(search, "_answer", raising(error))
    code, out, err = run(*SEARCH)
    assert (code, out) == (70, "")
    assert "Traceback" not in err
    (crash,) = tmp_path.glob("autoparallel-crash-*.txt")
    assert str(crash) in err
    text = crash.read_text()
    assert "Traceback" in text
    assert "gpt-175b" in text


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_is_closed_from_the_start_is_as_good_as_nowhere(stream):
    command = [sys.executable, "-m", "autoparallel", "catalog", "list", "model"]
    number = {"stdout": 1, "stderr": 2}[stream]
    script = f"import os, sys; os.close({number}); os.execv(sys.executable, {command!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (stream == "stderr")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_output_is_exit_2_and_one_message():
    command = [sys.executable, "-m", "autoparallel", "catalog", "list", "model"]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("autoparallel: output: cannot be written (")
    assert len(done.stderr.splitlines()) == 1


def test_a_closed_pipe_is_no_error(tmp_path):
    script = (
        f"'{sys.executable}' -m autoparallel catalog list models | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


WORDS = st.sampled_from(
    ["search", "estimate", "validate", "catalog", "list", "show", "--model", "gpt-tiny", "--gpus",
     "8", "--json", "--from", "--out", "models", "tp8", "--top", "space.x=1", "--", "-", "--allow"]
)  # fmt: skip


@given(st.lists(WORDS | st.text(max_size=12), max_size=7))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_junk_arguments_never_crash(requests, monkeypatch, capfd, argv):
    from autoparallel.cli import estimate, validate

    for verb in (estimate, validate):
        monkeypatch.setattr(verb, "_answer", lambda *args, **kwargs: None)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capfd.readouterr()
    assert stop.value.code in (0, 2)
    assert (stop.value.code == 2) == err.startswith("autoparallel: ")
    assert "Traceback" not in out + err


@given(content=st.binary(max_size=120))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_junk_in_a_users_file_is_exit_2(requests, run, own_dir, content):
    (own_dir / "config.yaml").unlink(missing_ok=True)
    (own_dir / "workload").mkdir(exist_ok=True)
    (own_dir / "workload" / "pretrain.yaml").write_bytes(b"\xff" + content)
    code, _, err = run(*SEARCH, "--config-dir", own_dir)
    assert code == 2
    assert "pretrain.yaml" in err
    assert "Traceback" not in err


def test_catalog_lists_and_shows_with_sources(run):
    code, out, _ = run("catalog", "list", "models", "--json")
    names = {row["name"] for row in json.loads(out)}
    assert code == 0
    assert {"gpt-175b", "llama-3.1-405b", "mixtral-8x7b", "deepseek-v3", "gpt-tiny"} <= names
    for group, name in (
        ("clusters", "dgx-h100"),
        ("gpus", "h100-sxm-80gb"),
        ("models", "gpt-175b"),
    ):
        code, out, _ = run("catalog", "show", group, name, "--json")
        fields = json.loads(out)["fields"]
        numbers = [f for f in fields if type(f["value"]) in (int, float)]
        assert code == 0
        assert numbers
        assert all(f["source"] for f in numbers)


@pytest.mark.parametrize("group", ["models", "clusters", "gpus", "frameworks", "spaces", "sites"])
def test_catalog_list_is_plain_lines_when_piped(run, group):
    code, out, err = run("catalog", "list", group)
    head, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert head.split("\t")[0] == "name"
    assert all(len(row.split("\t")) == len(head.split("\t")) for row in rows)
    assert "\x1b" not in out
    assert not set("[]{}'") & set(out)


def test_start_is_light():
    heavy = ["numpy", "hydra", "omegaconf", "pandas", "rich", "torch", "ray", "optuna", "plotly"]
    script = f"import sys, autoparallel.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
