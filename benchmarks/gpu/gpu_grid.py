"""Which runs: layers of GPT and Llama models on one GPU, alone and as one rank of a larger world.

`job` runs are world 1: hidden size x micro-batch x sequence, recomputation, precision. `rank` runs
stand in for the first, a middle and the last stage of four, at tensor parallel 1 to 8, in a process
group that is made up. The tiny form has the same runs at 1/32 of the width, for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from autoparallel.layout import Layout
from autoparallel.model import Model
from autoparallel.profiling.job import Job

SHRINK = 32
STAGES, REPLICAS = 4, 2
HIDDEN = (1024, 2048, 4096, 8192)
BATCHES = ((1, 2048), (4, 2048), (1, 8192))
"""Micro-batch and sequence length."""
TIMEOUT_S = 90.0
Kind = Callable[[int, int], Model]
"""Hidden size and layers -> a model."""
PIECES = ("job-gpt", "job-llama", "rank-gpt", "rank-llama")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the benchmark. `stage` is `alone`, `first`, `middle` or `last`."""

    piece: str
    stage: str
    job: Job


def gpt(hidden: int, layers: int) -> Model:
    """Layers as in GPT-3: LayerNorm, GELU, biases, learned positions, shared embeddings."""
    return Model(
        name=f"gpt-h{hidden}-l{layers}",
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 128,
        num_query_groups=hidden // 128,
        ffn_hidden_size=4 * hidden,
        vocab_size=51200,
        kv_channels=128,
        gated_linear_unit=False,
        activation="gelu",
        normalization="LayerNorm",
        add_bias_linear=True,
        untie_embeddings_and_output_weights=False,
        position_embedding_type="learned_absolute",
        max_position_embeddings=8192,
    )


def llama(hidden: int, layers: int) -> Model:
    """Layers as in Llama 3: RMSNorm, SwiGLU of width 3.5 h, grouped queries, rotary positions."""
    return Model(
        name=f"llama-h{hidden}-l{layers}",
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 128,
        num_query_groups=min(8, hidden // 128),
        ffn_hidden_size=7 * hidden // 2,
        vocab_size=32000,
        kv_channels=128,
    )


def runs(*, tiny: bool, device: str, steps: int, warmup_steps: int) -> list[Run]:
    """Every run, in an order in which a stopped benchmark still has some of each kind."""
    found = []
    for kind in (gpt, llama):
        name = "gpt" if kind is gpt else "llama"
        found += [Run(piece=f"job-{name}", stage="alone", job=job) for job in _alone(kind)]
        found += [Run(piece=f"rank-{name}", stage=stage, job=job) for stage, job in _ranks(kind)]
    return [replace(run, job=_settled(run.job, tiny, device, steps, warmup_steps)) for run in found]


def _settled(job: Job, tiny: bool, device: str, steps: int, warmup_steps: int) -> Job:
    """A run's job on this device."""
    sized = _shrunk(job) if tiny else job
    timed = replace(sized, steps=steps, warmup_steps=warmup_steps, timeout_s=TIMEOUT_S)
    return replace(timed, device=device, impl="sdpa")


def _layers(hidden: int) -> int:
    """Fewer of the wide layers, so that weights and optimizer fit an 80 GB GPU."""
    return max(2, min(8, 16384 // hidden))


def _alone(kind: Kind) -> Iterator[Job]:
    """World 1, two micro-batches a step."""
    for hidden in HIDDEN:
        for batch, seq in BATCHES:
            yield _job(kind, hidden, f"mbs{batch}", batch, seq)
    for hidden in (2048, 4096):
        for words in ("recompute=full", "recompute=core_attn", "prec=fp16"):
            yield _job(kind, hidden, f"mbs4 {words}", 4, 2048)
    yield _job(kind, 4096, "mbs1", 1, 2048, micro_batches=8)


def _job(kind: Kind, hidden: int, words: str, batch: int, seq: int, micro_batches: int = 2) -> Job:
    model = kind(hidden, _layers(hidden))
    return Job(
        model=model,
        layout=Layout.parse(f"{words} zero0"),
        num_gpus=1,
        global_batch_size=batch * micro_batches,
        seq_length=seq,
    )


def _ranks(kind: Kind) -> Iterator[tuple[str, Job]]:
    """Stages of a pipeline of four, two replicas with a sharded optimizer."""
    hidden = 8192 if kind is llama else 4096
    for words in ("tp1", "tp2", "tp4", "tp8", "tp8 sp"):
        tp = int(words[2])
        world = tp * STAGES * REPLICAS
        for stage, at in (("first", 0), ("middle", 1), ("last", STAGES - 1)):
            yield (
                stage,
                Job(
                    model=kind(hidden, 2 * STAGES),
                    layout=Layout.parse(f"{words} pp{STAGES} mbs1 zero1"),
                    num_gpus=world,
                    global_batch_size=2 * STAGES * REPLICAS,
                    seq_length=2048,
                    mode="rank",
                    rank=at * world // STAGES,
                ),
            )


def _shrunk(job: Job) -> Job:
    """The same run at 1/32 of width and length: eight heads, so that every tensor split divides."""
    model = job.model
    hidden = model.hidden_size // SHRINK
    small = replace(
        model,
        name=f"{model.name}-tiny",
        num_layers=min(model.num_layers, 2) if job.mode == "job" else STAGES,
        hidden_size=hidden,
        num_attention_heads=8,
        num_query_groups=8,
        ffn_hidden_size=model.ffn_hidden_size // SHRINK,
        vocab_size=512,
        kv_channels=hidden // 8,
        max_position_embeddings=model.max_position_embeddings // SHRINK,
    )
    return replace(job, model=small, seq_length=job.seq_length // SHRINK)
