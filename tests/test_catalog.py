"""The catalog: what it ships, where every number is from, and what it refuses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel import catalog
from autoparallel.catalog_schema import GENERATIONS, MODEL_REQUIRED, PEAKS, aliases_of
from autoparallel.errors import CatalogError
from autoparallel.hardware import Cluster, Gpu
from autoparallel.layout import PRECISIONS
from autoparallel.model import Model, parameters
from autoparallel.strict_yaml import MAX_FILE_BYTES, read_yaml
from autoparallel.units import GB, GIB, TERA, US

LOADERS: dict[str, Callable[..., Model | Gpu | Cluster]] = {
    "model": catalog.model,
    "gpu": catalog.gpu,
    "cluster": catalog.cluster,
}
EVERY = [(group, name) for group in LOADERS for name in catalog.names(group)]

TINY_MODEL = """\
num_layers: 2
hidden_size: 64
num_attention_heads: 4
vocab_size: 128
"""
EXPERTS = "num_moe_experts: 8\nmoe_router_topk: 2\nmoe_ffn_hidden_size: 64\n"
TINY_GPU = """\
generation: hopper
memory_gib: 80
memory_bandwidth_tb_per_s: 3.0
peak_tflops: {bf16: 1000}
streaming_multiprocessors: 132
tdp_w: 700
"""
TINY_CLUSTER = """\
gpu: a100-sxm-80gb
gpus_per_node: 8
intra_link: {bandwidth_gb_per_s: 300, latency_us: 2}
inter_link: {bandwidth_gb_per_s: 25, latency_us: 5}
"""


def _file(folder: Path, text: str | bytes, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# What is shipped


def test_ids_of_the_contract_are_there() -> None:
    models = "gpt-175b llama-3.1-405b mixtral-8x7b qwen3-235b-a22b deepseek-v3 gpt-tiny"
    clusters = (
        "dgx-a100-40gb dgx-a100-80gb dgx-h100 dgx-h200 dgx-b200 dgx-b300 gb200-nvl72 "
        "gb300-nvl72 local-cpu"
    )
    gpus = (
        "a100-sxm-80gb a100-sxm-40gb h100-sxm-80gb h100-96gb-hbm2e-500w h200-sxm-141gb "
        "b200-sxm-180gb b300-sxm-288gb gb200-nvl72 gb300-nvl72 v100-sxm-32gb v100-sxm-16gb"
    )
    assert set(models.split()) <= set(catalog.names("model"))
    assert set(clusters.split()) <= set(catalog.names("cluster"))
    assert set(gpus.split()) <= set(catalog.names("gpu"))


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_entry_loads_under_its_own_name(group: str, name: str) -> None:
    assert LOADERS[group](name).name == name


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_number_has_a_source(group: str, name: str) -> None:
    numbers = catalog.sources(group, name)
    assert numbers
    assert [field for field, (_, source) in numbers.items() if not source] == []
    assert LOADERS[group](name).source


@pytest.mark.parametrize("group", LOADERS)
def test_no_name_or_alias_stands_twice(group: str) -> None:
    seen: list[str] = list(catalog.names(group))
    for name in catalog.names(group):
        seen += [alias.lower() for alias in aliases_of(catalog.entry(group, name), name)]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_a_file_is_also_plain_yaml_for_hydra(group: str, name: str) -> None:
    path = catalog.data_dir() / "search_spaces" / group / f"{name}.yaml"
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    ours = read_yaml(path)
    assert plain.keys() == ours.keys()


@pytest.mark.parametrize("name", catalog.names("gpu"))
def test_gpu_numbers_are_plausible_si(name: str) -> None:
    gpu = catalog.gpu(name)
    assert gpu.generation in GENERATIONS
    assert gpu.peak_flops_per_s.keys() <= set(PEAKS)
    assert set(PRECISIONS) - set(PEAKS) == {"fp8-tensorwise", "fp8-blockwise"}
    assert GIB <= gpu.memory_bytes <= 300 * GIB
    assert 1e9 <= gpu.memory_bandwidth_bytes_per_s <= 1e13
    assert gpu.measured_matmul_flops_per_s < gpu.peak_flops_per_s.get("bf16", 1e20)


@pytest.mark.parametrize("name", catalog.names("cluster"))
def test_cluster_numbers_are_plausible_si(name: str) -> None:
    cluster = catalog.cluster(name)
    assert cluster.nvlink_domain_gpus >= cluster.gpus_per_node >= 1
    assert cluster.intra_link.bandwidth_bytes_per_s >= cluster.inter_link.bandwidth_bytes_per_s
    assert 0 < cluster.intra_link.latency_s <= cluster.inter_link.latency_s < 1e-3
    assert cluster.intra_link.source
    assert cluster.inter_link.source


@pytest.mark.parametrize("name", catalog.names("model"))
def test_every_model_has_a_training_block(name: str) -> None:
    training = catalog.model(name).training
    assert training is not None
    assert training.source
    assert training.tokens >= training.global_batch_size * training.seq_length


@pytest.mark.parametrize("name", catalog.names("cluster"))
def test_a_price_carries_its_date(name: str) -> None:
    price = catalog.cluster(name).usd_per_gpu_hour
    if price is not None:
        assert 0 < price < 100
        assert re.search(r"20\d\d-\d\d", catalog.sources("cluster", name)["usd_per_gpu_hour"][1])


def test_values_are_converted_once() -> None:
    gpu = catalog.gpu("a100-sxm-80gb")
    assert gpu.memory_bytes == 79.15 * GIB
    assert gpu.peak_flops_per_s == {"bf16": 312 * TERA, "fp16": 312 * TERA}
    assert gpu.memory_bandwidth_bytes_per_s == 2.039 * TERA
    cluster = catalog.cluster("dgx-h100")
    assert cluster.gpu == catalog.gpu("h100-sxm-80gb")
    assert cluster.intra_link.bandwidth_bytes_per_s == 450 * GB
    assert cluster.inter_link.bandwidth_bytes_per_s == 50 * GB
    assert cluster.intra_link.latency_s == pytest.approx(1.9 * US)


def test_defaults_of_the_contract() -> None:
    training = catalog.model("gpt-175b").training
    assert training is not None
    batch = (training.global_batch_size, training.seq_length, training.tokens)
    assert batch == (1536, 2048, 300e9)
    rack = catalog.cluster("gb200-nvl72")
    assert (rack.gpus_per_node, rack.nvlink_domain_gpus) == (4, 72)


def test_local_cpu_has_this_machines_cores() -> None:
    assert catalog.cluster("local-cpu").gpus_per_node == os.cpu_count()


@pytest.mark.parametrize(
    ("group", "alias", "name"),
    [
        ("model", "gpt3-175b", "gpt-175b"),
        ("model", "GPT3-175B", "gpt-175b"),
        ("gpu", "h100", "h100-sxm-80gb"),
        ("cluster", "coreweave-h100", "hgx-h100-cloud"),
    ],
)
def test_aliases(group: str, alias: str, name: str) -> None:
    assert LOADERS[group](alias) == LOADERS[group](name)


@pytest.mark.parametrize("name", ["deepseek-r1", "DeepSeek-R1"])
def test_a_name_with_weights_of_its_own_is_the_same_model_from_another_source(name: str) -> None:
    plain, own = catalog.model("deepseek-v3"), catalog.model(name)
    assert replace(own, source="") == replace(plain, source="")
    assert own.source.startswith("https://huggingface.co/deepseek-ai/DeepSeek-R1, ")
    assert plain.source in own.source


def test_only_the_file_asked_for_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def spy(path: Path) -> dict[str, object]:
        read.append(path.stem)
        return read_yaml(path)

    monkeypatch.setattr(catalog, "read_yaml", spy)
    catalog.cluster("dgx-h100")
    assert read == ["dgx-h100", "h100-sxm-80gb"]


# Where it looks


def test_data_dir_of_a_checkout() -> None:
    assert (catalog.data_dir() / "pyproject.toml").is_file()


def test_data_dir_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "autoparallel"
    (package / "_data" / "search_spaces" / "model").mkdir(parents=True)
    _file(package / "_data" / "search_spaces" / "model", TINY_MODEL)
    monkeypatch.setattr(catalog, "__file__", str(package / "catalog.py"))
    assert catalog.data_dir() == package / "_data"
    assert catalog.names("model") == ("mine",)


def test_data_dir_missing_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "__file__", str(tmp_path / "autoparallel" / "catalog.py"))
    with pytest.raises(CatalogError, match="reinstall"):
        catalog.data_dir()


def test_config_dir_goes_in_front(tmp_path: Path) -> None:
    (tmp_path / "gpu").mkdir()
    _file(tmp_path / "gpu", TINY_GPU, "a100-sxm-80gb.yaml")
    _file(tmp_path / "gpu", TINY_GPU + "aliases: [own-gpu]\n", "other.yaml")
    assert catalog.gpu("a100-sxm-80gb", tmp_path).memory_bytes == 80 * GIB
    assert catalog.cluster("dgx-a100-80gb", tmp_path).gpu.memory_bytes == 80 * GIB
    assert catalog.gpu("OWN-gpu", tmp_path).name == "other"
    assert set(catalog.names("gpu", tmp_path)) == {*catalog.names("gpu"), "other"}
    assert catalog.gpu("h100", tmp_path) == catalog.gpu("h100-sxm-80gb")


def test_config_dir_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="config_dir"):
        catalog.names("gpu", tmp_path / "nowhere")


def test_a_path_works_for_every_group(tmp_path: Path) -> None:
    model = catalog.model(_file(tmp_path, TINY_MODEL, "m.yaml"))
    assert (model.name, model.ffn_hidden_size, model.kv_channels) == ("m", 256, 16)
    assert model.num_query_groups == 4
    assert catalog.gpu(str(_file(tmp_path, TINY_GPU, "g.yml"))).name == "g"
    cluster = catalog.cluster(_file(tmp_path, TINY_CLUSTER, "c.yaml"))
    assert (cluster.nvlink_domain_gpus, cluster.usd_per_gpu_hour) == (8, None)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark_and_line_ends(tmp_path: Path, newline: str, mark: bytes) -> None:
    text = TINY_MODEL.replace("\n", newline).encode()
    assert catalog.model(_file(tmp_path, mark + text)).num_layers == 2


# What it refuses


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(CatalogError, match="did you mean 'gpt-175b'"):
        catalog.model("gpt-175")
    with pytest.raises(CatalogError, match="did you mean 'cluster'"):
        catalog.names("clusters")


@pytest.mark.parametrize("name", ["", "..", "-x", "a b", "x" * 101, "a\0b", "gpté"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(CatalogError, match="is not a name"):
        catalog.model(name)


@pytest.mark.parametrize("path", ["/no/such.yaml", "./gone.json", "/dev/zero", "a\0/b.yaml", "/"])
def test_a_path_that_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(CatalogError):
        catalog.model(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("num_layer: 3", "did you mean 'num_layers'"),
        ("trainnig: {tokens: 1}", "did you mean 'training'"),
        ("num_layers: 3", "stands twice"),
        ("kv_channels: 3.5", "is not an integer"),
        ("kv_channels: yes", "is not an integer"),
        ("kv_channels: true", "is not an integer"),
        ("kv_channels: null", "is not an integer"),
        ("kv_channels: -1", "is not in 1 to"),
        ("kv_channels: 1000000000", "is not in 1 to"),
        ("kv_channels: " + "9" * 5000, "not YAML"),
        ("rotary_base: .nan", "is not a number"),
        ("rotary_base: .inf", "is not a number"),
        ("rotary_base: 1e999", "finite"),
        ("rotary_base: '10000'", "is not a number; write it alone, without quotes or a unit"),
        ("qk_layernorm: 1", "is not true or false"),
        ("qk_layernorm: 'true'", "is not true or false"),
        ("activation: selu", "did you mean 'silu'"),
        ("activation: ${oc.env:HOME}", "not resolved"),
        ("_target_: os.system", "data, not code"),
        ("activation: !!python/object/apply:os.system ['true']", "tag"),
        ("activation: !x silu", "tag"),
        ("activation: &a silu", "anchors"),
        ("num_query_groups: 3", "does not divide"),
        ("moe_router_topk: 2", "needs num_moe_experts"),
        ("num_moe_experts: 4", "moe_router_topk"),
        ("moe_router_num_groups: 2", "needs num_moe_experts"),
        (EXPERTS + "moe_router_num_groups: 3", "does not divide num_moe_experts 8"),
        (EXPERTS + "moe_router_num_groups: 4", "moe_router_group_topk: 0 is not in 1 to 2"),
        (
            EXPERTS + "moe_router_num_groups: 4\nmoe_router_group_topk: 3",
            "moe_router_group_topk: 3 is not in 1 to 2",
        ),
        (EXPERTS + "moe_router_group_topk: 1", "moe_router_group_topk: 1 is not in 0 to 0"),
        ("q_lora_rank: 4", "needs kv_lora_rank"),
        ("kv_lora_rank: 4", "qk_head_dim"),
        ("training: 5", "is not a mapping"),
        ("training: {seq_length: 5}", "global_batch_size: missing"),
        ("training: {seq_len: 5}", "did you mean 'seq_length'"),
        ("sources: {numlayers: x}", "source of no field"),
        ("aliases: gpt", "list of texts"),
        ("checkpoints: gpt", "is not a mapping"),
        ("checkpoints: {own: DeepSeek-R1}", "is not a Hugging Face id; write it as"),
        ("checkpoints: {own: 'a/b; rm'}", "is not a Hugging Face id"),
        ("? [1, 2]\n: 3", "not plain text"),
        ("a: {b: {c: {d: {e: {f: {g: {h: {i: {j: {k: {l: {m: 1}}}}}}}}}}}}", "deeper"),
        ("- 3", "not YAML"),
        ("---\nx: 1", "not YAML"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = _file(tmp_path, TINY_MODEL + line + "\n")
    with pytest.raises(CatalogError, match=says) as caught:
        catalog.model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_missing_fields_are_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="vocab_size: missing"):
        catalog.model(_file(tmp_path, TINY_MODEL.replace("vocab_size: 128\n", "")))
    with pytest.raises(CatalogError, match="neither bf16 nor fp16"):
        catalog.gpu(_file(tmp_path, TINY_GPU.replace("bf16", "fp8")))
    with pytest.raises(CatalogError, match=r"intra_link\.latency_us: missing"):
        catalog.cluster(_file(tmp_path, TINY_CLUSTER.replace(", latency_us: 2", "")))
    with pytest.raises(CatalogError, match="name of a GPU"):
        catalog.cluster(_file(tmp_path, TINY_CLUSTER.replace("gpu: a100-sxm-80gb\n", "")))
    with pytest.raises(CatalogError, match="did you mean 'a100-sxm-80gb'"):
        catalog.cluster(_file(tmp_path, TINY_CLUSTER.replace("sxm-80gb", "sxm-81gb")))
    with pytest.raises(CatalogError, match="multiple nor a divisor"):
        catalog.cluster(_file(tmp_path, TINY_CLUSTER + "nvlink_domain_gpus: 12\n"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1, 2]",
        b"42",
        b"\xff\xfe\x00",
        b"a: [",
        b"[" * 100_000,
        b"x: " + b"y" * MAX_FILE_BYTES,
        b"a: &a [x]\nb: *a\n",
        b"\x00",
    ],
)
def test_a_file_that_is_no_entry_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CatalogError):
        catalog.model(_file(tmp_path, content))


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(CatalogError, match="anchors and aliases"):
        catalog.model(_file(tmp_path, "\n".join(rows)))


def test_numbers_in_scientific_form_are_numbers(tmp_path: Path) -> None:
    training = "training: {global_batch_size: 8, seq_length: 16, tokens: 300e9}\n"
    model = catalog.model(_file(tmp_path, TINY_MODEL + training))
    assert model.training is not None
    assert model.training.tokens == 300e9


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_a_record_or_a_catalog_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = _file(tmp_path_factory.getbasetemp(), content, "junk.yaml")
    for load in LOADERS.values():
        with pytest.raises(CatalogError):
            load(path)


_LINES = st.sampled_from(
    [
        *MODEL_REQUIRED,
        "kv_channels",
        "kv_lora_rank",
        "num_moe_experts",
        "moe_router_topk",
        "activation",
        "aliases",
        "checkpoints",
        "sources",
        "training",
    ]
)
_VALUES = st.sampled_from(
    ["1", "2", "64", "0", "-1", "1e3", "x", "null", "true", "[1]", "{a: 1}", "'2'", "1e400", "~"]
)


@settings(deadline=None)
@given(st.dictionaries(_LINES, _VALUES))
def test_any_mapping_gives_a_model_or_a_catalog_error(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, str]
) -> None:
    text = "".join(f"{key}: {value}\n" for key, value in content.items())
    path = _file(tmp_path_factory.getbasetemp(), text, "junk2.yaml")
    try:
        model = catalog.model(path)
    except CatalogError:
        return
    assert parameters(model.shape(8)) > 0


@pytest.mark.parametrize(
    ("base", "name", "positions"),
    [
        ("kimi-k2", "kimi-k2-thinking", 262144),
        ("qwen2.5-7b", "deepseek-r1-distill-qwen-7b", 131072),
        ("qwen2.5-14b", "deepseek-r1-distill-qwen-14b", 131072),
        ("qwen2.5-32b", "deepseek-r1-distill-qwen-32b", 131072),
        ("qwen2.5-32b", "qwq-32b", 40960),
        ("mistral-small-24b", "mistral-small-3.1-24b", 131072),
        ("mistral-small-24b", "mistral-small-3.2-24b", 131072),
    ],
)
def test_a_model_trained_on_for_longer_sequences_keeps_its_dimensions(
    base: str, name: str, positions: int
) -> None:
    plain, longer = catalog.model(base), catalog.model(name)
    assert plain.max_position_embeddings < longer.max_position_embeddings == positions
    assert astuple(longer.shape(4096)) == astuple(plain.shape(4096))
