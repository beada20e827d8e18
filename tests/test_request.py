from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoparallel import catalog
from autoparallel.errors import AutoparallelError, ConfigError
from autoparallel.request import OBJECTIVES, TrainingRequest, training_request
from autoparallel.request.compose import GROUPS, compose_with_hydra, composed, root

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1408,
    "vocab_size": 32000,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.fixture
def hf_config(tmp_path: Path) -> Path:
    path = tmp_path / "my-llama" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(LLAMA))
    return path


def request_of(own_dir: Path, **kwargs) -> TrainingRequest:
    return training_request(
        **{"model": "gpt-175b", "num_gpus": 1024, "config_dir": own_dir, **kwargs}
    )


def test_defaults_are_the_contract_and_are_all_said():
    request = training_request(model="gpt-175b", num_gpus=1024)
    assert request.cluster.name == "dgx-h100"
    assert (request.framework, request.precision) == ("megatron-core", "bf16")
    assert (request.global_batch_size, request.seq_length, request.tokens) == (1536, 2048, 300e9)
    assert (request.space_name, request.objective) == ("default", OBJECTIVES[0])
    assert not request.allow_numerics
    assert request.assumptions == (
        "cluster dgx-h100",
        "framework megatron-core",
        "precision bf16",
        "flash attention",
        "fp32 gradient reduction",
        "space default",
        "global_batch_size 1536 of gpt-175b",
        "seq_length 2048 of gpt-175b",
        "tokens 3e+11 of gpt-175b",
    )


def test_what_is_said_is_not_listed_as_assumed(own_dir):
    request = request_of(
        own_dir,
        cluster="dgx-a100-80gb",
        framework="megatron-core",
        global_batch_size=512,
        space="small",
        overrides=["precision=fp16", "workload.tokens=1e9"],
    )
    assert request.assumptions == (
        "flash attention",
        "fp32 gradient reduction",
        "seq_length 2048 of gpt-175b",
    )
    assert (request.precision, request.tokens) == ("fp16", 1e9)


@pytest.mark.parametrize("model", catalog.names("model"))
def test_every_catalog_model_makes_a_request(own_dir, model):
    request = request_of(own_dir, model=model)
    assert request.model.name == model
    assert request.seq_length >= 1


@pytest.mark.parametrize("cluster", catalog.names("cluster"))
def test_every_cluster_makes_a_request(own_dir, cluster):
    known = catalog.cluster(cluster)
    precision = next(iter(set(known.gpu.peak_flops_per_s) & {"bf16", "fp16"}))
    request = request_of(own_dir, cluster=cluster, num_gpus=1, precision=precision)
    assert request.cluster == known


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"model": "deepseek-v3", "num_gpus": 2048, "precision": "fp8", "cluster": "dgx-h100"},
        {"gpu": "a100-sxm-80gb", "baseline": "tp8 pp8 mbs1 zero1", "allow_numerics": True},
        {"tokens": 1.1e13, "objective": "cost_usd", "overrides": ["cluster.usd_per_gpu_hour=2.5"]},
        {"overrides": ["space.micro_batch_size=[1,2]", "model.norm_epsilon=1e-07"]},
        {"overrides": ["site=slurm", "site.environment.NCCL_DEBUG='no: \"x\"'"]},
        {"overrides": ["site.image='1e5'", "site.partition='true'", "site.account='null'"]},
    ],
)
def test_saved_request_is_the_same_request(own_dir, tmp_path, kwargs):
    request = request_of(own_dir, **kwargs)
    request.write_yaml(tmp_path / "request.yaml")
    assert TrainingRequest.from_yaml(tmp_path / "request.yaml") == request


@given(
    gpus=st.integers(1, 10**6),
    batch=st.integers(1, 10**8),
    tokens=st.none() | st.floats(1, 1e18),
    text=st.text(max_size=50).filter(str.isprintable),
)
@settings(max_examples=60, deadline=None)
def test_any_values_round_trip(gpus, batch, tokens, text):
    text = text.replace("${", "")
    request = replace(
        REQUEST, num_gpus=gpus, global_batch_size=batch, tokens=tokens, assumptions=(text,)
    )
    again = TrainingRequest.from_mapping(request.to_mapping())
    assert again == request
    assert json.loads(json.dumps(request.to_mapping())) == request.to_mapping()


REQUEST = training_request(model="gpt-tiny", num_gpus=8)


def test_a_bare_config_needs_a_batch_and_caps_the_sequence(own_dir, hf_config):
    with pytest.raises(ConfigError, match=r"global_batch_size: .*give --global-batch-size"):
        request_of(own_dir, model=hf_config)
    request = request_of(own_dir, model=hf_config, global_batch_size=64)
    assert (request.model.num_layers, request.seq_length, request.tokens) == (4, 8192, None)
    assert "seq_length 8192 of my-llama's maximum 131072" in request.assumptions
    longer = request_of(own_dir, model=hf_config, global_batch_size=64, seq_length=32768)
    assert longer.seq_length == 32768


def test_overrides_reach_into_a_hugging_face_model(own_dir, hf_config):
    request = request_of(
        own_dir, model=hf_config, global_batch_size=64, overrides=["model.num_layers=8"]
    )
    plain = request_of(own_dir, model=hf_config, global_batch_size=64)
    assert request.model.num_layers == 8
    assert replace(request.model, num_layers=4, source="") == replace(plain.model, source="")


def test_overrides_change_entries_in_their_own_units_and_say_so(own_dir):
    request = request_of(
        own_dir,
        overrides=[
            "cluster.inter_link.bandwidth_gb_per_s=40",
            "gpu.memory_gib=90",
            "space.tensor_model_parallel_size=[4,8]",
            "workload.seq_length=4096",
        ],
    )
    plain = request_of(own_dir)
    assert request.cluster.inter_link.bandwidth_bytes_per_s == 40e9
    assert request.cluster.intra_link == plain.cluster.intra_link
    assert request.cluster.gpu.memory_bytes == 90 * 1024**3
    assert request.cluster.gpu.tdp_w == plain.cluster.gpu.tdp_w
    assert "given by the override gpu.memory_gib" in request.cluster.gpu.source
    assert "given by the override" in request.cluster.inter_link.source
    assert request.space["tensor_model_parallel_size"] == [4, 8]
    assert request.space["micro_batch_size"] == plain.space["micro_batch_size"]
    assert request.seq_length == 4096


def test_another_peak_is_reached_as_far_as_the_one_measured(own_dir):
    def gpu(*overrides):
        return request_of(own_dir, overrides=list(overrides)).cluster.gpu

    plain = gpu()
    best = plain.measured_matmul_flops_per_s
    assert best > 0
    peak = 2 * plain.peak_flops_per_s["bf16"] / 1e12
    twice = gpu(f"gpu.peak_tflops.bf16={peak}")
    assert twice.measured_matmul_flops_per_s == pytest.approx(2 * best)
    own = gpu(f"gpu.peak_tflops.bf16={peak}", "gpu.measured_matmul_tflops=600")
    assert own.measured_matmul_flops_per_s == pytest.approx(600e12)
    assert gpu("gpu.memory_gib=90").measured_matmul_flops_per_s == best
    assert gpu("gpu.measured_matmul_tflops=0").measured_matmul_flops_per_s == 0


def test_names_are_picked_by_override_as_by_flag(own_dir):
    by_flag = request_of(own_dir, cluster="dgx-a100-80gb", framework="megatron-core")
    by_override = request_of(
        own_dir, overrides=["cluster=dgx-a100-80gb", "framework=megatron-core"]
    )
    assert replace(by_override, overrides=()) == by_flag
    sft = request_of(own_dir, overrides=["workload=sft"])
    assert (sft.global_batch_size, sft.seq_length) == (64, 4096)


def test_a_gpu_alone_picks_a_cluster_that_has_it(own_dir):
    assert request_of(own_dir, gpu="h100-sxm-80gb").cluster.name == "dgx-h100"
    assert request_of(own_dir, gpu="a100-sxm-80gb").cluster.name == "dgx-a100-80gb"
    other = request_of(own_dir, gpu="h200-sxm-141gb").cluster
    assert other.gpu.name == "h200-sxm-141gb"
    assert other == catalog.cluster(other.name)
    assert request_of(own_dir, overrides=["gpu=h200-sxm-141gb"]).cluster == other
    swapped = request_of(own_dir, gpu="h200-sxm-141gb", cluster="dgx-h100").cluster
    assert (swapped.name, swapped.gpu.name) == ("dgx-h100", "h200-sxm-141gb")


# ---- Hydra or not: the same result


@pytest.mark.parametrize("workload", catalog.names("workload"))
@pytest.mark.parametrize("site", catalog.names("site"))
def test_the_way_without_hydra_gives_what_hydra_gives(own_dir, workload, site):
    for space in catalog.names("space", own_dir):
        chosen = root(own_dir) | {"workload": workload, "site": site, "space": space}
        names = {g: chosen[g] for g in GROUPS}
        scalars = {k: chosen[k] for k in ("framework", "precision", "objective")}
        base = {"defaults": [*({g: n} for g, n in names.items()), "_self_"], **scalars}
        nodes = {
            g: {name: catalog.entry(g, name, own_dir) for name in catalog.names(g, own_dir)}
            for g in GROUPS
        }
        assert composed(chosen, {}, (), own_dir) == compose_with_hydra(base, nodes, [])


def test_a_users_entry_may_build_on_a_shipped_one(own_dir):
    (own_dir / "space" / "mine.yaml").write_text(
        "defaults: [small, _self_]\nmicro_batch_size: [4]\n"
    )
    request = request_of(own_dir, space="mine")
    assert request.space == {"tensor_model_parallel_size": [1, 2], "micro_batch_size": [4]}


def test_a_users_config_changes_what_is_chosen(own_dir):
    (own_dir / "config.yaml").write_text("cluster: dgx-a100-80gb\n")
    request = request_of(own_dir)
    assert (request.cluster.name, request.space_name) == ("dgx-a100-80gb", "default")


def test_a_hydra_application_around_us_is_left_alone(own_dir):
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    store = ConfigStore.instance()
    store.store(name="outer", node={"defaults": [{"space": "theirs"}]})
    store.store(group="space", name="theirs", node={"x": 1})
    with initialize(config_path=None, version_base="1.3"):
        request_of(own_dir, overrides=["workload.seq_length=4096"])
        assert compose("outer").space.x == 1
    assert not GlobalHydra.instance().is_initialized()


# ---- what is refused


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("workload.seq_lenght=1", ("seq_lenght", "'seq_length'")),
        ("model.num_layer=1", ("num_layer", "'num_layers'")),
        ("cluster.inter_link.bandwith_gb_per_s=1", ("bandwith", "'bandwidth_gb_per_s'")),
        ("site.enviroment.X=1", ("enviroment", "'environment'")),
        ("seq_length=1", ("workload.seq_length",)),
        ("wrokload.tokens=1", ("wrokload",)),
        ("cluster=dgx-h10", ("dgx-h10", "'dgx-h100'")),
        ("workload=pretran", ("pretran", "'pretrain'")),
        ("objective=iteration", ("objective", "'iteration_s'")),
        ("hydra.run.dir=/tmp", ("hydra",)),
        ("workload._target_=os.system", ("_target_",)),
        ("space._target_=os.system", ("_target_",)),
        ("+space.x={_target_:os.system}", ("_target_", "data")),
        ("workload.tokens=${oc.env:AUTOPARALLEL_SECRET}", ("${...}",)),
        ("space.x=${workload.tokens}", ("${...}",)),
        ("space.x=[1,2", ("space.x",)),
        ("space.x=1,2", ("space.x",)),
        ("workload=3", ("workload",)),
        ("~workload", ("workload",)),
        ("workload.tokens=inf", ("tokens", "inf")),
        ("workload.global_batch_size=0", ("global_batch_size", "0", "1 to")),
        ("workload.seq_length=2048.5", ("seq_length", "2048.5", "integer")),
        ("workload.seq_length=true", ("seq_length", "integer")),
        ("model.num_attention_heads=97", ("heads",)),
        ("cluster.gpus_per_node=3", ("gpus_per_node",)),
        ("gpu.memory_gib=-1", ("memory_gib", "-1")),
        ("site.mounts=x", ("mounts", "list")),
        ("site.environment={1a: x}", ("1a",)),
        ("cluster.gpu=h200-sxm-141gb", ("gpu=NAME",)),
        ("foo", ("'foo'", "KEY=VALUE")),
        ("=1", ("KEY=VALUE",)),
        ("a\nb=1", ("KEY=VALUE",)),
    ],
)
def test_a_bad_override_is_a_message(own_dir, override, words, monkeypatch):
    monkeypatch.setenv("AUTOPARALLEL_SECRET", "31337")
    with pytest.raises(ConfigError) as caught:
        request_of(own_dir, overrides=[override])
    for word in words:
        assert word in str(caught.value)
    assert "31337" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_gpus": 0}, ("num_gpus", "0")),
        ({"num_gpus": 1_000_001}, ("num_gpus", "1000001")),
        ({"num_gpus": 10**30}, ("num_gpus",)),
        ({"num_gpus": 8.5}, ("num_gpus", "8.5", "integer")),
        ({"global_batch_size": -1}, ("global_batch_size", "-1")),
        ({"seq_length": 0}, ("seq_length",)),
        ({"tokens": float("nan")}, ("tokens", "nan")),
        ({"tokens": float("inf")}, ("tokens",)),
        ({"precision": "fp8", "cluster": "dgx-a100-80gb"}, ("fp8", "a100-sxm-80gb", "bf16")),
        ({"objective": "cost"}, ("'cost_usd'",)),
        ({"objective": "cost_usd"}, ("price", "dgx-h100", "cluster.usd_per_gpu_hour")),
        ({"gpu": "h100-nvl-94gb"}, ("h100-nvl-94gb", "in no cluster", "--cluster")),
        ({"model": "gpt-17b"}, ("gpt-17b", "'gpt-175b'")),
        ({"cluster": "../../etc/passwd"}, ("passwd",)),
        ({"config_dir": "/nowhere/at/all"}, ("config_dir", "not a folder")),
        ({"config_dir": "a\0b"}, ("config_dir",)),
        ({"model": "m\udcfe.yaml"}, ("path", "not UTF-8")),
        ({"cluster": "c\udcfe.yaml"}, ("path", "not UTF-8")),
        ({"seq_length": 1, "overrides": ["workload.seq_length=2"]}, ("--seq-length", "leave one")),
        ({"overrides": ["workload.tokens=1", "workload.tokens=2"]}, ("twice",)),
        (
            {"cluster": "perlmutter", "num_gpus": 10**6, "overrides": ["cluster.max_gpus=100"]},
            ("100",),
        ),
    ],
)
def test_a_bad_value_is_a_message(own_dir, kwargs, words):
    with pytest.raises(ConfigError) as caught:
        request_of(own_dir, **kwargs)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "_target_: os.system\n",
        "x: {_target_: os.system}\n",
        "x: ${oc.env:HOME}\n",
        'x: "\\x24{oc.env:HOME}"\n',
        "defaults: ['${oc.env:HOME}']\n",
        "x: !!python/object/apply:os.system [id]\n",
        "a: &a [1]\nb: *a\n",
        "[" * 5000,
        "x: 1\nx: 2\n",
        "- 1\n",
        "x: \x07\n",
        "defaults: [../../../etc/passwd]\n",
        "defaults: 3\n",
        "defaults: [nowhere]\n",
    ],
)
@pytest.mark.parametrize("group", GROUPS)
def test_a_users_file_is_data(own_dir, group, text):
    folder = own_dir / group
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        request_of(own_dir, overrides=[f"{group}=mine"])
    assert os.environ["HOME"] not in str(caught.value).replace(str(own_dir), "")


def test_a_users_root_is_checked(own_dir):
    for text, word in (("clutser: x\n", "'cluster'"), ("defaults: [{model: x}]\n", "workload")):
        (own_dir / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=word):
            request_of(own_dir)


def test_a_changed_saved_request_is_refused(tmp_path):
    saved = REQUEST.to_mapping()
    for change, word in (
        ({"num_gpus": "8"}, "integer"),
        ({"num_gpu": 8}, "'num_gpus'"),
        ({"schema_version": 99}, "schema_version 1"),
        ({"model": None}, "mapping"),
        ({"model": saved["model"] | {"num_layers": 0}}, "num_layers"),
        ({"model": saved["model"] | {"num_query_groups": 3}}, "num_query_groups"),
        ({"cluster": saved["cluster"] | {"pue": float("nan")}}, "pue|finite"),
        ({"overrides": "x"}, "list"),
        ({"space": [1]}, "mapping"),
    ):
        with pytest.raises(ConfigError, match=word):
            TrainingRequest.from_mapping(saved | change)
    with pytest.raises(ConfigError, match="tokens: missing"):
        TrainingRequest.from_mapping({k: v for k, v in saved.items() if k != "tokens"})


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_junk_for_a_saved_request_is_a_message(tmp_path, content):
    path = tmp_path / "junk.yaml"
    path.write_bytes(content)
    with pytest.raises(AutoparallelError):
        TrainingRequest.from_yaml(path)


KEYS = st.sampled_from(
    [
        "workload.tokens",
        "space.x",
        "+space.y.z",
        "~space",
        "model.name",
        "cluster",
        "site.mounts",
        "gpu.peak_tflops",
        "cluster.gpu",
        "precision",
        "space.defaults",
        "workload@x",
        "model.training",
    ]
)


@given(
    st.lists(
        st.text(max_size=30) | st.builds("{}={}".format, KEYS, st.text(max_size=30)), max_size=3
    )
)
@settings(max_examples=150, deadline=None)
def test_junk_overrides_are_a_message_or_a_request(overrides):
    with contextlib.suppress(ConfigError):
        request = training_request(model="gpt-tiny", num_gpus=8, overrides=overrides)
        saved = request.to_mapping()
        assert TrainingRequest.from_mapping(saved) == request


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("time", "iteration_s"),
        ("cost", "cost_usd"),
        ("energy", "energy_kwh"),
        ("headroom", "memory_bytes"),
        ("energy_kwh", "energy_kwh"),
    ],
)
def test_objectives_have_short_words(word, name):
    price = ["cluster.usd_per_gpu_hour=2.5"]
    by_flag = training_request(model="gpt-tiny", num_gpus=8, objective=word, overrides=price)
    by_key = training_request(model="gpt-tiny", num_gpus=8, overrides=[*price, f"objective={word}"])
    assert by_flag.objective == by_key.objective == name
    assert TrainingRequest.from_mapping(by_flag.to_mapping()) == by_flag
