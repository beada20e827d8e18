"""Real Megatron-Core training steps on the CPU, repeated: the noise that a regression gate meets.

    python benchmarks/repeated_steps.py --runs 60 --out benchmarks/measured/cpu_steps.csv

Every run is a fresh set of processes (one a rank, gloo) that builds the same small GPT model, warms
up and times each step. Two jobs take turns: one rank, and two ranks in tensor parallelism. Rows are
appended, so a collection can be spread over hours and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

JOBS = {"one-rank": 1, "tp2": 2}
WARMUP, STEPS = 3, 12
COLUMNS = ("job", "run", "started_utc", "load_1min", "step", "iteration_s")
LAYERS, HIDDEN, HEADS, SEQ, VOCABULARY, MICRO_BATCHES = 4, 128, 4, 128, 512, 4
TIME_LIMIT_S = 180


def main() -> None:
    """Collect runs, or be one rank of one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=10, help="runs a job")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two runs")
    parser.add_argument("--out", type=Path, default=Path("cpu_steps.csv"))
    parser.add_argument("--rank", action="store_true", help="be one rank of a run")
    asked = parser.parse_args()
    if asked.rank:
        print(json.dumps(rank_steps()))
        return
    for _ in range(asked.runs):
        for job, ranks in JOBS.items():
            append(asked.out, job, run(ranks))
        time.sleep(asked.pause)


def append(path: Path, job: str, found: dict[str, Any]) -> None:
    """Add one run's steps to the file."""
    fresh = not path.exists()
    if fresh:
        path.parent.mkdir(parents=True, exist_ok=True)
    number = 0 if fresh else 1 + max(int(row["run"]) for row in csv.DictReader(path.open()))
    with path.open("a", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if fresh:
            writer.writerow(COLUMNS)
        for step, seconds in enumerate(found["seconds"]):
            start = (job, number, found["started"], f"{found['load']:.2f}")
            writer.writerow((*start, step, f"{seconds:.6f}"))


def run(ranks: int) -> dict[str, Any]:
    """One run: the slowest rank's time of every step."""
    started, load = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), os.getloadavg()[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [_spawn(rank, ranks, port) for rank in range(ranks)]
    try:
        answers = [p.communicate(timeout=TIME_LIMIT_S)[0] for p in processes]
    finally:
        for process in processes:
            process.kill()
    times = [json.loads(answer.splitlines()[-1]) for answer in answers]
    slowest = [max(of_step) for of_step in zip(*times, strict=True)]
    return {"started": started, "load": load, "seconds": slowest[WARMUP:]}


def _spawn(rank: int, ranks: int, port: str) -> subprocess.Popen[str]:
    settings = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_PORT": port}
    fixed = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "--rank"],
        env={**os.environ, **settings, **fixed},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def rank_steps() -> list[float]:
    """Seconds of every step of this rank, warm-up among them."""
    import torch
    import torch.distributed as dist

    _stand_in_for_cuda(torch)
    from megatron.core import parallel_state, tensor_parallel

    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=ranks, create_gloo_process_groups=False
    )
    tensor_parallel.model_parallel_cuda_manual_seed(1234)
    step = _training_step(torch, ranks)
    seconds = []
    for _ in range(WARMUP + STEPS):
        dist.barrier()
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    dist.destroy_process_group()
    return seconds


def _stand_in_for_cuda(torch: Any) -> None:
    """What Megatron-Core 0.16 asks of `torch.cuda`, answered for the CPU."""
    torch.set_num_threads(1)
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *_, **__: None
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    torch.cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
    import megatron.core.jit
    import megatron.core.tensor_parallel.random as random

    megatron.core.jit.disable_jit_fuser()
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    tensors = {}
    for name in ("tensor", "zeros", "ones", "empty", "full", "arange"):
        tensors[name] = getattr(torch, name)
        setattr(torch, name, _on_cpu(tensors[name]))


def _on_cpu(make: Any) -> Any:
    def made(*args: Any, **flags: Any) -> Any:
        if str(flags.get("device", "")).startswith("cuda"):
            flags["device"] = "cpu"
        return make(*args, **flags)

    return made


def _training_step(torch: Any, ranks: int) -> Any:
    """A step of the small model: gradient accumulation over micro-batches, then Adam."""
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        tensor_model_parallel_size=ranks,
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
    )
    config.finalize_model_grads_func = finalize_model_grads
    plain = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(),
        vocab_size=VOCABULARY,
        max_sequence_length=SEQ,
        position_embedding_type="rope",
    )
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), plain)
    settings = OptimizerConfig(optimizer="adam", lr=1e-3, min_lr=0.0, clip_grad=0.0)
    optimizer = get_megatron_optimizer(settings, [model], use_gloo_process_groups=False)
    tokens = torch.randint(0, VOCABULARY, (1, SEQ))
    positions = torch.arange(SEQ)[None]
    work = get_forward_backward_func()

    def forward(batches: Any, of: Any) -> Any:
        out = of(next(batches), positions, None, labels=tokens)
        return out, lambda loss: (loss.mean(), {})

    def step() -> None:
        model.zero_grad_buffer()
        optimizer.zero_grad()
        work(
            forward_step_func=forward,
            data_iterator=iter([tokens] * MICRO_BATCHES),
            model=model,
            num_microbatches=MICRO_BATCHES,
            seq_length=SEQ,
            micro_batch_size=1,
            forward_only=False,
        )
        optimizer.step()

    return step


def versions() -> dict[str, str]:
    """What the steps are made with."""
    return {name: version(name) for name in ("torch", "megatron-core", "numpy")}


if __name__ == "__main__":
    main()
