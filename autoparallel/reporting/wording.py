"""Numbers and decisions in words, the same on screen and in a report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoparallel.cost.step import StepTime
from autoparallel.counts import counted
from autoparallel.plan import Plan
from autoparallel.ranking import Setting, interval_ties, sampled_times, surest_choice, ties
from autoparallel.request import TrainingRequest
from autoparallel.units import GIB

UNSURE, SURER = 0.9, 0.05
"""Chance to fit below which a surer layout is named, and how much surer it has to be."""


def time_scale(seconds: float) -> tuple[float, str, int]:
    """Factor, unit and digits in which a step of this length reads well."""
    scale, unit = (1.0, "s") if seconds >= 1 else (1e3, "ms")
    value = seconds * scale
    return scale, unit, 1 if value >= 100 else 2 if value >= 10 else 3


def time_text(seconds: float) -> str:
    """A time with its unit."""
    scale, unit, digits = time_scale(seconds)
    return f"{seconds * scale:,.{digits}f} {unit}"


def day_digits(days: float | None) -> int:
    """Digits in which a number of days reads well."""
    return 1 if days is None or days >= 1 else 3


def part_name(part: str, suffix: str) -> str:
    """A part without its unit: `tp comm`, `activations`."""
    return part.removesuffix(suffix).replace("_", " ")


def number(value: float | None, digits: int = 0, scale: float = 1.0) -> str:
    """A number at this many digits; a dash for none."""
    return "-" if value is None else f"{value * scale:,.{digits}f}"


def signed(value: float, digits: int, unit: str = "") -> str:
    """A difference with its sign; no sign on a zero."""
    text = f"{value:+,.{digits}f}"
    return (text if float(text.replace(",", "")) else text[1:]) + unit


def amount(value: float | None) -> str:
    """A large count in thousands, millions, billions or trillions."""
    if value is None:
        return "unknown"
    for size, word in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{word}"
    return f"{value:.4g}"


def asked(request: TrainingRequest) -> str:
    """What is asked and what was assumed: the first line of every answer.

    Defaults are marked with a star.
    """
    taken = {phrase.split()[0] for phrase in request.assumptions}
    shown = {
        "": f"{request.model.name} on {request.num_gpus} x {request.cluster.gpu.name}",
        "cluster": request.cluster.name,
        "framework": request.framework,
        "precision": request.precision,
        "global_batch_size": f"batch {request.global_batch_size}",
        "seq_length": f"sequence {request.seq_length}",
        "tokens": f"{amount(request.tokens)} tokens",
        "flash": "flash attention",
        "fp32": "fp32 gradients",
        "space": f"space {request.space_name}",
    }
    words = [text + "*" * (key in taken) for key, text in shown.items()]
    return ", ".join(words) + (" (* default)" if taken else "")


def short(text: str, most: int = 28) -> str:
    """A label that fits beside a bar on a phone."""
    return text if len(text) <= most else text[: most - 1] + "…"


def tied(plan: Plan, where: Setting) -> list[bool]:
    """Which entries cannot be told from the first: by what trials left, where there were any."""
    if any(e.corrected for e in plan.entries):
        after = [
            e.corrected if e.corrected and e.corrected.fits_probability else None
            for e in plan.entries
        ]
        seconds = [c.iteration_s if c else np.inf for c in after]
        highs = [c.iteration_s_interval[1] if c else np.inf for c in after]
        return [bool(x) for x in interval_ties(np.array(seconds), np.array(highs))]
    names = StepTime.__dataclass_fields__
    columns = {n: np.array([(e.parts or {})[n] for e in plan.entries]) for n in names}
    found = ties(sampled_times(StepTime(**columns), where.calibration.spread))
    return [bool(x) for x in found]


def decision(plan: Plan, equal: Sequence[bool], capacity_bytes: float, mark: str = "") -> str:
    """What to take, in one sentence, and what is as good or safer.

    Args:
        plan: A plan with entries.
        equal: Which of them cannot be told from the first, from `tied`.
        capacity_bytes: Memory of one GPU.
        mark: How the tied ones are marked in the table beside it, such as `(=) `.
    """
    winner, others = plan.entries[0], sum(equal) - 1
    low, high = winner.iteration_s_interval or (0.0, 0.0)
    scale, unit, digits = time_scale(winner.iteration_s or 0.0)
    span = f"{low * scale:.{digits - 1}f} to {high * scale:.{digits - 1}f}"
    words = [
        f"Take {winner.layout}: {time_text(winner.iteration_s or 0.0)} a step "
        f"({span} {unit} with 90 %)",
        f"{(winner.memory_bytes or 0) / GIB:.1f} of {capacity_bytes / GIB:.1f} GiB "
        f"(fits with P {winner.fits_probability:.2f})",
    ]
    if winner.days is not None:
        words.append(f"{winner.days:,.{day_digits(winner.days)}f} days")
    if winner.cost_usd is not None:
        words.append(f"USD {winner.cost_usd:,.0f}")
    text = ", ".join(words) + "."
    if winner.measured and winner.measured.iteration_s and winner.corrected:
        text += f" Trials measured {time_text(winner.measured.iteration_s)}."
    if others:
        text += f" {counted(others, 'other')} {mark}cannot be told from it: "
        text += "measure before choosing between them."
    return text + _surer(plan, equal)


def _surer(plan: Plan, equal: Sequence[bool]) -> str:
    """Which layout as good as the first is the better choice, where that one may not fit."""
    now = [e.corrected or e for e in plan.entries]
    fits = np.array([one.fits_probability or 0.0 for one in now])
    seconds = np.array([one.iteration_s or 0.0 for one in now])
    chosen = surest_choice(np.array(equal), seconds, fits)
    if fits[0] >= UNSURE or fits[chosen] < fits[0] + SURER:
        return ""
    number, slower = plan.entries[chosen].rank, seconds[chosen] / seconds[0] - 1
    return (
        f" A failed start counted in, number {number} is the better choice of these: it fits with "
        f"P {fits[chosen]:.2f}, and is {slower:.1%} slower by prediction (export --rank {number})."
    )
