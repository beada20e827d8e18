"""NVIDIA's own recommended H100 layouts: legal here, called fitting, and placed where?

python benchmarks/recommended.py

Prints markdown: every pre-training row of `recommended_configs_h100.csv` against the default search
of the same job (model, GPUs, batch, sequence, precision, gradient type), from the shipped profiles.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from autoparallel import planning
from autoparallel.layout import Layout
from autoparallel.plan import Estimate, Plan
from autoparallel.ranking import Ranked
from autoparallel.request import TrainingRequest, training_request
from autoparallel.units import GIB

CONFIGS = Path(__file__).resolve().parent / "recommended_configs_h100.csv"
TOP = 10
MESH = ("tp", "pp", "cp", "ep", "etp")
MODELS = {
    "gpt3 175b": "gpt-175b",
    "llama3 8b": "llama-3.1-8b",
    "llama3 70b": "llama-3.1-70b",
    "llama31 405b": "llama-3.1-405b",
    "nemotron3 8b": "nemotron-3-8b",
    "nemotron3 22b": "nemotron-3-22b",
    "nemotron4 15b": "nemotron-4-15b",
    "nemotron4 340b": "nemotron-4-340b",
    "mixtral 8x7b": "mixtral-8x7b",
    "mixtral 8x22b": "mixtral-8x22b",
    "qwen3 30b_a3b": "qwen3-30b-a3b",
    "qwen3 235b_a22b": "qwen3-235b-a22b",
    "deepseek v3": "deepseek-v3",
}
"""Llama 3 and 3.1 of one size differ in the maximum length only."""
SKIPPED = {
    "nemotronh": "hybrid of Mamba and attention layers, which the cost model does not have",
    "llama4": "not in the catalog: chunked attention on three layers of four",
    "vlm_llama4": "vision-language model",
    "neva_llama3": "vision-language model",
    "flux": "diffusion model",
}
STAGES = {
    "llama31 405b": "stages=1,2*62,1",
    "qwen3 235b_a22b": "stages=2,3*30,2",
    "deepseek v3": "stages=4*15,1",
}
"""Uneven splits that the recipes state outside the table.

Llama and Qwen count the embedding and the loss as a layer each (`account_for_..._in_pipeline_split`
in `nemo/collections/llm/recipes/`), DeepSeek is given a `pipeline_model_parallel_layout` in
`scripts/performance/llm/pretrain_deepseek_v3.py`; all in NVIDIA/NeMo@8cfedd7.
"""
FP32_GRADIENTS = ("qwen3 30b_a3b", "qwen3 235b_a22b")
"""Recipes that leave `grad_reduce_in_fp32` on; the others turn it off (NVIDIA/NeMo@8cfedd7)."""

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the planner says of one recommended layout.

    Attributes:
        job: The job that the layout is for.
        layout: The layout, in the grammar.
        found: What it costs, whether it is legal, and its place among all fitting candidates.
        plan: The default search of the same job.
        mesh_place: Place of its (tp, pp, cp, ep, etp) among the meshes, each at its best layout; 0
            where no layout of it is among those a search keeps.
    """

    job: TrainingRequest
    layout: Layout
    found: Estimate
    plan: Plan
    mesh_place: int

    @property
    def fits(self) -> bool:
        """Whether the layout is called fitting."""
        return self.found.entry.fits

    @property
    def over_first(self) -> float:
        """Its predicted time over that of the first layout of our plan."""
        own, first = self.found.entry.iteration_s, self.plan.entries[0].iteration_s
        return own / first if own and first else float("nan")

    @property
    def dense(self) -> bool:
        """Whether the model has no experts."""
        return self.job.model.num_moe_experts == 0


def rows(path: Path = CONFIGS) -> list[Row]:
    """The pre-training rows of the table."""
    with path.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(line for line in lines if not line.startswith("#"))
        return [row for row in table if row["task"] == "pre_train"]


def name_of(row: Row) -> str:
    """Model and size, as the table spells them."""
    return f"{row['model']} {row['size']}"


def _count(row: Row, column: str) -> int:
    return int(float(row[column] or 0))


def gradients(row: Row) -> str:
    """The type gradients are reduced in."""
    return "fp32" if name_of(row) in FP32_GRADIENTS else "bf16"


def job_of(row: Row) -> TrainingRequest:
    """The job of a row: what the search and the layout share."""
    return training_request(
        model=MODELS[name_of(row)],
        num_gpus=_count(row, "num_gpus"),
        cluster="dgx-h100",
        framework="megatron-core",
        precision=row["dtype"],
        global_batch_size=_count(row, "gbs"),
        seq_length=_count(row, "seq_len"),
        overrides=(f"space.grad_reduce_dtype=[{gradients(row)}]",),
    )


def layout_of(row: Row, job: TrainingRequest) -> Layout:
    """The layout of a row.

    What the table leaves out follows NeMo's scripts: sequence parallelism exactly when tp > 1, fp8
    with delayed scaling, the distributed optimizer, experts split as the attention is.
    """
    experts = job.model.num_moe_experts > 0
    words = [f"{word}{_count(row, column)}" for word, column in _words(row, experts)]
    words.append("zero3" if _count(row, "use_mcore_fsdp") else "zero1")
    if _count(row, "tp_size") > 1:
        words.append("sp")
    if row["recompute_modules"]:
        words.append("recompute=" + row["recompute_modules"].replace("/", "+"))
    if stages := STAGES.get(name_of(row)):
        words.append(stages)
    return Layout.parse(" ".join([*words, f"prec={row['dtype']}", f"grad={gradients(row)}"]))


def _words(row: Row, experts: bool) -> Iterator[tuple[str, str]]:
    """The numbered words of a layout, each with its column."""
    for word in ("tp", "pp", "cp", "ep"):
        yield word, f"{word}_size"
    yield "vpp", "vp_size"
    yield "mbs", "mbs"
    if experts:
        yield "etp", "etp_size" if row["etp_size"] else "tp_size"


def judged(row: Row, job: TrainingRequest) -> Verdict:
    """Search the job of a row, and place the row's layout in it."""
    layout = layout_of(row, job)
    plan, ranked, _ = planning.searched(job, top=TOP)
    found = planning.estimate(job, layout, among=ranked)
    return Verdict(
        job=job,
        layout=layout,
        found=found,
        plan=plan,
        mesh_place=mesh_place(ranked, layout),
    )


def mesh_place(ranked: Ranked, layout: Layout) -> int:
    """Place of the layout's mesh among the meshes, each at its fastest fitting layout."""
    if ranked.best is None:
        return 0
    knobs = ranked.best.knobs
    columns = [np.broadcast_to(getattr(knobs, name), (knobs.size,)) for name in MESH]
    meshes = list(dict.fromkeys(zip(*(column.tolist() for column in columns), strict=True)))
    wanted = (
        float(layout.tensor_model_parallel_size),
        float(layout.pipeline_model_parallel_size),
        float(layout.context_parallel_size),
        float(layout.expert_model_parallel_size),
        float(layout.expert_tensor_parallel_size),
    )
    return meshes.index(wanted) + 1 if wanted in meshes else 0


@cache
def verdicts() -> tuple[Verdict, ...]:
    """Every row with a model in the catalog."""
    return tuple(judged(row, job_of(row)) for row in rows() if name_of(row) in MODELS)


def table(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A markdown table."""
    body = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in body)


def line(verdict: Verdict) -> list[object]:
    """One row of the table."""
    job, entry, place = verdict.job, verdict.found.entry, verdict.found.place
    legal = "yes" if verdict.found.legal else verdict.found.illegal_reasons[0].rule
    head = [job.model.name, job.num_gpus, f"`{verdict.layout}`", legal]
    if place is None or entry.memory_bytes is None or entry.fits_probability is None:
        return [*head, "", "", "", "", "", ""]
    return [
        *head,
        f"{entry.fits_probability:.2f}",
        f"{entry.memory_bytes / GIB:.1f}",
        f"{place.rank:,} of {place.of:,}",
        verdict.mesh_place or "-",
        f"{verdict.over_first:.3f}",
        f"`{verdict.plan.entries[0].layout}`",
    ]


def counts(name: str, group: Sequence[Verdict]) -> list[object]:
    """How many of a group are legal, fit, and stand in front."""
    legal = [v for v in group if v.found.legal]
    places = [v.found.place.rank for v in legal if v.found.place]
    return [
        name,
        len(group),
        len(legal),
        sum(v.fits for v in legal),
        sum(place <= TOP for place in places),
        sum(0 < v.mesh_place <= TOP for v in legal),
        sum(v.over_first <= 1.05 for v in legal),
        sum(v.over_first <= 1.10 for v in legal),
        f"{np.median([v.over_first for v in legal]):.3f}",
    ]


def main() -> None:
    """Print the tables."""
    found = verdicts()
    dense = [v for v in found if v.dense]
    moe = [v for v in found if not v.dense]
    head = ["rows", "n", "legal", "fit", "in our ten", "mesh in our ten"]
    head += ["within 5 %", "within 10 %", "median time over first"]
    print(table(head, [counts(*group) for group in (("dense", dense), ("MoE", moe))]))
    head = ["model", "GPUs", "NVIDIA's layout", "legal", "P(fits)", "GiB", "place", "mesh's place"]
    print("\n" + table([*head, "time over our first", "our first"], [line(v) for v in found]))
    skipped = dict.fromkeys(name_of(row) for row in rows() if name_of(row) not in MODELS)
    print("\nSkipped:")
    for name in skipped:
        print(f"- {name}: {SKIPPED[name.split()[0]]}")


if __name__ == "__main__":
    main()
