"""Junk in every file and argument a user can give: exit 2 with one message, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoparallel.cli import main

TINY = ("--model", "gpt-tiny", "--gpus", "2", "--cluster", "local-cpu")
FUZZ = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["${oc.env:HOME}", "_target_", "!!python/object", "1e999", "\0", "=", "tp8"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return stop.value.code, out, err

    return call


@pytest.fixture
def saved(run, tmp_path):
    """A run directory."""
    assert run("search", *TINY, "--json", "--out", tmp_path / "x")[0] == 0
    return tmp_path / "x"


def refused(code: int, out: str, err: str) -> None:
    assert (code, out) == (2, "")
    assert err.startswith("autoparallel: ")


@given(name=st.sampled_from(["request.yaml", "plan.json"]), cut=st.floats(0, 0.999))
@FUZZ
def test_a_cut_file_is_refused(run, saved, name, cut):
    whole = (saved / name).read_bytes()
    broken = saved.parent / "cut"
    broken.mkdir(exist_ok=True)
    (broken / "plan.json").write_bytes(whole[: int(len(whole) * cut)])
    if name == "plan.json":
        refused(*run("explain", broken, "tp1 pp1 mbs1 zero1"))
        refused(*run("export", broken))
        return
    text = whole[: int(len(whole) * cut)]
    (broken / name).write_bytes(text)
    code, out, err = run("search", "--from", broken / name, "--json")
    if code:  # a YAML cut between two keys may lack only what has a default
        refused(code, out, err)


@given(data=st.data())
@FUZZ
def test_one_wrong_value_in_a_request_is_refused_or_harmless(run, saved, data):
    content = yaml.safe_load((saved / "request.yaml").read_text())
    place, key = content, data.draw(st.sampled_from(sorted(content)))
    if isinstance(content[key], dict) and content[key] and data.draw(st.booleans()):
        place, key = content[key], data.draw(st.sampled_from(sorted(content[key])))
    place[key] = data.draw(VALUES)
    (saved / "odd.yaml").write_text(yaml.safe_dump(content, allow_unicode=False))
    code, out, err = run("search", "--from", saved / "odd.yaml", "--json")
    if code not in (0, 3):
        refused(code, out, err)
        assert err.count("\n") == 1


@given(data=st.data())
@FUZZ
def test_one_wrong_value_in_a_plan_is_refused_or_harmless(run, saved, data):
    content = json.loads((saved / "plan.json").read_text())
    place, key = content, data.draw(st.sampled_from(sorted(content)))
    if key == "plan" and data.draw(st.booleans()):
        place = content["plan"][0]
        key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(VALUES)
    (saved / "odd.json").write_text(json.dumps(content))
    code, out, err = run("explain", saved / "odd.json", "tp1 pp1 mbs1 zero1", "--json")
    if code not in (0, 3):
        refused(code, out, err)


@given(
    content=st.dictionaries(
        st.sampled_from(
            ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
             "num_key_value_heads", "intermediate_size", "n_routed_experts", "head_dim"]
        )
        | st.text(max_size=6),
        VALUES | st.sampled_from(["llama", "mixtral", "deepseek_v3", 8, 64, 128]),
        max_size=10,
    )
)  # fmt: skip
@FUZZ
def test_a_junk_model_config_is_refused_or_searched(run, content, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    code, out, err = run(
        "search", "--model", path, "--gpus", "1", "--global-batch-size", "4", "--seq-length", "64",
        "--json",
    )  # fmt: skip
    if code not in (0, 3):
        refused(code, out, err)


WORDS = st.sampled_from(
    ["tp1", "tp2", "pp1", "pp2", "vpp2", "cp2", "ep2", "mbs1", "mbs0", "sp", "zero1", "zero9",
     "recompute=full/block/9", "recompute=", "stages=1,2*9999", "stages=2,2", "offload=opt0.5",
     "prec=fp8", "graph=full", "overlap=tp+moe", "sched=zb1p", "fw=fsdp2", "shard=3", "group7"]
)  # fmt: skip


@given(words=st.lists(WORDS | st.text(max_size=8), min_size=1, max_size=8))
@FUZZ
def test_any_layout_is_estimated_or_refused(run, words):
    code, out, err = run("estimate", "--layout", " ".join(words), *TINY, "--json")
    if code:
        assert code == 2
        assert out == ""
        assert err.startswith("autoparallel: ")
        return
    answer = json.loads(out)
    assert answer["legal"] == (not answer["illegal_reasons"]) == (answer["iteration_s"] is not None)


OVERRIDES = st.sampled_from(
    ["space.micro_batch_size=[1]", "space.zero_stage=[0,5]", "workload.seq_length=63",
     "model.num_layers=-1", "cluster.gpus_per_node=0", "gpu.memory_gib=0.01", "space=full",
     "space.x=1", "~space.zero_stage", "+space.y=2", "workload.tokens=nan",
     "model.num_layers=${oc.env:HOME}", "gpu.memory_gib=nan", "model._target_=os.system",
     "space.recompute=[a,b]", "workload={}", "cluster=dgx-h100"]
)  # fmt: skip


@given(words=st.lists(OVERRIDES, min_size=1, max_size=3))
@FUZZ
def test_any_override_is_used_or_refused(run, words):
    code, out, err = run("search", "--model", "gpt-tiny", "--gpus", "2", "--json", *words)
    if code not in (0, 3):
        refused(code, out, err)
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "a: &x [*x]", "- \xff", "!!python/object:os.x {}"]
)
def test_a_request_that_is_none_is_refused(run, tmp_path, content):
    path = tmp_path / "request.yaml"
    path.write_bytes(content.encode("latin-1"))
    code, out, err = run("search", "--from", path)
    refused(code, out, err)
    assert str(Path(path).name) in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("search", *TINY[:2], "--gpus", "1e3"), "--gpus: '1e3' should be a valid integer"),
        (("search", *TINY, "--site", "slurm"), "no such option --site; write site=NAME"),
        (("search", "--from", "x"), "file: 'x' is a folder; name a file in it"),
        (("search", "--from", "x/plan.json"), "give the request.yaml that stands beside it"),
        (("search", "--from", "none.yaml"), "is not an existing regular file; check its path"),
        (("export", "nowhere"), "run: 'nowhere' is not there; give the folder that"),
        (("export", "x/launch"), "run: 'x/launch' has no plan.json; give the folder that"),
        (
            ("export", "x", "--rank", "99"),
            "--rank: 99 is not in a plan of 10 layouts; give 1 to 10",
        ),
        (("regress", "pin", "x", "--to", "a.lock.yaml", "--rank", "99"), "layouts; give 1 to 10"),
    ],
)
def test_a_slip_of_the_hand_is_told_what_to_try(run, saved, words, says):
    code, _, err = run(*words)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
