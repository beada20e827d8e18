"""`autoparallel catalog`: what is known, and where each number is from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from autoparallel.cli import common
from autoparallel.counts import counted
from autoparallel.errors import bad_value, nearest

GROUPS = {
    "models": "model",
    "clusters": "cluster",
    "gpus": "gpu",
    "frameworks": "framework",
    "spaces": "space",
    "workloads": "workload",
    "sites": "site",
}
RECORDS = ("model", "cluster", "gpu", "framework")

app = typer.Typer(
    help="List and show models, clusters, GPUs and frameworks.",
    rich_markup_mode=None,
)

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help=", ".join(GROUPS))]


@app.command("list")
def list_verb(
    group: GroupArgument = "models",
    json: common.JsonFlag = False,
    config_dir: common.ConfigDirFlag = None,
) -> None:
    """List the entries of a group."""
    from autoparallel import catalog

    kind = _kind(group)
    rows = [_summary(kind, name, config_dir) for name in catalog.names(kind, config_dir)]
    if json:
        common.print_json(rows)
        return
    columns = list(rows[0]) if rows else ["name"]
    cells = [[_cell(value) for value in row.values()] for row in rows]
    common.print_table(counted(len(rows), kind), columns, cells)


@app.command("show")
def show_verb(
    group: GroupArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Catalog name or file.")],
    json: common.JsonFlag = False,
    config_dir: common.ConfigDirFlag = None,
) -> None:
    """Show one entry: every value as its file writes it, and its source."""
    from autoparallel import catalog

    kind = _kind(group)
    if kind in RECORDS:
        _record(kind, name, config_dir)  # an entry that does not parse is an error, not a listing
    values = _values(kind, name, config_dir)
    sources = catalog.sources(kind, name, config_dir)
    rows = [
        {"field": field, "value": value, "source": sources.get(field, (None, ""))[1]}
        for field, value in _leaves(values)
    ]
    if json:
        common.print_json({"group": kind, "name": name, "fields": rows})
    else:
        common.print_table(f"{kind} {name}", list(rows[0]), [list(row.values()) for row in rows])


def _cell(value: object) -> object:
    """`bf16 312, fp16 312` of a mapping, `a, b` of a list, nothing of None."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number:g}" for key, number in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else value


def _kind(group: str) -> str:
    """The catalog's group for a word, in the plural or the singular."""
    kind = GROUPS.get(group, group)
    if kind not in GROUPS.values():
        raise bad_value("group", group, "is not a catalog group", nearest(group, GROUPS))
    return kind


def _record(kind: str, name: str, config_dir: Path | None) -> Any:
    from autoparallel import catalog
    from autoparallel.framework import framework

    readers: dict[str, Callable[..., Any]] = {
        "model": catalog.model,
        "cluster": catalog.cluster,
        "gpu": catalog.gpu,
        "framework": framework,
    }
    return readers[kind](name, config_dir)


def _values(kind: str, name: str, config_dir: Path | None) -> Mapping[str, Any]:
    """An entry as its file writes it; a Hugging Face config as the model it makes."""
    from autoparallel import catalog

    if kind == "model" and (name.endswith(".json") or Path(name).is_dir()):
        return asdict(catalog.model(name, config_dir))
    return catalog.entry(kind, name, config_dir)


def _leaves(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    from autoparallel.catalog_schema import leaves

    return list(leaves(values))


def _summary(kind: str, name: str, config_dir: Path | None) -> dict[str, Any]:
    """The few numbers that tell the entries of a group apart."""
    from autoparallel.model import parameters
    from autoparallel.units import GIB, TERA

    if kind not in RECORDS:
        return {"name": name}
    it = _record(kind, name, config_dir)
    if kind == "model":
        size = float(parameters(it.shape(1)))
        layers = {
            "layers": it.num_layers,
            "hidden": it.hidden_size,
            "heads": it.num_attention_heads,
        }
        job = it.training
        batch = {"batch": job.global_batch_size, "sequence": job.seq_length} if job else {}
        empty = {"batch": None, "sequence": None}
        return {
            "name": name,
            "parameters_billion": round(size / 1e9, 1),
            **layers,
            **empty,
            **batch,
        }
    if kind == "gpu":
        peaks = {p: round(v / TERA, 1) for p, v in it.peak_flops_per_s.items()}
        return {"name": name, "memory_gib": round(it.memory_bytes / GIB, 2), "peak_tflops": peaks}
    if kind == "cluster":
        links = (it.intra_link, it.inter_link)
        intra, inter = (round(link.bandwidth_bytes_per_s / 1e9, 1) for link in links)
        sizes = {"gpus_per_node": it.gpus_per_node, "nvlink_domain_gpus": it.nvlink_domain_gpus}
        return {
            "name": name,
            "gpu": it.gpu.name,
            **sizes,
            "intra_gb_per_s": intra,
            "inter_gb_per_s": inter,
        }
    return {
        "name": name,
        "version": it.version,
        "aliases": list(it.aliases),
        "constants": it.constants,
        "exporters": list(it.exporters),
    }
