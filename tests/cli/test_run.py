"""A run directory: what `search --out` writes and `export` reads; the ranking is a given plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autoparallel.cli import main, search
from autoparallel.layout import Layout
from autoparallel.plan import Plan, PlanEntry, Provenance, load_plan
from autoparallel.request import TrainingRequest

LAYOUTS = ("tp8 pp8 vpp3 mbs1 sp zero1", "tp4 pp8 mbs1 sp zero1")
SEARCH = ("search", "--model", "gpt-175b", "--gpus", "1024")


def plan_of(request: TrainingRequest, layouts=LAYOUTS) -> Plan:
    entries = tuple(
        PlanEntry(
            rank=rank,
            layout=Layout.parse(text),
            data_parallel_size=16,
            num_micro_batches=96,
            iteration_s=10.0 + rank,
            iteration_s_interval=(9.0, 14.0),
            tokens_per_s_per_gpu=280.0,
            model_flops_utilization=0.4,
            memory_bytes=6e10,
            memory_bytes_interval=(5e10, 7e10),
            fits_probability=0.98,
            parts={"compute_s": 10.0 + rank},
            memory_parts={"weights_bytes": 6e10},
        )
        for rank, text in enumerate(layouts, start=1)
    )
    return Plan(
        request=request.to_mapping(),
        provenance=Provenance(versions={}),
        considered=10,
        legal=4,
        evaluated=4,
        feasible=len(entries),
        pruned={"heads": 6, "memory": 4 - len(entries)},
        search_s=0.1,
        entries=entries,
    )


@pytest.fixture(autouse=True)
def ranked(monkeypatch):
    monkeypatch.setattr(search, "_ranked_plan", lambda request, top: plan_of(request))


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def test_json_without_out_writes_nothing(run, tmp_path):
    code, out, _ = run(*SEARCH, "--json")
    assert code == 0
    assert json.loads(out)["plan"][0]["layout"] == LAYOUTS[0]
    assert list(tmp_path.iterdir()) == []


def test_out_holds_the_plan_byte_for_byte_the_request_and_launch_files(run, tmp_path):
    code, out, _ = run(*SEARCH, "--json", "--out", tmp_path / "x")
    assert code == 0
    assert (tmp_path / "x" / "plan.json").read_text() == out
    request = TrainingRequest.from_yaml(tmp_path / "x" / "request.yaml")
    assert request.to_mapping() == json.loads(out)["request"]
    arguments = (tmp_path / "x" / "launch" / "megatron-lm" / "args.txt").read_text().split("\n")
    place = arguments.index("--tensor-model-parallel-size")
    assert arguments[place + 1] == "8"


def test_without_json_a_run_folder_and_a_table(run, tmp_path):
    code, out, err = run(*SEARCH)
    (folder,) = (tmp_path / "runs").iterdir()
    assert code == 0
    assert folder.name.endswith("-gpt-175b-1024")
    assert str(folder.name) in err
    first, counts, _, best, second = out.splitlines()
    assert first.startswith("gpt-175b on 1024 x h100-sxm-80gb (dgx-h100)")
    assert counts.startswith("10 considered, 4 legal")
    assert best.split("\t")[:3] == ["1", LAYOUTS[0], "11.000"]
    assert second.split("\t")[1] == LAYOUTS[1]


def test_nothing_fits_is_exit_3_with_the_reasons(run, monkeypatch):
    monkeypatch.setattr(search, "_ranked_plan", lambda request, top: plan_of(request, ()))
    code, out, err = run(*SEARCH, "--json")
    assert code == 3
    assert json.loads(out)["plan"] == []
    assert "heads 6, memory 4" in err


def test_a_layout_megatron_cannot_launch_still_has_a_plan(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        search,
        "_ranked_plan",
        lambda request, top: plan_of(request, ["tp8 pp8 mbs1 zero1 fw=fsdp2"]),
    )
    code, _, err = run(*SEARCH, "--out", tmp_path / "x")
    assert code == 0
    assert "no launch files: framework: 'fsdp2'" in err
    assert load_plan(tmp_path / "x").entries


def test_export_writes_the_rank_asked_for_with_the_sites_settings(run, tmp_path):
    own = tmp_path / "own" / "site"
    own.mkdir(parents=True)
    (own / "ours.yaml").write_text(
        "data_path: ['0.5', /data/a, '0.5', /data/b]\nenvironment: {NCCL_DEBUG: INFO}\n"
    )
    run(*SEARCH, "--json", "--out", "x")
    code, out, _ = run(
        "export", "x", "--rank", "2", "--out", "y", "--site", "ours", "--config-dir", "own"
    )
    assert code == 0
    files = [Path(line) for line in out.splitlines()]
    arguments = files[0].read_text().split("\n")
    assert arguments[arguments.index("--tensor-model-parallel-size") + 1] == "4"
    assert "/data/b" in arguments
    assert "export NCCL_DEBUG=INFO" in files[1].read_text()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["export", "nowhere"], ("nowhere",)),
        (["export", "x", "--rank", "3"], ("--rank: 3", "2 layouts")),
        (["export", "x", "--site", "slrum"], ("'slrum'", "'slurm'")),
    ],
)
def test_bad_export_is_exit_2(run, argv, words):
    run(*SEARCH, "--json", "--out", "x")
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    for word in words:
        assert word in err


def test_an_unwritable_out_is_exit_2(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(*SEARCH, "--out", tmp_path / "file" / "x")
    assert code == 2
    assert "file" in err


def test_replaced_folders_follow_from(run, tmp_path):
    run(*SEARCH, "--json", "--out", "x")
    (tmp_path / "mine").mkdir()
    code, out, _ = run("search", "--from", "x/request.yaml", "--config-dir", "mine", "--json")
    saved = TrainingRequest.from_yaml(tmp_path / "x" / "request.yaml")
    moved = replace(saved, config_dir=str(tmp_path / "mine"))
    assert code == 0
    assert json.loads(out)["request"] == moved.to_mapping()
