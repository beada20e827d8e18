"""What an exporter is given: the job to write down, and how long and on what it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from autoparallel.errors import bad_value
from autoparallel.layout import Layout
from autoparallel.model import Model

PROFILE_STEPS = 50
"""Steps of a profiling run: enough to pass the warm-up and to have a steady median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is trained on, for how long, with which optimizer settings.

    Attributes:
        data_path: Megatron's blend (weights and prefixes); empty means mock data.
        tokenizer_type: `NullTokenizer` needs no files and takes the model's vocabulary size.
        force_load_balancing: Route tokens evenly over experts whatever the router says: for timing
            untrained weights, never for training.
        save: Checkpoint folder; empty writes none.
    """

    train_iters: int = PROFILE_STEPS
    lr: float = 1e-4
    min_lr: float = 1e-5
    lr_decay_style: str = "cosine"
    lr_warmup_iters: int = 5
    weight_decay: float = 0.1
    clip_grad: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    data_path: tuple[str, ...] = ()
    tokenizer_type: str = "NullTokenizer"
    tokenizer_model: str = ""
    force_load_balancing: bool = False
    save: str = ""
    save_interval: int = 1000
    distributed_timeout_minutes: int = 60

    @property
    def warmup_iters(self) -> int:
        """Steps of learning-rate warm-up, always fewer than all."""
        return min(self.lr_warmup_iters, self.train_iters - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One layout of one model on so many GPUs, and the run it is for.

    Attributes:
        generation: Of the GPU (`ampere`, `hopper`, `blackwell`): some settings depend on it.
        domain_gpus: Behind the same fast links.
    """

    model: Model
    layout: Layout
    num_gpus: int
    global_batch_size: int
    seq_length: int
    generation: str = "hopper"
    domain_gpus: int = 8
    run: Run = field(default_factory=Run)

    @property
    def data_parallel_size(self) -> int:
        """Replicas.

        Raises:
            ConfigError: the GPUs, the batch or the sharding group do not divide.
        """
        layout, size = self.layout, self.layout.model_parallel_size
        if self.num_gpus < size or self.num_gpus % size:
            rule = f"GPUs are not a multiple of tp x pp x cp = {size}"
            hint = "change the layout or the number of GPUs"
            raise bad_value("num_gpus", self.num_gpus, rule, hint)
        dp, batch = self.num_gpus // size, self.global_batch_size
        if batch < 1 or batch % (layout.micro_batch_size * dp):
            rule = f"is not a multiple of mbs {layout.micro_batch_size} x dp {dp}"
            raise bad_value("global_batch_size", batch, rule, "use a multiple of it")
        replicas = dp * layout.context_parallel_size
        if layout.shard_group_size and replicas % layout.shard_group_size:
            rule = f"does not divide the {replicas} replicas (dp x cp)"
            raise bad_value("shard", layout.shard_group_size, rule, "use a divisor of it")
        return dp

    @property
    def replica_batch_size(self) -> int:
        """Sequences one replica works through in a step."""
        return self.global_batch_size // self.data_parallel_size

    def profiling(self) -> TrainingJob:
        """The same job for timing: a few steps on mock data, experts evenly loaded, no checkpoint.

        Even routing is what the predictions assume, and untrained routers do not give it.
        """
        short = Run(force_load_balancing=bool(self.model.num_moe_experts))
        return replace(self, run=short)


def stage_sizes(model: Model, layout: Layout) -> tuple[int, ...]:
    """Decoder layers of every virtual stage, in the model's order.

    Raises:
        ConfigError: the layers do not divide, or the given stages do not add up.
    """
    pp, vpp = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    chunks, stages = pp * vpp, layout.stage_layers
    if not stages and model.num_layers % chunks:
        rule = f"layers are not a multiple of pp {pp} x vpp {vpp}"
        raise bad_value("num_layers", model.num_layers, rule, "give the layers as stages=...")
    if stages and (len(stages) != chunks or sum(stages) != model.num_layers):
        total = f"{model.num_layers} layers in all"
        rule = f"are not {chunks} stages (pp {pp} x vpp {vpp}) with {total}"
        raise bad_value("stages", ",".join(map(str, stages)), rule)
    return stages or (model.num_layers // chunks,) * chunks


def stage_modules(
    job: TrainingJob, layers: str, first: Sequence[str], last: Sequence[str]
) -> list[list[str]]:
    """Module names of every virtual stage: its layers, and what stands before and after all.

    Args:
        job: The job, with its stages.
        layers: Name of the list of layers.
        first: Modules in front of the first layer.
        last: Modules behind the last layer.
    """
    numbers = iter(range(job.model.num_layers))
    stages = [
        [f"{layers}.{i}" for i in islice(numbers, size)]
        for size in stage_sizes(job.model, job.layout)
    ]
    stages[0] = [*first, *stages[0]]
    stages[-1] = [*stages[-1], *last]
    return stages
