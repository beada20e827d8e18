"""Reasons: why one layout beats another, and what each of its knobs is worth.

Pure functions over predictions; nothing is printed here. `changes` compares two layouts part by
part; `bought` puts every knob of a layout back to its nearest simpler legal value and predicts
again; `steps` tries every change of one knob, to find the smallest one that helps a layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoparallel.constants import FITS
from autoparallel.layout import MEGATRON_OVERLAPS, OVERLAPS, Layout, knobs
from autoparallel.ranking.evaluation import Setting, cost_model
from autoparallel.rules import explain, violations


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How much more (or less) of one part a layout has than another."""

    part: str
    amount: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is predicted of one layout; no numbers where a rule is broken.

    Attributes:
        rule, message: The first broken rule, with its numbers; empty when legal.
    """

    layout: Layout
    iteration_s: float | None = None
    memory_bytes: float | None = None
    fits_probability: float | None = None
    rule: str = ""
    message: str = ""

    @property
    def fits(self) -> bool:
        """Whether it is legal and more likely to fit than not."""
        return self.fits_probability is not None and self.fits_probability >= FITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """A knob of a layout, and the same layout without it.

    Attributes:
        knob: The word of the layout that goes (`tp4`).
        instead: The word that comes (`tp2`); empty when the word is only left out.
        without: The prediction with the knob at its nearest simpler legal value; when none is
            legal, the nearest one with the rule it breaks.
    """

    knob: str
    instead: str
    without: Verdict


def changes(parts: Mapping[str, float], other: Mapping[str, float]) -> tuple[Change, ...]:
    """What `other` has more than `parts`, part by part, the largest first; equal parts left out."""
    found = [Change(part=name, amount=other[name] - parts[name]) for name in parts]
    return tuple(sorted((c for c in found if c.amount), key=lambda c: -abs(c.amount)))


def judged(where: Setting, layouts: Sequence[Layout]) -> list[Verdict]:
    """The predictions of `layouts`, or the rules they break, in the given order."""
    if not layouts:
        return []
    request, count = where.request, len(layouts)
    columns = knobs(layouts, [request.num_gpus] * count, [request.global_batch_size] * count)
    case = where.rule_case(columns)
    legal, _ = violations(case)
    rows = np.flatnonzero(legal)
    verdicts: dict[int, Verdict] = {}
    if len(rows):
        scores = cost_model(where)(columns.take(rows))
        for place, row in enumerate(rows.tolist()):
            verdicts[row] = Verdict(
                layout=layouts[row],
                iteration_s=float(scores.iteration_s[place]),
                memory_bytes=float(scores.memory_bytes[place]),
                fits_probability=float(scores.fits_probability[place]),
            )
    for row in np.flatnonzero(~legal).tolist():
        broken = explain(case, row)[0]
        verdicts[row] = Verdict(layout=layouts[row], rule=broken.rule, message=broken.message)
    return [verdicts[row] for row in range(count)]


def bought(where: Setting, layout: Layout) -> tuple[Bought, ...]:
    """What every knob of `layout` that is not at its plain value is worth."""
    groups = simpler(layout)
    verdicts = iter(judged(where, [option for options in groups.values() for option in options]))
    found = []
    for word, options in groups.items():
        tried = [next(verdicts) for _ in options]
        without = next((verdict for verdict in tried if not verdict.rule), tried[0])
        words = _word(layout, word), _word(without.layout, word)
        found.append(Bought(knob=words[0], instead=words[1], without=without))
    return tuple(found)


def steps(where: Setting, layout: Layout) -> tuple[Verdict, ...]:
    """Every legal layout one knob away from `layout`, the fastest fitting one first."""
    options = [option for group in simpler(layout).values() for option in group]
    near = dict.fromkeys([*options, *_richer(layout)])
    legal = [v for v in judged(where, [x for x in near if x != layout]) if not v.rule]
    return tuple(sorted(legal, key=lambda v: (not v.fits, v.iteration_s or 0.0)))


def helping_step(
    where: Setting, layout: Layout, now: Verdict, near: Iterable[Verdict] | None = None
) -> Verdict | None:
    """The change of one knob that helps most; None when none does.

    A layout that is not legal or does not fit is helped by the fastest fitting neighbour (or, when
    none fits, the likeliest to); one that fits by the fastest one that is faster.
    """
    around = list(steps(where, layout) if near is None else near)
    if not around:
        return None
    best = around[0]
    if now.fits:
        return best if best.fits and (best.iteration_s or 0) < (now.iteration_s or 0) else None
    if best.fits:
        return best
    closest = max(around, key=lambda v: v.fits_probability or 0.0)
    better = now.rule or (closest.fits_probability or 0) > (now.fits_probability or 0)
    return closest if better else None


def word_changes(layout: Layout, other: Layout) -> tuple[str, str]:
    """The words of `layout` that `other` lacks, and the other way round."""
    ours, theirs = _words(layout), _words(other)
    gone = [word for word in ours if word not in theirs]
    come = [word for word in theirs if word not in ours]
    return " ".join(gone), " ".join(come)


def _word(layout: Layout, name: str) -> str:
    """The word of one knob (`tp4`, `recompute=full/uniform/1`); empty when it is left out."""
    found = (w for w in _words(layout) if re.fullmatch(rf"{name}(\d+|=.*)?", w))
    return next(found, "")


def _words(layout: Layout) -> list[str]:
    """The words of a layout, with the overlap switches always written."""
    words = [word for word in str(layout).split() if not word.startswith("overlap=")]
    return [*words, "overlap=" + ("+".join(layout.overlap) or "none")]


def simpler(layout: Layout) -> dict[str, list[Layout]]:
    """For every knob away from its plain value, by its word: simpler layouts, the nearest first."""
    tp, pp = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    vpp, cp = layout.virtual_pipeline_model_parallel_size, layout.context_parallel_size
    ep, etp = layout.expert_model_parallel_size, layout.expert_tensor_parallel_size
    options = {
        "tp": [_tensor(layout, n) for n in _smaller(tp)],
        "pp": [_pipeline(layout, n, vpp) for n in _smaller(pp)],
        "vpp": [_pipeline(layout, pp, n) for n in _smaller(vpp)],
        "cp": [consistent(layout, context_parallel_size=n) for n in _smaller(cp)],
        "ep": [consistent(layout, expert_model_parallel_size=n) for n in _smaller(ep)],
        "etp": [consistent(layout, expert_tensor_parallel_size=n) for n in _smaller(etp)],
        "mbs": [consistent(layout, micro_batch_size=n) for n in _smaller(layout.micro_batch_size)],
        **{
            word: [consistent(layout, **{field: value})]
            for word, (field, value) in _PLAIN.items()
            if getattr(layout, field) != value
        },
        "sched": _schedules(layout),
        "overlap": _overlaps(layout),
    }
    return {word: found for word, found in options.items() if found}


_PLAIN: dict[str, tuple[str, Any]] = {
    "cpcomm": ("cp_comm_type", "p2p"),
    "sp": ("sequence_parallel", False),
    "group": ("microbatch_group_size_per_vp_stage", 0),
    "zero": ("zero_stage", 0),
    "shard": ("shard_group_size", 0),
    "recompute": ("recompute_granularity", "none"),
    "stages": ("stage_layers", ()),
    "prec": ("precision", "bf16"),
    "grad": ("grad_reduce_dtype", "fp32"),
    "offload": ("optimizer_offload_fraction", 0.0),
    "graph": ("cuda_graph_scope", "none"),
}


def _smaller(size: int) -> list[int]:
    """The divisors of `size` below it, the nearest first."""
    return [n for n in range(size // 2, 0, -1) if size % n == 0]


def _tensor(layout: Layout, tp: int) -> Layout:
    """Another tensor parallel size; experts split as the attention was stay so."""
    follows = layout.expert_tensor_parallel_size == layout.tensor_model_parallel_size
    etp = tp if follows else layout.expert_tensor_parallel_size
    return consistent(layout, tensor_model_parallel_size=tp, expert_tensor_parallel_size=etp)


def _pipeline(layout: Layout, pp: int, vpp: int) -> Layout:
    """Another number of stages; uneven ones are merged in the model's order."""
    sizes, count = layout.stage_layers, pp * vpp
    each = len(sizes) // count
    merges = count > 1 and each > 0 and each * count == len(sizes)
    merged = [sum(sizes[i * each : (i + 1) * each]) for i in range(count)] if merges else []
    return consistent(
        layout,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp,
        stage_layers=tuple(merged),
    )


def _schedules(layout: Layout) -> list[Layout]:
    """The usual schedule in place of a special one."""
    usual = "interleaved" if layout.virtual_pipeline_model_parallel_size > 1 else "1f1b"
    return [consistent(layout, schedule=usual)] if layout.schedule not in (usual, "1f1b") else []


def _overlaps(layout: Layout) -> list[Layout]:
    """No overlap, or that of transfers alone; Megatron's own in place of a special one."""
    usual = consistent(layout, overlap=MEGATRON_OVERLAPS)
    if layout.overlap not in (usual.overlap, ()):
        return [usual]
    tried = [replace(layout, overlap=on) for on in ((), ("p2p",)) if layout.overlap]
    return [option for option in tried if option != layout]


def _richer(layout: Layout) -> list[Layout]:
    """Layouts with one knob one step away, upwards or to the nearest power of two."""
    tp, pp = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    vpp = layout.virtual_pipeline_model_parallel_size
    sizes = ("context_parallel_size", "expert_model_parallel_size", "micro_batch_size")
    full: dict[str, Any] = {"recompute_granularity": "full", "recompute_num_layers": 1}
    return [
        *(_tensor(layout, n) for n in _around(tp)),
        consistent(_tensor(layout, 2 * tp), sequence_parallel=True),
        *(consistent(layout, pipeline_model_parallel_size=n, stage_layers=()) for n in _around(pp)),
        *(_pipeline(layout, pp, vpp * n) for n in (2, 3) if pp > 1),
        *(
            consistent(layout, **{name: n})
            for name in sizes
            for n in _around(getattr(layout, name))
        ),
        consistent(layout, sequence_parallel=True),
        *(consistent(layout, zero_stage=stage) for stage in (1, 2, 3)),
        consistent(layout, recompute_modules=(), recompute_method="uniform", **full),
        *(_recomputing(layout, module) for module in ("core_attn", "layernorm", "mlp", "moe")),
    ]


def _around(size: int) -> list[int]:
    """Twice a size, and the powers of two next to it."""
    below = 1 << (size.bit_length() - 1)
    return [n for n in dict.fromkeys((2 * size, 2 * below, below)) if n != size]


def _recomputing(layout: Layout, module: str) -> Layout:
    return consistent(
        layout,
        recompute_granularity="selective",
        recompute_modules=(module,),
        recompute_num_layers=0,
    )


def consistent(layout: Layout, **values: Any) -> Layout:
    """`layout` with other values, and without what means nothing beside them."""
    made = replace(layout, **values)
    fixes: dict[str, Any] = {}
    if made.tensor_model_parallel_size == 1:
        fixes["sequence_parallel"] = False
    if made.pipeline_model_parallel_size == 1:
        fixes |= {"virtual_pipeline_model_parallel_size": 1, "stage_layers": ()}
        fixes |= {"schedule": "1f1b"}
    chunks = fixes.get("virtual_pipeline_model_parallel_size")
    if (chunks or made.virtual_pipeline_model_parallel_size) == 1:
        fixes["microbatch_group_size_per_vp_stage"] = 0
        if made.schedule == "interleaved":
            fixes["schedule"] = "1f1b"
    elif made.schedule == "1f1b":
        fixes["schedule"] = "interleaved"
    if made.context_parallel_size == 1:
        fixes["cp_comm_type"] = "p2p"
    if made.zero_stage == 0:
        fixes |= {"shard_group_size": 0, "optimizer_offload_fraction": 0.0}
    if made.recompute_granularity == "none":
        fixes |= {"recompute_method": "uniform", "recompute_num_layers": 0, "recompute_modules": ()}
    idle = {"param"} if made.zero_stage == 0 else set()
    idle |= {"moe"} if made.expert_model_parallel_size == 1 else set()
    idle |= {"tp"} if made.tensor_model_parallel_size == 1 else set()
    fixes["overlap"] = tuple(n for n in OVERLAPS if n in made.overlap and n not in idle)
    return replace(made, **fixes)
