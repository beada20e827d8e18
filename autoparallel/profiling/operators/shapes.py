"""What is measured: the grids of a GPU, and tiny ones that a CPU gets through in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """One grid a kind.

    Attributes:
        attention: Sequence lengths, head widths and numbers of heads (batch x heads).
        experts: Experts on a rank, tokens an expert, inner width, hidden size.
        collective_log2_bytes: First and last size of collectives, octaves between.
    """

    m: tuple[int, ...]
    n: tuple[int, ...]
    k: tuple[int, ...]
    seq_lengths: tuple[int, ...]
    head_dims: tuple[int, ...]
    heads: tuple[int, ...]
    experts: tuple[tuple[int, int, int, int], ...]
    stream_bytes: int
    collective_log2_bytes: tuple[int, int]


FULL = Shapes(
    m=(512, 1024, 2048, 4096, 8192, 16384, 32768),
    n=(512, 1024, 2048, 4096, 5120, 8192, 12288, 16384, 51200, 65536),
    k=(1024, 2048, 4096, 5120, 8192, 12288, 16384),
    seq_lengths=(512, 1024, 2048, 4096, 8192, 16384, 32768),
    head_dims=(64, 128, 192),
    heads=(8, 32, 128),
    experts=tuple(
        (experts, tokens, width, hidden)
        for experts, width, hidden in ((8, 14336, 4096), (16, 1536, 4096), (32, 2048, 7168))
        for tokens in (128, 512, 2048)
    ),
    stream_bytes=1 << 30,
    collective_log2_bytes=(10, 30),
)
TINY = Shapes(
    m=(32, 128),
    n=(64, 256),
    k=(64, 256),
    seq_lengths=(128, 256),
    head_dims=(32, 64),
    heads=(2, 8),
    experts=((2, 32, 128, 64),),
    stream_bytes=1 << 24,
    collective_log2_bytes=(10, 18),
)
