"""A score as tables of words, for a screen or a Markdown file: title, columns, rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoparallel.counts import counted
from autoparallel.scoreboard.score import Score
from autoparallel.scoreboard.serving import METRICS, ServingTable, by_cell
from autoparallel.scoreboard.table import Table, time_errors

MIN_ROWS_OF_A_CELL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One table of words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        body = "\n".join(
            "| " + " | ".join(c.replace("|", "/") for c in row) + " |" for row in lines
        )
        return f"### {self.title}\n\n{body}\n"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent; a dash for none."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


ERROR_COLUMNS = ("rows", "median", "mean", "p90", "bias", "interval covers", "interval width")


def error_row(block: Mapping[str, Any]) -> tuple[str, ...]:
    """An error block under `ERROR_COLUMNS`."""
    names = ("median_ape", "mape", "p90_ape", "bias", "coverage_90", "median_relative_width")
    return (str(block["n"]), *(percent(block[name]) for name in names))


def headline(score: Score) -> Text:
    """Errors of everything that was measured."""
    kinds = score.memory["by_kind"]
    blocks = {
        "step time": score.time,
        "step time, without suspect rows": score.without_suspect["time"],
        "memory allocated, vocabulary stated": kinds["allocated_vocab_stated"],
        "memory allocated": kinds["allocated"],
        "memory reserved": kinds["reserved"],
        "memory of the device": kinds["device"],
    }
    rows = tuple((name, *error_row(block)) for name, block in blocks.items() if block["n"])
    return Text(title="Error", columns=("what", *ERROR_COLUMNS), rows=rows)


def figures(score: Score) -> Text:
    """Figures that are not errors of a quantity: over split groups, order, fitting."""
    return Text(title="Over groups", columns=("what", "figure"), rows=tuple(_figures(score)))


def _figures(score: Score) -> Iterator[tuple[str, str]]:
    macro, order, fits = score.macro, score.ranking, score.oom
    yield (
        f"step time, {counted(macro['groups'], 'split group')}: "
        "median of medians / mean of medians",
        f"{percent(macro['median_of_medians'])} / {percent(macro['mean_of_medians'])}",
    )
    yield "split groups with a median error within 15 %", percent(macro["within_15pct"])
    yield (
        f"order, {counted(order['groups'], 'search group')} of {order['distinct_layouts']} "
        "layouts: best in our top 3 / picked / picked within 3 %",
        " / ".join(percent(order[n]) for n in ("top3", "top1", "top1_within_3pct")),
    )
    yield (
        "regret of our pick: mean / worst",
        f"{percent(order['mean_regret'])} / {percent(order['max_regret'])}",
    )
    yield "rank correlation, mean", _number(order["spearman"])
    yield (
        f"called fitting, of {fits['n_oom']} that ran out of memory",
        percent(fits["false_fit_rate"]),
    )
    yield f"called too big, of {fits['n_ran']} that ran", percent(fits["false_oom_rate"])
    yield "Brier score of the probability to fit", _number(fits["brier"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


GROUP_COLUMNS = (
    "split group",
    *ERROR_COLUMNS,
    "peaks",
    "memory mean",
    "false fits",
    "false too big",
    "mean regret",
)


def groups(score: Score) -> Text:
    """Split groups, the largest median error first; those without times at the end."""

    def error(name: str) -> float:
        value = score.by_group[name]["time"]["median_ape"]
        return -1.0 if value is None else float(value)

    names = sorted(score.by_group, key=error, reverse=True)
    rows = tuple((name, *_group_row(score.by_group[name])) for name in names)
    return Text(title="By split group", columns=GROUP_COLUMNS, rows=rows)


def _group_row(blocks: Mapping[str, Any]) -> tuple[str, ...]:
    memory, fits = blocks["memory"], blocks["oom"]
    return (
        *error_row(blocks["time"]),
        str(memory["n"]),
        percent(memory["mape"]),
        percent(fits["false_fit_rate"]),
        percent(fits["false_oom_rate"]),
        percent(blocks["ranking"]["mean_regret"]),
    )


def serving_errors(block: Mapping[str, Any]) -> Text:
    """Errors of serving figures: all, then by model, GPU, backend and precision."""
    rows = [(f"{m}, all", *error_row(block[m])) for m in METRICS if block[m]["n"]]
    for cut in ("by_model", "by_gpu", "by_backend", "by_precision"):
        for name, part in block[cut].items():
            rows += [(f"{m}, {name}", *error_row(part[m])) for m in METRICS if part[m]["n"]]
    return Text(title="Serving", columns=("what", *ERROR_COLUMNS), rows=tuple(rows))


def serving_order(block: Mapping[str, Any]) -> Text:
    """How often the parallel sizes we would choose are the measured best."""
    order = block["ranking"]
    parts = {"all": order, **order["by_metric"]}
    rows = tuple(
        (
            name,
            str(part["groups"]),
            *(percent(part[n]) for n in ("top1", "top1_within_3pct", "mean_regret", "max_regret")),
        )
        for name, part in parts.items()
        if part["groups"]
    )
    columns = ("metric", "groups", "picked", "picked within 3 %", "mean regret", "worst regret")
    return Text(title="Serving: choice of parallel sizes", columns=columns, rows=rows)


def serving_worst_cells(table: ServingTable, top: int = 10) -> Text:
    """Where serving figures are most wrong."""
    rows = tuple((name, *error_row(block)) for name, block in by_cell(table)[:top])
    return Text(title="Serving: worst cells", columns=("cell", *ERROR_COLUMNS), rows=rows)


def serving_calibrated(block: Mapping[str, Any]) -> Text:
    """Mean errors of serving figures before and after a calibration, and with models left out."""
    stages = ("before", "after", "left_out")
    rows = tuple(
        (
            metric,
            str(block["after"][metric]["n"]),
            *(percent(block[s][metric]["mape"] if block[s] else None) for s in stages),
        )
        for metric in METRICS
    )
    columns = ("metric", "rows", "before", "after", "model left out")
    return Text(title="Mean error of serving figures", columns=columns, rows=rows)


def worst_cells(table: Table, top: int = 10) -> Text:
    """Split group x number of GPUs: where the step time is most wrong."""
    timed = table.take(table.timed)
    error = time_errors(timed).relative
    cells = np.array(
        [f"{g}, {n:.0f} GPUs" for g, n in zip(timed.group, timed.num_gpus, strict=True)]
    )
    found = []
    for cell in dict.fromkeys(cells.tolist()):
        mine = error[cells == cell]
        if len(mine) >= MIN_ROWS_OF_A_CELL:
            found.append((float(np.median(np.abs(mine))), cell, mine))
    found.sort(key=lambda item: -item[0])
    rows = tuple(
        (cell, str(len(mine)), percent(median), percent(float(np.median(mine))))
        for median, cell, mine in found[:top]
    )
    return Text(title="Worst cells", columns=("cell", "rows", "median", "bias"), rows=rows)
