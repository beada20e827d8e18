"""`infer` and `export` of its plans as whole commands: files, answers, exit codes."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

import autoparallel
from autoparallel.cli import main
from autoparallel.request import ServingRequest
from autoparallel.serving_plan import load_serving_plan

SMALL = (
    "space.max_batch_size=[1,8,64]",
    "space.max_num_tokens=[8192]",
)
ASK = ("infer", "--model", "llama-3.1-8b", "--input-tokens", 1000, "--output-tokens", 100)
INFER = (*ASK, "--gpus", 4, *SMALL)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def timeless(plan: dict) -> dict:
    return plan | {"search_s": 0.0}


def test_json_is_the_plan_and_writes_nothing(run, tmp_path):
    code, out, err = run(*INFER, "--tpot-ms", 15, "--json")
    plan = json.loads(out)
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert plan["kind"] == "serving"
    assert plan["considered"] == plan["legal"] + sum(plan["pruned"].values())
    assert [e["rank"] for e in plan["plan"]] == list(range(1, len(plan["plan"]) + 1))
    for entry in plan["plan"]:
        assert entry["tpot_ms"] <= 15
        assert sum(w["replicas"] * w["gpus"] for w in entry["workers"]) <= 4
        assert entry["ttft_ms_p50"] <= entry["ttft_ms_p90"] <= entry["ttft_ms_p99"]


def test_a_run_holds_the_plan_the_request_the_front_and_launch_files(run, tmp_path):
    code, out, _ = run(
        *INFER, "--backend", "vllm", "--disaggregated", "off", "--json", "--out", "r"
    )
    assert code == 0
    assert (tmp_path / "r" / "plan.json").read_text() == out
    request = ServingRequest.from_yaml(tmp_path / "r" / "request.yaml")
    assert request.to_mapping() == json.loads(out)["request"]
    winner = load_serving_plan(tmp_path / "r").entries[0]
    script = (tmp_path / "r" / "launch" / "vllm" / "run.sh").read_text()
    assert script.count("vllm serve") == winner.workers[0].replicas
    assert f"--max-num-seqs {winner.workers[0].max_batch_size}" in script
    front = (tmp_path / "r" / "pareto.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(front)))
    users = [float(row["tokens_per_s_per_user"]) for row in rows]
    assert users == sorted(users, reverse=True)
    code, again, _ = run("infer", "--from", "r/request.yaml", "--json")
    assert timeless(json.loads(again)) == timeless(json.loads(out))


def test_the_screen_says_what_was_assumed_and_what_to_take(run):
    code, out, _ = run(*INFER, "--out", "r")
    first, *rest = out.splitlines()
    assert code == 0
    assert first.startswith("llama-3.1-8b on 4 x h100-sxm-80gb, dgx-h100*")
    assert first.endswith("(* default)")
    assert any(line.startswith("Take ") for line in rest)


def test_limits_that_nothing_keeps_are_exit_3_with_the_nearest_miss(run):
    code, out, err = run(*INFER, "--tpot-ms", 1, "--json")
    assert code == 3
    assert json.loads(out)["plan"] == []
    assert "nearest miss" in err
    limit = err.split("would do: --tpot-ms ")[1].split(":")[0]
    code, out, _ = run(*INFER, "--tpot-ms", limit, "--json")
    assert (code, bool(json.loads(out)["plan"])) == (0, True)


def test_a_rate_beyond_any_number_of_gpus_says_how_many_it_takes_and_what_is_carried(run):
    asked = ("--model", "llama-3.1-8b", "--input-tokens", 1000, "--output-tokens", 200)
    code, _, err = run("infer", *asked, "--gpus", "auto", "--request-rate", "1e9", "--quiet")
    assert code == 3
    assert "--gpus auto stops at 8,192 GPUs; 1e+09 requests/s take about" in err
    taken = float(err.split("requests/s take about ")[1].split()[0].replace(",", ""))
    carried = float(err.split("carries ")[1].split()[0])
    assert taken == pytest.approx(8192 * 1e9 / carried, rel=0.02)
    lighter = float(err.split("would do: --request-rate ")[1].split(":")[0])
    assert 0.2 * carried < lighter <= 1.01 * carried


def test_a_model_that_fits_nowhere_is_exit_3_with_what_would_do(run):
    asked = ("--model", "llama-3.1-70b", "--input-tokens", 100, "--output-tokens", 10, *SMALL)
    code, _, err = run("infer", *asked, "--gpus", 1, "--quiet")
    assert code == 3
    assert "fits in memory" in err
    assert "would do: --gpus" in err


@pytest.mark.parametrize("percentile", ["mean", "p90"])
def test_a_limit_of_the_whole_request_is_missed_and_met_like_the_others(run, percentile):
    asked = (*INFER, "--percentile", percentile, "--e2e-ms")
    code, _, err = run(*asked, 100, "--quiet")
    assert code == 3
    assert "ms of 100 ms: BROKEN" in err
    limit = err.split("would do: --e2e-ms ")[1].split(":")[0]
    assert run(*asked, limit, "--json")[0] == 0


@pytest.mark.parametrize(("flag", "much"), [("--request-rate", 5000), ("--concurrency", 5000)])
def test_a_load_that_nothing_carries_comes_with_one_that_is_carried(run, flag, much):
    asked = (*ASK, "--gpus", 1, *SMALL, "--tpot-ms", 20, "--ttft-ms", 2000)
    code, _, err = run(*asked, flag, much, "--quiet")
    assert code == 3
    less = err.split(f"would do: {flag} ")[1].split(":")[0]
    assert 0 < float(less) < much
    assert run(*asked, flag, less, "--json")[0] == 0


def test_the_fewest_gpus_carry_the_rate_and_one_less_does_not(run):
    asked = (
        *ASK,
        *SMALL,
        "--request-rate",
        70,
        "--disaggregated",
        "off",
        "--ttft-ms",
        2000,
        "--backend",
        "vllm",
    )
    code, out, _ = run(*asked, "--gpus", "auto", "--json")
    best = json.loads(out)["plan"][0]
    gpus = sum(w["replicas"] * w["gpus"] for w in best["workers"])
    assert code == 0
    assert gpus > 1
    assert run(*asked, "--gpus", gpus, "--json")[0] == 0
    assert run(*asked, "--gpus", gpus - 1, "--json")[0] == 3


def test_a_trace_is_simulated(run, tmp_path):
    lines = "".join(f"{i / 10},{500 + i},{50 + i % 7}\r\n" for i in range(60))
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfarrival,input,output\r\n" + lines.encode())
    asked = ("infer", "--model", "llama-3.1-8b", "--gpus", 2, "--trace", "t.csv", *SMALL)
    code, out, _ = run(*asked, "--json")
    assert code == 0
    assert {e["mode"] for e in json.loads(out)["plan"]} == {"aggregated"}
    assert run(*asked, "--disaggregated", "on")[0] == 2
    (tmp_path / "t.csv").write_text("arrival,input,output\n-3,5,5\n")
    code, _, err = run(*asked)
    assert (code, "line 2 arrival: -3.0" in err) == (2, True)


def test_the_model_and_cluster_of_a_training_run_can_be_served(run):
    train = ("search", "--model", "llama-3.1-8b", "--gpus", 8, "--cluster", "dgx-h200", "--json")
    assert run(*train, "--out", "run")[0] == 0
    lengths = ("--input-tokens", 100, "--output-tokens", 10, "--gpus", 1, *SMALL, "--json")
    code, out, _ = run("infer", "--from-plan", "run", *lengths)
    request = json.loads(out)["request"]
    assert code == 0
    assert (request["model"]["name"], request["cluster"]["name"]) == ("llama-3.1-8b", "dgx-h200")
    assert run("infer", "--from-plan", "run", "--model", "llama-3.1-8b", *lengths)[0] == 2


def test_export_writes_any_rank_to_any_target_of_its_backend(run, tmp_path):
    run(*INFER, "--backend", "sglang", "--disaggregated", "off", "--json", "--out", "r")
    code, out, _ = run("export", "r", "--rank", 2, "--to", "dynamo", "--out", "x")
    assert code == 0
    assert (tmp_path / "x" / "launch" / "dynamo" / "run.sh").read_text()
    assert "dynamo/run.sh" in out
    for wrong in (("--to", "vllm"), ("--to", "lsf"), ("--launcher", "slurm"), ("--rank", 99)):
        assert run("export", "r", *wrong)[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--ttft-ms", "nan"),
        ("--tpot-ms", 0),
        ("--concurrency", -1),
        ("--gpus", "auto"),
        ("--percentile", "p95"),
        ("--top", 0),
        ("--allow", "anything"),
        ("space.max_batch=[1]",),
    ],
)
def test_junk_is_exit_2_and_one_line(run, words):
    asked = [word for word in INFER if "--gpus" not in words or word not in ("--gpus", 4)]
    code, _, err = run(*asked, *words)
    assert code == 2
    assert err.startswith("autoparallel: ")
    assert "Traceback" not in err


def test_the_function_is_the_command(run):
    code, out, _ = run(*INFER, "--concurrency", 16, "--json")
    asked = {"input_tokens": 1000, "output_tokens": 100, "concurrency": 16, "overrides": SMALL}
    plan = autoparallel.infer(model="llama-3.1-8b", gpus=4, **asked)
    assert code == 0
    assert timeless(plan.to_json()) == timeless(json.loads(out))
    with pytest.raises(autoparallel.errors.ConfigError, match="did you mean 'ttft_ms'"):
        autoparallel.infer(model="llama-3.1-8b", gpus=4, ttft=1)


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        ("dgx-h100", "measured figures of vllm-hopper"),
        ("dgx-b200", "No figure of vllm-blackwell is known: numbers are assumed, borrowed from"),
        ("dgx-h200", "numbers are assumed, borrowed from vllm-hopper (h100-sxm-80gb)"),
    ],
)
def test_the_screen_says_how_sure_the_latencies_are_and_why(run, cluster, says):
    asked = (*INFER, "--cluster", cluster, "--backend", "vllm", "--concurrency", 16)
    code, out, _ = run(*asked)
    assert code == 0
    shown = " ".join(out.split())
    assert says in shown
    low, high = re.search(r"With 90 % TTFT ([\d.,]+) to ([\d.,]+) ms and TPOT", shown).groups()
    assert 0 < float(low.replace(",", "")) < float(high.replace(",", ""))
