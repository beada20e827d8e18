"""Register the model of `model.json` with torchtitan v0.2.2, on real data and on random tokens.

torchtitan imports this module by `experimental.custom_import`. `autoparallel` is the model on the
dataset `local` (a Hugging Face dataset with a text field); `autoparallel_mock` needs no files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS
from torchtitan.models.moe import MoEArgs
from torchtitan.protocols.train_spec import register_train_spec

_DESCRIBED = json.loads((Path(__file__).parent / "model.json").read_text())


class RandomTokens(IterableDataset):  # type: ignore[type-arg]
    """Endless sequences of random tokens and their successors."""

    def __init__(self, vocab_size: int, seq_len: int, seed: int) -> None:
        self.vocab_size, self.seq_len = vocab_size, seq_len
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        size = (self.seq_len + 1,)
        while True:
            tokens = torch.randint(self.vocab_size, size, generator=self.generator)
            yield {"input": tokens[:-1]}, tokens[1:]


def random_dataloader(
    dp_world_size: int, dp_rank: int, tokenizer: Any, job_config: Any, infinite: bool = True
) -> ParallelAwareDataloader:
    """Batches of random tokens, different ones on every replica."""
    training = job_config.training
    dataset = RandomTokens(_DESCRIBED["arguments"]["vocab_size"], training.seq_len, dp_rank)
    return ParallelAwareDataloader(
        dataset,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        batch_size=training.local_batch_size,
    )


def _local(path: str) -> Any:
    from datasets import load_dataset

    return load_dataset(path, split="train", streaming=True)


def _model_arguments(spec: Any) -> Any:
    """The family's own argument class with the values of `model.json`, none unknown."""
    kind = type(next(iter(spec.model_args.values())))
    values = dict(_DESCRIBED["arguments"])
    known = {f.name for f in fields(kind)}
    if unknown := values.keys() - known:
        raise ValueError(f"{kind.__name__} has no {sorted(unknown)}: not torchtitan v0.2.2?")
    if "moe_args" in values:
        values["moe_args"] = MoEArgs(**values["moe_args"])
    return kind(**values)


def _register() -> None:
    spec = import_module(f"torchtitan.models.{_DESCRIBED['family']}").get_train_spec()
    exact = replace(spec, model_args={"exported": _model_arguments(spec)})
    register_train_spec("autoparallel", exact)
    mock = replace(exact, build_dataloader_fn=random_dataloader, build_tokenizer_fn=None)
    register_train_spec("autoparallel_mock", mock)
    DATASETS["local"] = DatasetConfig(
        path="", loader=_local, sample_processor=lambda sample: str(sample["text"])
    )


_register()
