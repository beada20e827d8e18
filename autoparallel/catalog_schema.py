"""What a catalog file may say, and how it becomes a record.

One table of rules a group: Megatron's field names for models, human units for GPUs and clusters
(GiB, TB/s, TFLOPS, GB/s per GPU one direction, us), turned into SI here and nowhere else. Rules
between fields (query groups divide heads, an NVLink domain holds whole nodes) are functions below.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from autoparallel.errors import CatalogError
from autoparallel.hardware import Cluster, Gpu, Link
from autoparallel.model import Model, Training
from autoparallel.strict_yaml import Rule, catalog_error, read_fields, submapping, text_list
from autoparallel.units import GB, GIB, TERA, US

GENERATIONS = (
    "volta",
    "ampere",
    "ada",
    "hopper",
    "blackwell",
    "blackwell-rtx",
    "cdna2",
    "cdna3",
    "cpu",
)
"""Of GPUs, relatives beside each other: a profile is borrowed of the nearest."""
PEAKS = ("fp32", "bf16", "fp16", "fp8", "mxfp8", "nvfp4")
ACTIVATIONS = ("silu", "gelu", "relu", "squared_relu", "quick_gelu")
POSITIONS = ("rope", "learned_absolute", "alibi", "none")
EVERYTHING = "*"
"""Key of `sources` that covers every number no other key covers."""

_COUNT = Rule(kind=int, least=1, most=1e6)
_OPTIONAL = Rule(kind=int, most=1e6)
_FLAG = Rule(kind=bool)

MODEL_RULES: dict[str, Rule] = {
    "num_layers": Rule(kind=int, least=1, most=10_000),
    "hidden_size": _COUNT,
    "num_attention_heads": Rule(kind=int, least=1, most=100_000),
    "num_query_groups": Rule(kind=int, least=1, most=100_000),
    "ffn_hidden_size": Rule(kind=int, least=1, most=1e7),
    "vocab_size": Rule(kind=int, least=1, most=1e7),
    "kv_channels": Rule(kind=int, least=1, most=100_000),
    "gated_linear_unit": _FLAG,
    "activation": Rule(kind=str, choices=ACTIVATIONS),
    "normalization": Rule(kind=str, choices=("RMSNorm", "LayerNorm")),
    "norm_epsilon": Rule(least=0.0, most=1.0),
    "add_bias_linear": _FLAG,
    "add_qkv_bias": _FLAG,
    "qk_layernorm": _FLAG,
    "untie_embeddings_and_output_weights": _FLAG,
    "position_embedding_type": Rule(kind=str, choices=POSITIONS),
    "rotary_base": Rule(least=1.0, most=1e12),
    "max_position_embeddings": Rule(kind=int, most=1e9),
    "window_size": Rule(kind=int, most=1e9),
    "window_layers_fraction": Rule(most=1.0),
    "num_moe_experts": Rule(kind=int, most=100_000),
    "moe_router_topk": Rule(kind=int, most=100_000),
    "moe_ffn_hidden_size": Rule(kind=int, most=1e7),
    "moe_shared_expert_intermediate_size": Rule(kind=int, most=1e7),
    "moe_first_dense_layers": Rule(kind=int, most=10_000),
    "moe_router_bias": _FLAG,
    "moe_router_num_groups": Rule(kind=int, most=100_000),
    "moe_router_group_topk": Rule(kind=int, most=100_000),
    "q_lora_rank": _OPTIONAL,
    "kv_lora_rank": _OPTIONAL,
    "qk_head_dim": _OPTIONAL,
    "qk_pos_emb_head_dim": _OPTIONAL,
    "v_head_dim": _OPTIONAL,
    "mtp_num_layers": Rule(kind=int, most=100),
    "extra_parameters": Rule(kind=int, most=1e15),
    "published_parameters": Rule(most=1e16),
}
MODEL_REQUIRED = ("num_layers", "hidden_size", "num_attention_heads", "vocab_size")
TRAINING_RULES = {
    "global_batch_size": Rule(kind=int, least=1, most=1e8),
    "seq_length": Rule(kind=int, least=1, most=1e9),
    "tokens": Rule(least=1.0, most=1e18),
    "source": Rule(kind=str),
}
GPU_RULES = {
    "generation": Rule(kind=str, choices=GENERATIONS),
    "memory_gib": Rule(least=0.001, most=1e6, factor=GIB, into="memory_bytes"),
    "memory_bandwidth_tb_per_s": Rule(
        least=1e-4, most=1e4, factor=TERA, into="memory_bandwidth_bytes_per_s"
    ),
    "streaming_multiprocessors": _COUNT,
    "tdp_w": Rule(least=1.0, most=1e5),
    "idle_w": Rule(most=1e5),
    "measured_matmul_tflops": Rule(most=1e7, factor=TERA, into="measured_matmul_flops_per_s"),
}
GPU_REQUIRED = tuple(key for key in GPU_RULES if key not in ("idle_w", "measured_matmul_tflops"))
PEAK_RULES = {name: Rule(least=1e-4, most=1e7, factor=TERA) for name in PEAKS}
LINK_RULES = {
    "bandwidth_gb_per_s": Rule(least=1e-4, most=1e6, factor=GB, into="bandwidth_bytes_per_s"),
    "latency_us": Rule(most=1e6, factor=US, into="latency_s"),
}
CLUSTER_RULES = {
    "gpus_per_node": Rule(kind=int, least=1, most=4096),
    "nvlink_domain_gpus": Rule(kind=int, least=1, most=100_000),
    "nvls": _FLAG,
    "pairwise_links": _FLAG,
    "max_gpus": Rule(kind=int, most=1e7),
    "usd_per_gpu_hour": Rule(most=1e5, null=True),
    "pue": Rule(least=1.0, most=5.0),
    "grid_kg_co2_per_kwh": Rule(most=10.0, null=True),
    "failures_per_node_day": Rule(most=100.0),
    "checkpoint_bandwidth_gb_per_s_per_node": Rule(
        least=1e-3, most=1e5, factor=GB, into="checkpoint_bandwidth_bytes_per_s_per_node"
    ),
}
_HUGGING_FACE_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
CORES = "cores"
"""Word for "as many as this machine has processor cores" in `gpus_per_node`."""


def model_record(name: str, values: Mapping[str, object]) -> Model:
    """A `Model` from Megatron field names; what is left out gets Megatron's default."""
    own = {key: value for key, value in values.items() if key not in _MODEL_TOP}
    fields = read_fields(own, MODEL_RULES, required=MODEL_REQUIRED, where=name, beside=_MODEL_TOP)
    heads, hidden = fields["num_attention_heads"], fields["hidden_size"]
    fields.setdefault("num_query_groups", heads)
    fields.setdefault("ffn_hidden_size", 4 * hidden)
    if "kv_channels" not in fields:
        if hidden % heads:
            hint = "set kv_channels (head_dim in a config.json)"
            raise catalog_error(
                f"{name}.hidden_size", hidden, f"is not a multiple of {heads}", hint
            )
        fields["kv_channels"] = hidden // heads
    check_model(name, fields)
    sources = sources_of(values, name)
    return Model(
        name=name, **fields, training=_training(values, name), source=one_source(sources.values())
    )


_MODEL_TOP = ("training", "sources", "aliases", "checkpoints")


def check_model(name: str, fields: Mapping[str, Any]) -> None:
    """The rules between a model's fields."""
    heads, groups = fields["num_attention_heads"], fields["num_query_groups"]
    if heads % groups:
        rule = f"does not divide num_attention_heads {heads}"
        divisors = [n for n in range(1, min(heads, 256) + 1) if heads % n == 0]
        hint = "use one of " + ", ".join(map(str, divisors[:12]))
        raise catalog_error(f"{name}.num_query_groups", groups, rule, hint)
    experts, layers = fields.get("num_moe_experts", 0), fields["num_layers"]
    if experts:
        _within(name, fields, "moe_router_topk", 1, experts)
        _within(name, fields, "moe_ffn_hidden_size", 1, 10**7)
        _within(name, fields, "moe_first_dense_layers", 0, layers)
        _check_groups(name, fields)
    elif alone := [k for k in _MOE_KEYS if fields.get(k)]:
        raise catalog_error(f"{name}.{alone[0]}", fields[alone[0]], "needs num_moe_experts >= 1")
    if fields.get("kv_lora_rank"):
        for key in ("qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"):
            _within(name, fields, key, 1, 10**6)
    elif alone := [k for k in _MLA_KEYS if fields.get(k)]:
        raise catalog_error(f"{name}.{alone[0]}", fields[alone[0]], "needs kv_lora_rank >= 1")


_MOE_KEYS = (
    "moe_router_topk",
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_router_num_groups",
    "moe_router_group_topk",
)
_MLA_KEYS = ("q_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")


def _check_groups(name: str, fields: Mapping[str, Any]) -> None:
    """Equal groups, and no more of them chosen than there are, or than a token has experts."""
    groups, experts = fields.get("moe_router_num_groups", 0), fields["num_moe_experts"]
    if not groups:
        _within(name, fields, "moe_router_group_topk", 0, 0)
        return
    if experts % groups:
        rule = f"does not divide num_moe_experts {experts}"
        raise catalog_error(f"{name}.moe_router_num_groups", groups, rule, "use a divisor of it")
    _within(name, fields, "moe_router_group_topk", 1, min(groups, fields["moe_router_topk"]))


def _within(name: str, fields: Mapping[str, Any], key: str, least: int, most: int) -> None:
    value = fields.get(key, 0)
    if not least <= value <= most:
        raise catalog_error(f"{name}.{key}", value, f"is not in {least} to {most}")


def _training(values: Mapping[str, object], name: str) -> Training | None:
    block = submapping(values, "training", name)
    if not block:
        return None
    needed = ("global_batch_size", "seq_length", "tokens")
    fields = read_fields(block, TRAINING_RULES, required=needed, where=f"{name}.training")
    return Training(**fields)


def gpu_record(name: str, values: Mapping[str, object]) -> Gpu:
    """A `Gpu` from human units."""
    own = {key: value for key, value in values.items() if key not in _GPU_TOP}
    fields = read_fields(own, GPU_RULES, required=GPU_REQUIRED, where=name, beside=_GPU_TOP)
    where = f"{name}.peak_tflops"
    peaks = read_fields(
        submapping(values, "peak_tflops", name), PEAK_RULES, required=(), where=where
    )
    if not peaks.keys() & {"bf16", "fp16"}:
        raise CatalogError(f"{where}: neither bf16 nor fp16 given; add the dense peak of one")
    sources = sources_of(values, name)
    return Gpu(name=name, peak_flops_per_s=peaks, source=one_source(sources.values()), **fields)


_GPU_TOP = ("peak_tflops", "sources", "aliases")


def cluster_record(name: str, values: Mapping[str, object], gpu: Gpu) -> Cluster:
    """A `Cluster` of `gpu`s from human units."""
    own = {key: value for key, value in values.items() if key not in _CLUSTER_TOP}
    for key in ("gpus_per_node", "nvlink_domain_gpus"):
        if own.get(key) == CORES:
            own[key] = os.cpu_count() or 1
    fields = read_fields(
        own, CLUSTER_RULES, required=("gpus_per_node",), where=name, beside=_CLUSTER_TOP
    )
    node = fields["gpus_per_node"]
    domain = fields.setdefault("nvlink_domain_gpus", node)
    if domain % node and node % domain:
        rule = f"is neither a multiple nor a divisor of gpus_per_node {node}"
        raise catalog_error(f"{name}.nvlink_domain_gpus", domain, rule)
    sources = sources_of(values, name)
    return Cluster(
        name=name,
        gpu=gpu,
        intra_link=_link(values, "intra_link", name, sources),
        inter_link=_link(values, "inter_link", name, sources),
        source=one_source(sources.values()),
        **fields,
    )


_CLUSTER_TOP = ("gpu", "intra_link", "inter_link", "sources", "aliases")


def _link(values: Mapping[str, object], key: str, name: str, sources: Mapping[str, str]) -> Link:
    block = submapping(values, key, name)
    fields = read_fields(block, LINK_RULES, required=LINK_RULES, where=f"{name}.{key}")
    used = [source_of(f"{key}.{field}", sources) for field in LINK_RULES]
    return Link(source=one_source(used), **fields)


def sources_of(values: Mapping[str, object], name: str) -> dict[str, str]:
    """The `sources:` of a file: dotted field (or `*`) to where its number is from."""
    where = f"{name}.sources"
    known = {path for path, _ in leaves(values)}
    prefixes = {".".join(path.split(".")[:n]) for path in known for n in range(1, 4)}
    rule = Rule(kind=str)
    sources = {}
    for field, text in submapping(values, "sources", name).items():
        if field != EVERYTHING and field not in prefixes:
            raise catalog_error(f"{where}.{field}", text, "is the source of no field in this file")
        sources[field] = rule.read(f"{where}.{field}", text)
    return sources


def source_of(field: str, sources: Mapping[str, str]) -> str:
    """Where the number at dotted `field` is from, by the longest key that covers it; else empty."""
    parts = field.split(".")
    keys = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((sources[key] for key in [*keys, EVERYTHING] if key in sources), "")


def leaves(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted path and value of everything in a file that is data: no names, no sources."""
    for key, value in values.items():
        if not prefix and key in ("aliases", "checkpoints", "sources"):
            continue
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def one_source(sources: Iterable[str]) -> str:
    """Distinct sources in order, in one line."""
    return "; ".join(dict.fromkeys(source for source in sources if source))


def aliases_of(values: Mapping[str, object], name: str) -> tuple[str, ...]:
    """Other names of an entry, those with a checkpoint of their own last."""
    return (*text_list(values, "aliases", name), *checkpoints_of(values, name))


def checkpoints_of(values: Mapping[str, object], name: str) -> dict[str, str]:
    """The `checkpoints:` of a model: other names of these dimensions to their own weights.

    Returns:
        Name to Hugging Face id (`deepseek-r1` to `deepseek-ai/DeepSeek-R1`).
    """
    block = submapping(values, "checkpoints", name)
    for other, found in block.items():
        if not isinstance(found, str) or not _HUGGING_FACE_ID.fullmatch(found):
            where, hint = f"{name}.checkpoints.{other}", "write it as deepseek-ai/DeepSeek-R1"
            raise catalog_error(where, found, "is not a Hugging Face id", hint)
    return {other: str(found) for other, found in block.items()}


def with_weights(values: Mapping[str, object], checkpoint: str) -> dict[str, object]:
    """A model's file whose source names the weights of `checkpoint` first."""
    sources = values.get("sources")
    known = dict(sources) if isinstance(sources, dict) else {}
    address = f"https://huggingface.co/{checkpoint}"
    dimensions = known.pop(EVERYTHING, "")
    first = f"{address}, with the dimensions of {dimensions}" if dimensions else address
    return {**values, "sources": {EVERYTHING: first, **known}}
