"""What the built-in worker cannot run faithfully. No torch here: drivers ask before they launch."""

from __future__ import annotations

from autoparallel.errors import bad_value
from autoparallel.profiling.job import Job


def refuse(job: Job, *, cuda: bool, impl: str) -> None:
    """What this worker cannot run faithfully.

    Raises:
        ConfigError: the first such thing.
    """
    model, layout = job.model, job.layout
    te = impl == "te"
    refusals = (
        (not layout.framework.startswith("megatron"), "fw", layout.framework),
        (layout.schedule not in ("1f1b", "interleaved"), "sched", layout.schedule),
        (layout.zero_stage > 1, "zero", layout.zero_stage),
        (layout.shard_group_size > 0, "shard", layout.shard_group_size),
        (layout.precision not in ("bf16", "fp16") and not te, "prec", layout.precision),
        (layout.optimizer_offload_fraction > 0, "offload", layout.optimizer_offload_fraction),
        (layout.cuda_graph_scope != "none", "graph", layout.cuda_graph_scope),
        ("tp" in layout.overlap or "moe" in layout.overlap, "overlap", "+".join(layout.overlap)),
        (model.kv_lora_rank > 0, "kv_lora_rank", model.kv_lora_rank),
        (model.mtp_num_layers > 0, "mtp_num_layers", model.mtp_num_layers),
        (model.window_size > 0 and not te, "window_size", model.window_size),
        (impl == "local" and cuda, "impl", impl),
        (te and not cuda, "impl", impl),
    )
    for refused, name, value in refusals:
        if refused:
            raise bad_value(
                name,
                value,
                f"is not something the built-in worker runs (impl {impl})",
                "run your own script with --command",
            )
    _refuse_batch(job)


def _refuse_batch(job: Job) -> None:
    per_step = job.layout.micro_batch_size * job.data_parallel_size
    if job.global_batch_size % per_step:
        rule = f"is not a multiple of mbs x dp = {per_step}"
        raise bad_value("global_batch_size", job.global_batch_size, rule, "change the layout")
