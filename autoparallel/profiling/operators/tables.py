"""From samples to table files that `autoparallel.operators` reads.

The folder is complete by itself: the shipped tables of all other GPUs, and this one's own in front.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoparallel import catalog
from autoparallel.files import write_text
from autoparallel.hardware import Gpu
from autoparallel.operators import STAND_INS, WIRE_FACTOR
from autoparallel.profiling.operators.samples import Samples, key_of
from autoparallel.profiling.operators.shapes import TINY, Shapes
from autoparallel.units import US

Array = NDArray[np.float64]
MOST_RANKS = 128
LAST_LOG2 = 33
TILE_ROWS = 128.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the tables say of where they are from.

    Attributes:
        link_bytes_per_s: Nominal rate of the links that collectives were measured over, per GPU and
            direction: another cluster's collectives are scaled by it.
    """

    gpu: Gpu
    link_bytes_per_s: float
    device: str
    made_with: Mapping[str, str]
    shapes: Shapes

    def lines(self, **more: str) -> list[str]:
        """`# key: value` lines."""
        versions = ", ".join(f"{name} {value}" for name, value in self.made_with.items())
        own = {"gpu": self.gpu.name, "source": f"autoparallel measure-ops on {self.device}"}
        return [f"# {key}: {value}" for key, value in {**own, "versions": versions, **more}.items()]


def write_tables(folder: Path, samples: Samples, header: Header) -> tuple[str, ...]:
    """Write every table; returns the names of this machine's own."""
    shipped = catalog.data_dir() / "profiles" / "operators"
    stem = header.gpu.name
    for path in sorted(shipped.glob("*.csv")):
        if not (folder / path.name).exists() or path.name in ("attention.csv", "index.csv"):
            write_text(folder, path.name, path.read_text(encoding="utf-8"))
    own = {f"{stem}-gemm.csv": _gemm(samples, header)}
    own |= {f"{stem}-experts.csv": _experts(samples, header)}
    own |= {"attention.csv": _attention(samples, header, shipped)}
    if collectives := _collectives(samples, header):
        own[f"{stem}-collectives.csv"] = collectives
    own["index.csv"] = _index(header, shipped, bool(collectives))
    for name, text in own.items():
        write_text(folder, name, text)
    return tuple(own)


def _gemm(samples: Samples, header: Header) -> str:
    x = header.shapes
    precisions = sorted({words[0] for words, _ in samples.of("gemm")})
    passes = {p: _pass_factor(samples, x, p) for p in ("dgrad", "wgrad")}
    copied = 2 * x.stream_bytes / samples[key_of("stream", "copy", x.stream_bytes)]
    launches = {p: samples[key_of("gemm", p, "forward", 16, 16, 16)] for p in precisions}
    lines = header.lines(
        unit="us per product; m rows of activations, n outputs, k reduced",
        nature="measured: isolated kernels" + (" (tiny grid)" if x is TINY else ""),
        conversion="made non-decreasing along m, n and k",
        memory_bytes_per_s=f"{copied:.6g}",
        **{f"launch_us {p}": f"{s / US:.4g}" for p, s in launches.items()},
        **{"launch note": "a product of 16 x 16 x 16"},
        **{"pass_factor forward": "1"},
        **{f"pass_factor {p}": f"{factor:.4f}" for p, factor in passes.items()},
        training_factor="1",
    )
    lines.append(",".join(["precision", "m", "n", *(f"k={k}" for k in x.k)]))
    for precision in precisions:
        times = _gemm_grid(samples, x, precision)
        for i, m in enumerate(x.m):
            for j, n in enumerate(x.n):
                shown = [f"{t / US:.5g}" for t in times[i, j]]
                lines.append(",".join([precision, str(m), str(n), *shown]))
    return "\n".join(lines) + "\n"


def _gemm_grid(samples: Samples, x: Shapes, precision: str) -> Array:
    """Seconds on [m, n, k]; a shape slower than a larger one takes the larger one's time."""
    times = np.array(
        [
            [[samples[key_of("gemm", precision, "forward", m, n, k)] for k in x.k] for n in x.n]
            for m in x.m
        ]
    )
    for axis in range(3):
        times = np.flip(np.minimum.accumulate(np.flip(times, axis), axis), axis)
    return np.asarray(times, dtype=np.float64)


def _pass_factor(samples: Samples, x: Shapes, pass_: str) -> float:
    """Median time of a backward product over the forward product of the same sizes."""
    ratios = [
        samples[key_of("gemm", "bf16", pass_, m, n, k)]
        / samples[key_of("gemm", "bf16", "forward", m, n, k)]
        for m, n, k in zip(x.m, x.n, x.k, strict=False)
    ]
    return float(np.median(ratios))


def _attention(samples: Samples, header: Header, shipped: Path) -> str:
    """The shipped table with this GPU's rows behind, under its own name."""
    text = (shipped / "attention.csv").read_text(encoding="utf-8").rstrip("\n")
    names = next(line for line in text.splitlines() if line.startswith("generation,")).split(",")
    lengths = [float(name[2:]) for name in names if name.startswith("s=")]
    rows = []
    for pass_ in ("forward", "backward"):
        for width in header.shapes.head_dims:
            curve, half = _saturated(samples, header, pass_, width)
            shown = np.interp(np.log(lengths), np.log(list(curve)), list(curve.values()))
            nature = "measured at s=" + "/".join(map(str, curve)) + "; assumed flat outside"
            values = [f"{value:.5g}" for value in shown]
            named = [header.gpu.name, pass_, str(width), nature, f"{half:.4g}"]
            rows.append(",".join([*named, *values]))
    note = f"# rows of {header.gpu.name}: " + header.lines()[1][2:]
    return "\n".join([note, text, *rows]) + "\n"


def _saturated(
    samples: Samples, header: Header, pass_: str, width: int
) -> tuple[dict[int, float], float]:
    """Efficiency of many heads by length, and the waves at which half of it is reached.

    With e the efficiency at w waves of 128-query tiles, e = E w / (w + w0): two points of a length
    give w0, of which the median over lengths is kept, and the fullest one gives E.
    """
    x, gpu = header.shapes, header.gpu
    few, many = x.heads[0], x.heads[-1]
    points = {
        seq: [
            (_waves(seq, heads, gpu), _efficiency(samples, gpu, pass_, seq, heads, width))
            for heads in (few, many)
        ]
        for seq in x.seq_lengths
    }
    halves = []
    for (w1, e1), (w2, e2) in points.values():
        slope = w1 * w2 * (e2 - e1) / max(w2 * e1 - w1 * e2, 1e-12) if w2 * e1 > w1 * e2 else 0.0
        halves.append(min(max(slope, 0.0), 20.0))
    half = float(np.median(halves))
    return {seq: e * (w + half) / w for seq, (_, (w, e)) in points.items()}, half


def _waves(seq: int, heads: int, gpu: Gpu) -> float:
    return heads * seq / TILE_ROWS / gpu.streaming_multiprocessors


def _efficiency(samples: Samples, gpu: Gpu, pass_: str, seq: int, heads: int, width: int) -> float:
    """Share of the dense bf16 peak, causal FLOPs counted (2307.08691, section 4.1)."""
    flops = heads * seq * seq * 2 * width * (1.0 if pass_ == "forward" else 2.5)
    seconds = samples[key_of("attention", pass_, seq, heads, width)]
    return flops / seconds / gpu.peak_flops_per_s["bf16"]


def _collectives(samples: Samples, header: Header) -> str:
    """Empty without a measured group of two: then the collectives of a relative are borrowed."""
    first, last = header.shapes.collective_log2_bytes
    measured = sorted({int(words[1]) for words, _ in samples.of("collectives")})
    if not measured:
        return ""
    lines = header.lines(
        unit="us per collective; columns are bytes of the full buffer of one rank",
        nature=f"measured to {measured[-1]} ranks; assumed above (latency a doubling, wire bytes)",
        conversion=f"last bandwidth above 2^{last} bytes; a size slower than a larger one takes "
        "the larger one's time",
        link_bytes_per_s=f"{header.link_bytes_per_s:.6g}",
        **{"link note": "nominal, as `autoparallel discover` reads it"},
    )
    sizes = range(first, LAST_LOG2 + 1)
    lines.append(",".join(["op", "ranks", "nature", *(f"2^{x}" for x in sizes)]))
    for op in WIRE_FACTOR:
        own = {n: _curve(samples, op, n, header.shapes) for n in measured}
        for ranks in (2**i for i in range(1, int(math.log2(MOST_RANKS)) + 1)):
            nature = "measured" if ranks in own else "assumed"
            more = _more_ranks(own[measured[-1]], measured[-1], ranks)
            times = own.get(ranks, more)
            lines.append(",".join([op, str(ranks), nature, *(f"{t / US:.5g}" for t in times)]))
    return "\n".join(lines) + "\n"


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks


def _curve(samples: Samples, op: str, ranks: int, x: Shapes) -> Array:
    first, last = x.collective_log2_bytes
    times = np.array([samples[key_of("collectives", op, ranks, i)] for i in range(first, last + 1)])
    times = np.minimum.accumulate(times[::-1])[::-1]
    beyond = times[-1] * 2.0 ** np.arange(1, LAST_LOG2 - last + 1)
    return np.asarray(np.concatenate([times, beyond]), dtype=np.float64)


def _more_ranks(times: Array, measured: int, ranks: int) -> Array:
    """Wire bytes of the larger ring, and the latency of the smallest message once a doubling."""
    floor = times[0] * math.log2(ranks / measured)
    return np.asarray(times * _share(ranks) / _share(measured) + floor, dtype=np.float64)


def _experts(samples: Samples, header: Header) -> str:
    lines = header.lines(
        unit="us of one product of all experts on a rank: [tokens, hidden] x [hidden, width] each",
        note="not read by the cost model yet; for comparison with a GEMM of the same FLOPs",
    )
    lines.append("experts,tokens_per_expert,width,hidden,us,tflops")
    for words, seconds in samples.of("experts"):
        count, tokens, width, hidden = map(int, words)
        rate = 2.0 * count * tokens * width * hidden / seconds / 1e12
        lines.append(",".join([*words, f"{seconds / US:.5g}", f"{rate:.5g}"]))
    return "\n".join(lines) + "\n"


def _index(header: Header, shipped: Path, own_collectives: bool) -> str:
    """The shipped index with this GPU's row in front of any it had."""
    gpu = header.gpu
    text = (shipped / "index.csv").read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    by_gpu = {row["gpu"]: row for row in rows}
    relative = by_gpu.get(gpu.name) or by_gpu[STAND_INS.get(gpu.generation, "a100-sxm-80gb")]
    borrowed = "" if own_collectives else f"; collectives assumed: as {relative['gpu']}"
    mine = {
        "gpu": gpu.name,
        "collectives": gpu.name if own_collectives else relative["collectives"],
        "gemm": gpu.name,
        "attention": gpu.name,
        "gemm_time_factor": "1",
        "streaming_multiprocessors": str(gpu.streaming_multiprocessors),
        "peak_bf16_flops_per_s": f"{gpu.peak_flops_per_s['bf16']:.6g}",
        "nature": "measured" + borrowed,
    }
    kept: Sequence[Mapping[str, str]] = [mine, *(r for r in rows if r["gpu"] != gpu.name)]
    body = [",".join(mine), *(",".join(row[name] for name in mine) for row in kept)]
    return "\n".join([*comments, *body]) + "\n"
