"""Whole commands on a model small enough to search in a blink: files, answers, exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from autoparallel.cli import main, run_folder
from autoparallel.layout import Layout
from autoparallel.plan import load_plan
from autoparallel.request import TrainingRequest

TINY = ("--model", "gpt-tiny", "--gpus", "2", "--cluster", "local-cpu")
SEARCH = ("search", *TINY)
BIG = ("search", "--model", "gpt-175b", "--gpus", "1024", "--cluster", "dgx-a100-80gb")
OWN = "tp2 pp1 mbs1 sp zero1"


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


def test_json_without_out_writes_nothing(run, tmp_path):
    code, out, err = run(*SEARCH, "--json")
    plan = json.loads(out)
    assert (code, err) == (0, "")
    assert plan["feasible"] >= len(plan["plan"]) == 10
    assert [e["rank"] for e in plan["plan"]] == list(range(1, 11))
    times = [e["iteration_s"] for e in plan["plan"]]
    assert times == sorted(times)
    assert list(tmp_path.iterdir()) == []


def test_out_holds_the_plan_byte_for_byte_the_request_and_launch_files(run, tmp_path):
    code, out, _ = run(*BIG, "--json", "--out", tmp_path / "x")
    assert code == 0
    assert (tmp_path / "x" / "plan.json").read_text() == out
    request = TrainingRequest.from_yaml(tmp_path / "x" / "request.yaml")
    assert request.to_mapping() == json.loads(out)["request"]
    winner = load_plan(tmp_path / "x").entries[0].layout
    arguments = (tmp_path / "x" / "launch" / "megatron-lm" / "args.txt").read_text().split("\n")
    place = arguments.index("--tensor-model-parallel-size")
    assert arguments[place + 1] == str(winner.tensor_model_parallel_size)


def test_runs_of_the_same_second_have_folders_of_their_own(run, tmp_path, monkeypatch):
    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 29, tzinfo=tz)

    monkeypatch.setattr(run_folder, "datetime", Stopped)
    for batch in (16, 32, 64):
        assert run(*SEARCH, "--global-batch-size", batch)[0] == 0
    plans = [load_plan(folder) for folder in sorted((tmp_path / "runs").iterdir())]
    assert [plan.request["global_batch_size"] for plan in plans] == [16, 32, 64]


def test_what_an_earlier_plan_left_in_the_folder_is_named(run, tmp_path):
    """Launch files and reports of another plan would start, or show, what this one does not say."""
    older = tmp_path / "x" / "launch" / "torchtitan" / "run.sh"
    older.parent.mkdir(parents=True)
    older.touch()
    (tmp_path / "x" / "report.html").touch()
    (tmp_path / "x" / "notes.txt").touch()
    said = "x also holds, of an earlier plan: launch/torchtitan, report.html\n"
    assert run(*SEARCH, "--out", "x")[2] == said
    assert run(*SEARCH, "--out", "x", "--quiet")[2] == ""
    assert run(*SEARCH, "--out", "y")[2] == ""
    assert older.exists()


def test_from_gives_the_identical_plan(run, tmp_path):
    _, first, _ = run(*SEARCH, "--json", "--out", "x", "--tokens", "1e8", "space.zero_stage=[0,1]")
    code, again, _ = run("search", "--from", "x/request.yaml", "--json")
    assert code == 0
    assert timeless(json.loads(again)) == timeless(json.loads(first))
    assert json.loads(again)["search_s"] > 0


def test_candidates_are_compact_columns_best_first(run, tmp_path):
    _, out, _ = run(*BIG, "--json", "--out", "x")
    plan = json.loads(out)
    table = pq.read_table(tmp_path / "x" / "candidates.parquet")
    kept = table.column("kept").to_pylist()
    best = kept.count("best")
    assert best == min(plan["feasible"], 20_000)
    assert kept.count("sample") == min(plan["evaluated"], 20_000)
    times = table.column("iteration_s").to_pylist()[:best]
    assert times == sorted(times)
    first, entry = table.slice(0, 1).to_pylist()[0], plan["plan"][0]
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "micro_batch_size"):
        assert first[name] == entry[name]
    assert first["iteration_s"] == pytest.approx(entry["iteration_s"], rel=1e-6)
    assert first["overlap"].split("+") == list(Layout.parse(entry["layout"]).overlap)
    kinds = {str(field.type) for field in table.schema}
    assert kinds == {"float", "int32", "dictionary<values=string, indices=int32, ordered=0>"}


def test_save_all_keeps_every_evaluated_layout(run, tmp_path):
    _, out, _ = run(*SEARCH, "--json", "--out", "x", "--save-all")
    table = pq.read_table(tmp_path / "x" / "candidates.parquet")
    assert table.num_rows == json.loads(out)["evaluated"]
    assert set(table.column("kept").to_pylist()) == {"all"}


def test_without_json_a_run_folder_and_an_answer(run, tmp_path):
    code, out, err = run(*BIG, "--baseline", "tp8 pp8 vpp3 mbs1 sp zero1")
    (folder,) = (tmp_path / "runs").iterdir()
    lines = out.splitlines()
    plan = load_plan(folder)
    assert (code, err) == (0, "")
    assert folder.name.endswith("-gpt-175b-1024")
    assert lines[0].startswith("gpt-175b on 1024 x a100-sxm-80gb, dgx-a100-80gb, megatron-core*")
    for entry in plan.entries:
        (row,) = (line for line in lines if f"  {entry.layout}  " in line and line[0].isdigit())
        assert row.split()[0].rstrip("=") == str(entry.rank)
        assert f"{entry.iteration_s:.2f}" in row
    for start in ("yours  tp8", "Take tp", "Next, tp", "Yours, tp8", "44,520 layouts", "Files in"):
        assert any(line.startswith(start) for line in lines), start
    assert any(line.startswith("  tp") and "->" in line for line in lines)
    assert "is not legal" not in out
    assert "\x1b" not in out


def test_an_illegal_baseline_is_named_with_its_rule(run):
    code, out, _ = run(*SEARCH, "--baseline", "tp8 pp1 mbs1 zero1")
    assert code == 0
    assert "Yours, tp8 pp1 mbs1 zero1, is not legal: world:" in out


def test_quiet_is_the_table_only(run):
    code, out, err = run(*SEARCH, "--quiet", "--top", "3")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 4


def test_nothing_fits_says_what_is_missing_and_what_would_fit(run):
    code, out, err = run(
        "search", "--model", "gpt-175b", "--gpus", "16", "--cluster", "dgx-a100-80gb", "--json"
    )
    assert code == 3
    assert json.loads(out)["plan"] == []
    assert "GiB too much; most of it is optimizer" in err
    flags = [line.split(": ")[1] for line in err.splitlines() if "would fit: " in line]
    assert flags
    for change in flags:
        words = change.split()
        base = {"--model": "gpt-175b", "--gpus": "16", "--cluster": "dgx-a100-80gb"}
        base |= dict(zip(words[::2], words[1::2], strict=True)) if words[0][:2] == "--" else {}
        extra = [] if words[0][:2] == "--" else words
        again = [part for pair in base.items() for part in pair]
        code, out, _ = run("search", *again, *extra, "--json")
        assert code == 0, change
        assert json.loads(out)["feasible"] > 0


def test_nothing_legal_names_the_rule_with_its_numbers(run):
    code, out, err = run(
        "search", "--model", "gpt-175b", "--gpus", "7", "space.tensor_model_parallel_size=[5]"
    )
    assert code == 3
    assert "break the rule 'world': data_parallel_size" in err
    assert "7 GPUs is not tp 5" in err
    assert "0 legal" in out


def test_a_layout_that_nothing_launches_still_has_a_plan(run, tmp_path):
    code, _, err = run(*SEARCH, "--framework", "yafsdp", "--out", tmp_path / "x")
    assert code == 0
    assert "no launch files: framework: 'yafsdp' has no exporter" in err
    assert "automodel, deepspeed, fsdp2, megatron-core, megatron-lm have some" in err
    assert load_plan(tmp_path / "x").entries


def test_the_next_exporter_of_the_framework_writes_what_the_first_cannot(run, tmp_path):
    code, _, err = run(*SEARCH, "--framework", "fsdp2", "--out", tmp_path / "x")
    assert code == 0
    assert "for fsdp2: gpt-tiny.normalization: 'LayerNorm' is in none of its families" in err
    assert (tmp_path / "x" / "launch" / "fsdp2" / "recipe.yaml").is_file()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--to", "torchtitan"), ("'torchtitan'", "megatron-lm and megatron-bridge can")),
        (("--to", "megatron"), ("'megatron'", "'megatron-lm'")),
        (("--launcher", "slurmm"), ("'slurmm'", "'slurm'")),
    ],
)
def test_export_to_the_wrong_place_is_exit_2(run, flags, words):
    run(*SEARCH, "--json", "--out", "x")
    code, out, err = run("export", "x", *flags)
    assert (code, out) == (2, "")
    for word in words:
        assert word in err


def test_export_to_another_framework_and_launcher(run, tmp_path):
    run(*SEARCH, "--json", "--out", "x")
    flags = ("--to", "megatron-bridge", "--launcher", "kubernetes", "--site", "kubernetes")
    code, out, _ = run("export", "x", *flags, "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["to"], answer["launcher"]) == ("megatron-bridge", "kubernetes")
    names = {Path(file).name for file in answer["files"]}
    assert {"config.yaml", "bridge_pretrain.py", "run.sh", "job.yaml"} <= names
    assert {Path(file).parent.name for file in answer["files"]} == {"megatron-bridge"}


@pytest.mark.parametrize(("precision", "noted"), [("bf16", False), ("fp8", True)])
def test_the_peak_behind_mfu_is_named_where_it_surprises(run, precision, noted):
    job = ("--model", "gpt-tiny", "--gpus", "2", "--precision", precision)
    _, out, _ = run("search", *job)
    assert ("MFU % is of the dense bf16 peak" in out) == noted


def test_part_of_a_node_has_a_plan_but_no_launch_files(run, tmp_path):
    job = ("--model", "gpt-tiny", "--gpus", "12", "--global-batch-size", "12", "--seq-length", "64")
    code, _, err = run("search", *job, "--out", tmp_path / "x")
    assert code == 0
    assert "no launch files: num_gpus: 12 is not whole nodes of 8 GPUs" in err
    assert load_plan(tmp_path / "x").entries
    assert not (tmp_path / "x" / "launch").exists()


def test_export_writes_the_rank_asked_for_with_the_sites_settings(run, tmp_path):
    own = tmp_path / "own" / "site"
    own.mkdir(parents=True)
    (own / "ours.yaml").write_text(
        "data_path: ['0.5', /data/a, '0.5', /data/b]\nenvironment: {NCCL_DEBUG: INFO}\n"
    )
    run(*BIG, "--json", "--out", "x")
    code, out, _ = run(
        "export", "x", "--rank", "7", "--out", "y", "--site", "ours", "--config-dir", "own"
    )
    assert code == 0
    files = {Path(line).name: Path(line) for line in out.splitlines()}
    arguments = files["args.txt"].read_text().split("\n")
    wanted = load_plan(tmp_path / "x").entries[6].layout.pipeline_model_parallel_size
    assert arguments[arguments.index("--pipeline-model-parallel-size") + 1] == str(wanted)
    assert "/data/b" in arguments
    assert "export NCCL_DEBUG=INFO" in files["run.sh"].read_text()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["export", "nowhere"], ("nowhere",)),
        (["export", "x", "--rank", "11"], ("--rank: 11", "10 layouts")),
        (["export", "x", "--site", "slrum"], ("'slrum'", "'slurm'")),
        (["explain", "nowhere", "tp1"], ("nowhere",)),
        (["explain", "x"], ("layout: missing",)),
        (["explain", "x", "tp1 qq2"], ("'qq2'",)),
        (["explain", "x", "tp2 fw=fsdp3"], ("'fsdp3'", "'fsdp'")),
    ],
)
def test_bad_use_of_a_run_is_exit_2(run, argv, words):
    run(*SEARCH, "--json", "--out", "x")
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    for word in words:
        assert word in err


def test_an_unwritable_out_is_exit_2_after_the_answer(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = run(*SEARCH, "--out", tmp_path / "file" / "x")
    assert code == 2
    assert "file" in err
    assert "Take tp1" in out


def test_replaced_folders_follow_from(run, tmp_path):
    run(*SEARCH, "--json", "--out", "x")
    (tmp_path / "mine").mkdir()
    code, out, _ = run("search", "--from", "x/request.yaml", "--config-dir", "mine", "--json")
    saved = TrainingRequest.from_yaml(tmp_path / "x" / "request.yaml")
    moved = replace(saved, config_dir=str(tmp_path / "mine"))
    assert code == 0
    assert json.loads(out)["request"] == moved.to_mapping()


def test_estimate_agrees_with_the_search(run):
    _, out, _ = run(*SEARCH, "--json")
    entry = json.loads(out)["plan"][3]
    code, out, _ = run("estimate", entry["layout"], *TINY, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["legal"]
    assert answer["place"]["rank"] <= 4
    for name in ("iteration_s", "memory_bytes", "fits_probability"):
        assert answer[name] == pytest.approx(entry[name], rel=1e-9)
    code, out, _ = run("estimate", entry["layout"], *TINY)
    assert code == 0
    assert out.splitlines()[2].split("  ")[1] == entry["layout"]
    assert [line for line in out.splitlines() if line.startswith("compute  ")]


def test_estimate_of_an_illegal_layout_is_exit_0_with_reasons(run):
    code, out, _ = run("estimate", "tp8 pp1 mbs1 zero1", *TINY)
    assert code == 0
    assert "not legal: world: data_parallel_size: 2 GPUs is not tp 8" in out
    _, out, _ = run("estimate", "tp8 pp1 mbs1 zero1", *TINY, "--json")
    answer = json.loads(out)
    assert not answer["legal"]
    assert answer["iteration_s"] is None
    assert answer["illegal_reasons"][0]["rule"] == "world"


def test_explain_compares_with_the_winner(run):
    run(*SEARCH, "--json", "--out", "x")
    winner = load_plan(Path("x")).entries[0]
    code, out, _ = run("explain", "x", OWN, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["winner"] == str(winner.layout)
    gap = answer["iteration_s"] - answer["winner_iteration_s"]
    assert sum(answer["parts"].values()) == pytest.approx(gap, rel=1e-6)
    assert answer["binding_constraint"] == "time: " + max(
        answer["parts"], key=lambda name: answer["parts"][name]
    )
    assert answer["change"]["iteration_s"] < answer["iteration_s"]
    code, out, _ = run("explain", "x", *OWN.split())
    assert code == 0
    assert "Smallest change that helps: write " in out


def test_explain_of_the_winner_binds_nothing(run):
    run(*SEARCH, "--json", "--out", "x")
    winner = load_plan(Path("x")).entries[0].layout
    _, out, _ = run("explain", "x", winner, "--json")
    answer = json.loads(out)
    assert answer["parts"] == {}
    assert answer["binding_constraint"] == "none"
    assert answer["place"]["rank"] == 1


def test_explain_of_what_is_illegal_or_does_not_fit(run):
    run(*BIG, "--json", "--out", "x")
    _, out, _ = run("explain", "x", "tp8 pp7 mbs1 sp zero1", "--json")
    answer = json.loads(out)
    assert answer["binding_constraint"] == "rule world"
    assert answer["parts"] is None
    assert Layout.parse(answer["change"]["layout"]).pipeline_model_parallel_size in (4, 8, 1)
    _, out, _ = run("explain", "x", "tp2 pp8 mbs1 sp zero1", "--json")
    answer = json.loads(out)
    assert answer["fits_probability"] < 0.5
    assert answer["binding_constraint"].startswith("memory: ")
    assert answer["change"]["fits_probability"] >= 0.5
    _, out, _ = run("explain", "x", "tp2 pp8 mbs1 sp zero1")
    assert "It would not fit" in out


def test_explain_tells_shadow_prices_and_the_nearest_winner(run):
    run(*BIG, "--json", "--out", "x")
    _, out, _ = run("explain", "x", "tp8 pp8 mbs1 sp zero1 recompute=full", "--json")
    answer = json.loads(out)
    won = answer["to_win"]
    assert won["iteration_s"] <= answer["winner_iteration_s"] * 1.002
    assert won["fits_probability"] >= 0.5
    assert "recompute=full/uniform/1" in won["without"]
    prices = answer["shadow_prices"]
    assert set(prices) == {"memory", "job_memory", "rates"}
    assert prices["rates"]["arithmetic"] > 0.01
    for price in prices["memory"]:
        assert price["more_bytes"] > 0
        assert price["iteration_s"] < answer["iteration_s"]
    _, out, _ = run("explain", "x", "tp8 pp8 mbs1 sp zero1 recompute=full")
    assert "Nearest layout that would win: " in out
    assert "10% more would save: arithmetic" in out


def test_nodes_are_gpus_by_the_cluster(run):
    job = ("--model", "gpt-tiny", "--cluster", "dgx-h100", "--json")
    _, by_nodes, _ = run("search", *job, "--nodes", "2")
    _, by_gpus, _ = run("search", *job, "--gpus", "16")
    assert timeless(json.loads(by_nodes)) == timeless(json.loads(by_gpus))
    layout = ("estimate", "tp2 pp1 mbs1 sp zero1", *job)
    assert run(*layout, "--nodes", "2")[1] == run(*layout, "--gpus", "16")[1]
    for verb in (("search", *job), layout):
        code, _, err = run(*verb, "--nodes", "2", "--gpus", "16")
        assert code == 2
        assert "--nodes: given beside --gpus" in err


def test_a_serving_plan_is_not_explained_whatever_is_written_behind_it(run):
    job = (
        "--model",
        "llama-3.1-8b",
        "--gpus",
        "1",
        "--input-tokens",
        "10",
        "--output-tokens",
        "10",
    )
    assert run("infer", *job, "--out", "served")[0] == 0
    for words in ([], ["2"], ["tp8 pp2 mbs1"]):
        code, _, err = run("explain", "served", *words)
        assert code == 2
        assert "'serving' is not training" in err


def test_where_the_gpus_divide_badly_fewer_are_named(run):
    code, _, err = run("search", "--model", "gpt-175b", "--nodes", "125", "--json")
    assert code == 3
    assert "1,000 GPUs: use 960 and keep 5 nodes spare: tp" in err
    assert "would fit: --global-batch-size 1500" in err
    code, _, err = run("search", "--model", "llama-3.1-8b", "--gpus", "100")
    assert code == 3
    assert "100 GPUs: use 96 and keep 4 GPUs spare: tp" in err


def test_all_frameworks_give_the_plan_of_the_fastest(run):
    """Fastest of the frameworks one by one; the saved request names it."""
    names = ("megatron-core", "deepspeed", "fsdp2", "yafsdp")
    plans = {n: json.loads(run(*SEARCH, "--framework", n, "--json")[1]) for n in names}
    fastest = min(plans, key=lambda n: plans[n]["plan"][0]["iteration_s"])
    every = json.loads(run(*SEARCH, "--framework", "all", "--json")[1])
    assert every["request"]["framework"] == fastest
    assert timeless(every) == timeless(plans[fastest])
    _, out, _ = run(*SEARCH, "--framework", "all", "--out", "here")
    assert out.splitlines()[1].split()[0] == fastest
    assert {line.split()[0] for line in out.splitlines()[1 : len(names) + 1]} == set(names)
    high = plans[fastest]["plan"][0]["iteration_s_interval"][1]
    near = {n for n in names if plans[n]["plan"][0]["iteration_s_interval"][0] < high} - {fastest}
    (line,) = [line for line in out.splitlines() if line.startswith(f"{fastest}'s range overlaps")]
    assert {n for n in names if n in line} - {fastest} == near


@pytest.mark.parametrize(("text", "tokens"), [("15T", 15e12), ("0.3b", 3e8), ("2e6", 2e6)])
def test_tokens_are_read_as_they_are_written(run, text, tokens):
    code, out, _ = run(*SEARCH, "--tokens", text, "--json")
    assert code == 0
    assert json.loads(out)["request"]["tokens"] == tokens
