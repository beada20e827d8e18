"""What a framework cannot express: checks that several exporters share."""

from __future__ import annotations

from collections.abc import Collection

from autoparallel.errors import ConfigError, bad_value
from autoparallel.exporting.job import TrainingJob


def cannot(word: str, value: object, version: str, why: str, hint: str = "") -> ConfigError:
    """The error for a word of the layout that `version` has no setting for."""
    return bad_value(word, value, f"cannot be written for {version}: {why}", hint)


def refuse_megatron_words(job: TrainingJob, version: str) -> None:
    """What only Megatron has: CUDA graph scopes, its all-to-all overlap, its schedules' groups.

    Raises:
        ConfigError: the layout uses one of them.
    """
    layout = job.layout
    pp = layout.pipeline_model_parallel_size
    if layout.cuda_graph_scope != "none":
        why = "it captures no part of a layer in CUDA graphs"
        raise cannot("graph", layout.cuda_graph_scope, version, why, "use graph=none")
    if "moe" in layout.overlap:
        why = "it does not overlap the experts' all-to-all"
        raise cannot("overlap", "moe", version, why, "leave moe out")
    if missing := [name for name in ("grad", "param") if name not in layout.overlap]:
        why = "it always overlaps gradient reduction and parameter gathering"
        hint = f"add {missing[0]} to overlap"
        raise cannot("overlap", "+".join(layout.overlap) or "none", version, why, hint)
    if layout.microbatch_group_size_per_vp_stage not in (0, pp):
        why = f"its interleaved schedule takes groups of pp {pp}"
        group = layout.microbatch_group_size_per_vp_stage
        raise cannot("group", group, version, why, "leave group out")
    if layout.tensor_model_parallel_size > 1 and not layout.sequence_parallel:
        why = "tensor parallelism there always splits the sequence between the matrices"
        raise cannot("sp", "off", version, why, "add sp")


def refuse_beside_fsdp2(job: TrainingJob, version: str, schedules: Collection[str]) -> None:
    """What FSDP2 cannot express, whatever drives it, and schedules that the driver lacks.

    Raises:
        ConfigError: the layout uses one of them.
    """
    layout = job.layout
    refuse_megatron_words(job, version)
    if layout.zero_stage < 2:
        why = "FSDP2 shards gradients and optimizer states always"
        raise cannot("zero", layout.zero_stage, version, why, "use zero2 or zero3")
    if layout.schedule not in schedules:
        raise cannot("sched", layout.schedule, version, f"its schedules are {', '.join(schedules)}")
    if fraction := layout.optimizer_offload_fraction:
        why = "its offload moves parameters and gradients too"
        raise cannot("offload", fraction, version, why, "leave offload out")


def refuse_prediction_layers(job: TrainingJob, version: str) -> None:
    """Extra prediction layers, which Hugging Face's models carry in their config and do not train.

    Raises:
        ConfigError: the model has some.
    """
    if job.model.mtp_num_layers:
        why = "it does not train extra prediction layers"
        hint = "search with model.mtp_num_layers=0 to train without"
        raise cannot("model.mtp_num_layers", job.model.mtp_num_layers, version, why, hint)


def every_nth_layer(job: TrainingJob, sizes: tuple[int, ...], version: str) -> int:
    """`n` when one layer in `n` is recomputed, 1 for every layer, 0 for none.

    Raises:
        ConfigError: full recomputation that is not one layer in n on every stage.
    """
    layout = job.layout
    if layout.recompute_granularity != "full":
        return 0
    count, size = layout.recompute_num_layers, sizes[0]
    if layout.recompute_method == "uniform" and count == 1:
        return 1
    shown = f"full/{layout.recompute_method}/{count}"
    whole = count and len(set(sizes)) == 1 and size % count == 0
    if layout.recompute_method == "block" and whole:
        return size // count
    why = f"it recomputes one layer in n, and stages have {','.join(map(str, sizes))} layers"
    hint = "use full/uniform/1, or full/block/N with N dividing the layers of every stage"
    raise cannot("recompute", shown, version, why, hint)
