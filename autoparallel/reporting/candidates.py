"""The candidates of a search, thinned to what a browser draws at once.

Read from `candidates.parquet`: the fitting front of time against memory is kept whole, then the
fastest, then an even sample of the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoparallel.candidates_file import FILE
from autoparallel.constants import FITS
from autoparallel.errors import bad_value
from autoparallel.layout import RECOMPUTE_MODULES, Layout
from autoparallel.ranking import Ranked
from autoparallel.units import GIB

DRAWN = 3_000
FASTEST = 800
LINES = 240
Column = NDArray[np.float64]

_KNOBS = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "vpp": "virtual_pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
    "mbs": "micro_batch_size",
}
_WORDS = ("recompute_granularity", "recompute_modules")
_SCORES = ("iteration_s", "memory_bytes", "fits_probability")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Columns of N distinct candidates, the fastest first.

    Attributes:
        knobs: Letter (`tp`, `pp`, ...) to column.
        recompute: `none`, `full` or the modules, for every row.
        in_file: Rows of the file, in which a candidate may stand twice.
    """

    knobs: Mapping[str, Column]
    recompute: NDArray[np.str_]
    iteration_s: Column
    memory_bytes: Column
    fits_probability: Column
    in_file: int

    @property
    def size(self) -> int:
        """Number of candidates."""
        return len(self.iteration_s)

    def take(self, rows: NDArray[Any]) -> Candidates:
        """The rows at `rows`."""
        return Candidates(
            knobs={name: column[rows] for name, column in self.knobs.items()},
            recompute=self.recompute[rows],
            iteration_s=self.iteration_s[rows],
            memory_bytes=self.memory_bytes[rows],
            fits_probability=self.fits_probability[rows],
            in_file=self.in_file,
        )

    def words(self, row: int) -> str:
        """A row as the words of its layout that are drawn."""
        sizes = [f"{name}{int(column[row])}" for name, column in self.knobs.items()]
        plain = [word for word in sizes if word not in ("vpp1", "cp1", "ep1")]
        kind = str(self.recompute[row])
        return " ".join(plain + ([f"recompute={kind}"] if kind != "none" else []))


def read_candidates(folder: Path | None) -> Candidates | None:
    """The candidates saved in `folder`; None without a file.

    Raises:
        ConfigError: a file that is not what a search wrote.
    """
    path = folder / FILE if folder else None
    if path is None or not path.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:  # Arrow opens no path that is not UTF-8
            table = pq.read_table(file, columns=[*_KNOBS.values(), *_WORDS, *_SCORES])
        table = table.combine_chunks()
        numbers = {n: _numbers(table[n]) for n in (*_KNOBS.values(), *_SCORES)}
        kind, modules = (_texts(table[n]) for n in _WORDS)
        _check_words({*np.unique(kind), *np.unique(modules)})
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = f"is not a table of candidates ({str(error).splitlines()[0][:120]})"
        raise bad_value("file", str(path), reason, "run the search again") from None
    return _distinct(numbers, np.where(kind == "selective", modules, kind))


def _numbers(column: Any) -> Column:
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _texts(column: Any) -> NDArray[np.str_]:
    """A dictionary column as words, through its codes."""
    chunks = [
        np.asarray(chunk.dictionary.to_pylist())[chunk.indices.to_numpy()]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.str_)


def of_ranked(result: Ranked) -> Candidates | None:
    """The candidates that a search has in memory; None when it evaluated nothing."""
    tables = [t for t in (result.best, result.sample) if t is not None]
    if not tables:
        return None
    numbers: dict[str, Column] = {}
    for letter, name in _KNOBS.items():
        numbers[name] = np.concatenate([_whole(getattr(t.knobs, letter), t.size) for t in tables])
    for name in _SCORES:
        numbers[name] = np.concatenate([getattr(t.scores, name) for t in tables])
    layouts = (t.knobs.layout(row) for t in tables for row in range(t.size))
    return _distinct(numbers, np.array([_recompute_name(x) for x in layouts]))


def _whole(value: Any, size: int) -> Column:
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (size,))


def _recompute_name(layout: Layout) -> str:
    kind = layout.recompute_granularity
    return "+".join(layout.recompute_modules) if kind == "selective" else kind


def _check_words(found: set[str]) -> None:
    """Nothing is shown that is not a word of the grammar."""
    known = {"", "none", "full", "selective", *RECOMPUTE_MODULES}
    if odd := {part for words in found for part in words.split("+")} - known:
        raise ValueError(f"unknown word {sorted(odd)[0]!r}")


def _distinct(numbers: Mapping[str, Column], recompute: NDArray[np.str_]) -> Candidates:
    """Every candidate once, the fastest first."""
    time, used = numbers["iteration_s"], numbers["memory_bytes"]
    keys = [*(numbers[name] for name in _KNOBS.values()), used, time]
    order = np.lexsort(keys)
    new = np.ones(len(order), dtype=bool)
    if len(order):
        new[1:] = np.any([k[order][1:] != k[order][:-1] for k in keys], axis=0)
    rows = order[new]
    return Candidates(
        knobs={letter: numbers[name][rows] for letter, name in _KNOBS.items()},
        recompute=recompute[rows],
        iteration_s=time[rows],
        memory_bytes=used[rows],
        fits_probability=numbers["fits_probability"][rows],
        in_file=len(time),
    )


def front(found: Candidates) -> NDArray[np.intp]:
    """Fitting candidates that no other fitting one beats in both time and memory, by memory."""
    rows = np.flatnonzero(found.fits_probability >= FITS)
    order = rows[np.lexsort((found.iteration_s[rows], found.memory_bytes[rows]))]
    best = np.minimum.accumulate(found.iteration_s[order])
    ahead = np.concatenate([[np.inf], best[:-1]]) if len(order) else best
    return order[found.iteration_s[order] < ahead]


def thinned(found: Candidates, most: int = DRAWN) -> Candidates:
    """At most `most` candidates: the front, the fastest, and every n-th of the rest."""
    if found.size <= most:
        return found
    first = np.union1d(front(found), np.arange(min(FASTEST, most // 2)))[:most]
    rest = np.setdiff1d(np.arange(found.size), first)
    even = np.linspace(0, len(rest) - 1, max(most - len(first), 0)).astype(np.intp)
    return found.take(np.union1d(first, rest[even]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The best fitting candidate of every tp and pp; None where there is none.

    Attributes:
        considered: Candidates of a cell, fitting or not.
    """

    tp: tuple[int, ...]
    pp: tuple[int, ...]
    seconds: tuple[tuple[float | None, ...], ...]
    words: tuple[tuple[str, ...], ...]
    considered: tuple[tuple[int, ...], ...]


def grid(found: Candidates) -> Grid:
    """The cells of tp x pp, rows by pp."""
    tps, pps = (np.unique(found.knobs[name]) for name in ("tp", "pp"))
    seconds, words, counts = [], [], []
    for pp in pps:
        cells = [np.flatnonzero((found.knobs["tp"] == t) & (found.knobs["pp"] == pp)) for t in tps]
        best = [rows[found.fits_probability[rows] >= FITS][:1] for rows in cells]
        seconds.append(tuple(float(found.iteration_s[b[0]]) if len(b) else None for b in best))
        words.append(tuple(found.words(int(b[0])) if len(b) else "" for b in best))
        counts.append(tuple(len(rows) for rows in cells))
    return Grid(
        tp=tuple(int(t) for t in tps),
        pp=tuple(int(p) for p in pps),
        seconds=tuple(seconds),
        words=tuple(words),
        considered=tuple(counts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One upright axis: its name, where each line crosses it (0 to 1), and its marks."""

    name: str
    heights: tuple[float, ...]
    marks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Fitting candidates as lines through upright axes.

    Attributes:
        band: For every line the index of its band of step times, 0 the fastest.
        bands: What the bands are called.
    """

    axes: tuple[Axis, ...]
    band: tuple[int, ...]
    bands: tuple[str, ...]
    words: tuple[str, ...]


def parallel_lines(found: Candidates, most: int = LINES) -> Lines | None:
    """The fastest fitting candidates and an even sample of the others; None without two."""
    rows = np.flatnonzero(found.fits_probability >= FITS)
    if len(rows) < 2:
        return None
    few = len(rows) <= most
    spread = np.linspace(most // 3, len(rows) - 1, most - most // 3).astype(np.intp)
    kept = found.take(rows if few else rows[np.union1d(np.arange(most // 3), spread)])
    shift: Column = np.asarray(0.02 * (np.arange(kept.size) * 0.618 % 1 - 0.5))
    axes = [
        _ordinal(name, kept.knobs[name], shift) for name in kept.knobs if _varies(kept.knobs[name])
    ]
    if _varies(kept.recompute):
        axes.append(_ordinal("recomp.", kept.recompute, shift))
    slowness = kept.iteration_s / kept.iteration_s[0] - 1
    limits = (0.05, 0.2)
    return Lines(
        axes=(
            *axes,
            _scaled("GiB", kept.memory_bytes / GIB),
            _scaled("step s", kept.iteration_s),
        ),
        band=tuple(int(b) for b in np.digitize(slowness, limits)),
        bands=("within 5 % of the best", "5 to 20 % slower", "more than 20 % slower"),
        words=tuple(kept.words(i) for i in range(kept.size)),
    )


def _varies(column: NDArray[Any]) -> bool:
    return bool((column != column[0]).any())


def _ordinal(name: str, column: NDArray[Any], shift: Column) -> Axis:
    """Known values at even distances; lines are set a little apart."""
    values, place = np.unique(column, return_inverse=True)
    step = 1 / (len(values) - 1)
    shown = [str(int(v)) if isinstance(v, np.floating) else str(v) for v in values]
    return Axis(
        name=name,
        heights=tuple(place * step + shift),
        marks=tuple((i * step, text) for i, text in enumerate(shown)),
    )


def _scaled(name: str, column: Column) -> Axis:
    """A measure between its extremes, in proportion to its logarithm."""
    low, high = np.log(column.min()), np.log(column.max())
    span = float(high - low) or 1.0
    ticks = {t: float(np.exp(low + t * span)) for t in (0.0, 0.25, 0.5, 0.75, 1.0)}
    return Axis(
        name=name,
        heights=tuple((np.log(column) - low) / span),
        marks=tuple((t, f"{v:,.0f}" if v >= 1000 else f"{v:.3g}") for t, v in ticks.items()),
    )
