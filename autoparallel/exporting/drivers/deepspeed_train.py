"""Train a Hugging Face model with DeepSpeed: `torchrun deepspeed_train.py DS_CONFIG RUN`.

DS_CONFIG is what `deepspeed.initialize` takes, RUN the length and the data; `config.json` beside
this file is the model. Without data the tokens are random.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import AutoConfig, AutoModelForCausalLM


def batches(run: dict[str, Any], size: int, vocab_size: int, rank: int) -> Iterator[torch.Tensor]:
    """Tokens [size, seq_length]: endless random ones, or those of a tokenized dataset."""
    length = int(run["seq_length"])
    if run["data"] is None:
        generator = torch.Generator().manual_seed(rank)
        while True:
            yield torch.randint(vocab_size, (size, length), generator=generator)
    from datasets import load_from_disk

    rows = load_from_disk(run["data"]).with_format("torch")
    ranks = torch.distributed.get_world_size()
    place = rank
    while True:
        picked = [rows[(place + i * ranks) % len(rows)]["input_ids"][:length] for i in range(size)]
        place += size * ranks
        yield torch.stack(picked)


def main() -> None:
    """Build the model, wrap it, train it."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    run = json.loads(Path(sys.argv[2]).read_text())
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed()
    description = AutoConfig.from_pretrained(str(Path(__file__).parent))
    half = torch.float16 if "fp16" in settings else torch.bfloat16
    sharded = settings["zero_optimization"]["stage"] == 3
    with deepspeed.zero.Init(enabled=sharded, config_dict_or_path=settings):
        model = AutoModelForCausalLM.from_config(
            description, torch_dtype=half, attn_implementation="sdpa"
        )
    if run["recompute"]:
        model.gradient_checkpointing_enable()
    engine, _, _, _ = deepspeed.initialize(model=model, config=settings)
    size = settings["train_micro_batch_size_per_gpu"]
    tensor = settings.get("tensor_parallel", {}).get("autotp_size", 1)
    replica = torch.distributed.get_rank() // tensor
    data = batches(run, size, description.vocab_size, replica)
    for step in range(run["steps"]):
        start = time.perf_counter()
        for _ in range(settings["gradient_accumulation_steps"]):
            tokens = next(data).to(engine.device)
            loss = engine(input_ids=tokens, labels=tokens, use_cache=False).loss
            engine.backward(loss)
            engine.step()
        torch.cuda.synchronize()
        if torch.distributed.get_rank() == 0:
            took, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated()
            print(f"step {step} loss {loss.item():.4f} iteration_s {took:.4f} peak_bytes {peak}")
        if run["save"] and (step + 1) % run["save_interval"] == 0:
            engine.save_checkpoint(run["save"])


if __name__ == "__main__":
    main()
