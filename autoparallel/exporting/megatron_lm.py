"""Megatron-LM's own command line for a layout: `pretrain_gpt.py` at core_v0.16.1.

A model and a layout become fields in Megatron's argument names, and one table turns fields into
flags. `arguments` returns the tokens; a file of them has one token a line (a flag and its value on
lines of their own), which bash's `mapfile -t` reads back without quoting and argparse's `@file`
form accepts. Megatron-LM does not switch that form on, so `script` uses `mapfile`.

Where the defaults of that version differ from what a layout means (biases, dropout 0.1, shared
embeddings, the allgather dispatcher, masks built in the data loader), the flag is always written.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from autoparallel.errors import bad_value
from autoparallel.exporting.job import Run, TrainingJob, stage_sizes
from autoparallel.exporting.megatron_flags import VERSION, tokens
from autoparallel.exporting.megatron_model import model_fields
from autoparallel.exporting.program import Program, node_script, one_line
from autoparallel.layout import Layout
from autoparallel.model import Model
from autoparallel.plan import megatron_fields

_NEW_GENERATIONS = ("blackwell", "rubin")


def arguments(
    model: Model,
    layout: Layout,
    num_gpus: int,
    global_batch_size: int,
    seq_length: int,
    run: Run | None = None,
) -> tuple[str, ...]:
    """Every argument of `pretrain_gpt.py` for this job, one token each.

    Args:
        model: What is trained.
        layout: How it is laid out.
        num_gpus: World size.
        global_batch_size: Sequences a step, over all replicas.
        seq_length: Tokens a sequence.
        run: Data, length and optimizer settings; mock data when left out.

    Raises:
        ConfigError: Megatron-LM core_v0.16.1 has no flags for this model or layout, or the GPUs or
            the batch do not divide.
    """
    job = TrainingJob(
        model=model,
        layout=layout,
        num_gpus=num_gpus,
        global_batch_size=global_batch_size,
        seq_length=seq_length,
        run=run or Run(),
    )
    return tokens(fields(job))


def program(job: TrainingJob, prefix: str = "") -> Program:
    """`args.txt` and how `pretrain_gpt.py` is started with it.

    `MEGATRON_LM` (the checkout) comes from the environment of the script.
    """
    name = f"{prefix}args.txt"
    return Program(
        version=f"Megatron-LM {VERSION}",
        files={name: text(tokens(fields(job)))},
        before=(_read(name),),
        command=_COMMAND,
        environment=environment(job.layout, job.generation),
    )


_COMMAND = '"${MEGATRON_LM:?the Megatron-LM checkout}/pretrain_gpt.py" "${arguments[@]}"'


def _read(arguments_file: str) -> str:
    return f'mapfile -t arguments < "$here"/{shlex.quote(arguments_file)}'


def fields(job: TrainingJob) -> dict[str, Any]:
    """The job in Megatron-LM's argument names, before the table."""
    model, layout, run = job.model, job.layout, job.run
    dp = job.data_parallel_size
    _refuse(model, layout)
    shared = megatron_fields(layout, dp)
    del shared["virtual_pipeline_model_parallel_size"]
    return {
        **model_fields(model, job.seq_length),
        **shared,
        **_stages(model, layout),
        **_context(model, layout),
        **_expert_sizes(model, layout),
        **_dispatcher(job),
        "global_batch_size": job.global_batch_size,
        **_sharding(layout),
        **_offload(layout),
        **_precision(layout),
        **_kernels(layout),
        **_training(model, run),
        **_data(model, run),
    }


def text(arguments: Sequence[str]) -> str:
    """The tokens as a file: one a line."""
    return "".join(f"{one_line('argument', token)}\n" for token in arguments)


def environment(layout: Layout, generation: str) -> dict[str, str]:
    """Environment variables of the job on GPUs of a `generation` (`ampere`, `hopper`, `blackwell`).

    Source: NVIDIA/Megatron-LM@core_v0.16.1 megatron/training/arguments.py (what it asserts about
    CUDA_DEVICE_MAX_CONNECTIONS and NCCL_GRAPH_REGISTER); NVIDIA-NeMo/Megatron-Bridge@067f987
    docs/performance-guide.md, docs/recipe-usage.md (the others, and 32 connections on Blackwell).
    """
    found = {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
    }
    if layout.overlap:
        found |= {"NVTE_FWD_LAYERNORM_SM_MARGIN": "16", "NVTE_BWD_LAYERNORM_SM_MARGIN": "16"}
    if layout.cuda_graph_scope != "none":
        found["NCCL_GRAPH_REGISTER"] = "0"
    if connections := _connections(layout, generation):
        found["CUDA_DEVICE_MAX_CONNECTIONS"] = connections
    return found


def script(
    environment: Mapping[str, str], num_nodes: int, gpus_per_node: int, arguments_file: str
) -> str:
    """A bash script that starts `pretrain_gpt.py` on one node; run it on every node."""
    started = Program(
        version=f"Megatron-LM {VERSION}",
        files={},
        before=(_read(arguments_file),),
        command=_COMMAND,
        environment=environment,
    )
    return node_script(started, num_nodes, gpus_per_node)


def _connections(layout: Layout, generation: str) -> str | None:
    """Hardware queues: 1 keeps a collective in front of the GEMM it overlaps, FSDP forbids that.

    8 is the driver's own default, written out so that an inherited 1 cannot reach an FSDP job.
    """
    overlapped = layout.tensor_model_parallel_size > 1 or layout.context_parallel_size > 1
    if layout.zero_stage > 1:
        return "8"
    if "moe" in layout.overlap or generation.startswith(_NEW_GENERATIONS):
        return "32" if overlapped or "moe" in layout.overlap else None
    return "1" if overlapped else None


def _refuse(model: Model, layout: Layout) -> None:
    """What core_v0.16.1 has no flags for."""
    if not layout.framework.startswith("megatron"):
        raise bad_value("fw", layout.framework, "is not Megatron-LM", "export it for its framework")
    if layout.schedule not in ("1f1b", "interleaved"):
        hint = "use sched=1f1b, or vpp with group=N for a more breadth-first order"
        raise bad_value("sched", layout.schedule, f"is not in Megatron-LM {VERSION}", hint)
    if layout.precision == "fp16" and layout.grad_reduce_dtype == "bf16":
        raise bad_value("grad", "bf16", "cannot go with prec=fp16 in Megatron-LM", "use grad=fp32")
    if "param" in layout.overlap and "grad" not in layout.overlap and layout.zero_stage:
        raise bad_value("overlap", "param", "needs overlap=grad as well", "use overlap=grad+param")
    if layout.optimizer_offload_fraction and not layout.zero_stage:
        rule = "needs the distributed optimizer, but zero_stage is 0"
        raise bad_value("offload", layout.optimizer_offload_fraction, rule, "use zero1")
    if layout.cuda_graph_scope == "full" and model.num_moe_experts:
        rule = "cannot capture dropless experts, which copy their sizes to the host"
        raise bad_value("graph", "full", rule, "use graph=attn or graph=moe")
    if layout.cuda_graph_scope == "moe" and not model.num_moe_experts:
        raise bad_value(
            "graph", "moe", f"needs experts, which {model.name} has not", "use graph=attn"
        )


def _expert_sizes(model: Model, layout: Layout) -> dict[str, Any]:
    if model.num_moe_experts:
        return {}
    if layout.expert_model_parallel_size > 1:
        rule = f"needs experts, which {model.name} has not"
        raise bad_value("ep", layout.expert_model_parallel_size, rule, "use ep1")
    return {"expert_model_parallel_size": None, "expert_tensor_parallel_size": None}


_DEEPEP_NODE = 8
_DEEPEP_RUNS_ON = ("ampere", "hopper", "blackwell")


def _dispatcher(job: TrainingJob) -> dict[str, Any]:
    """DeepEP, which sends a token once a node, for experts on several nodes of 8 NVIDIA GPUs.

    The framework `megatron-core` is predicted with it, as NVIDIA's recipes run; it has to be in the
    image. Inside a domain, and where it does not run, the all-to-all dispatcher stays.
    """
    layout, nodes = job.layout, job.domain_gpus == _DEEPEP_NODE
    ranks = layout.expert_model_parallel_size * layout.expert_tensor_parallel_size
    forwards = layout.framework == "megatron-core" and job.generation in _DEEPEP_RUNS_ON
    if not (forwards and nodes and ranks % _DEEPEP_NODE == 0 and ranks > _DEEPEP_NODE):
        return {}
    return {"moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": "deepep"}


def _stages(model: Model, layout: Layout) -> dict[str, Any]:
    """Layers of every stage: even, embedding and loss counted in, first / last, or spelled out."""
    pp, vpp = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    virtual = {"num_virtual_stages_per_pipeline_rank": vpp} if vpp > 1 else {}
    stages = stage_sizes(model, layout)
    if len(set(stages)) == 1:
        return virtual
    for named in (_accounted(stages, model.num_layers), _first_and_last(stages, pp, vpp)):
        if named:
            return named | virtual
    return {"pipeline_model_parallel_layout": _spelled(stages, model.mtp_num_layers)}


def _accounted(stages: tuple[int, ...], num_layers: int) -> dict[str, Any]:
    """The embedding, the loss or both as one more layer of an even split."""
    for embedding, loss in ((1, 1), (1, 0), (0, 1)):
        share = (num_layers + embedding + loss) // len(stages)
        if stages == (share - embedding, *[share] * (len(stages) - 2), share - loss):
            return {
                "account_for_embedding_in_pipeline_split": bool(embedding),
                "account_for_loss_in_pipeline_split": bool(loss),
            }
    return {}


def _first_and_last(stages: tuple[int, ...], pp: int, vpp: int) -> dict[str, Any]:
    """Another number of layers on the first and the last rank, the same in each of their chunks."""
    first, middle, last = stages[0], stages[1], stages[pp - 1]
    if pp == 1 or stages != (first, *[middle] * (pp - 2), last) * vpp or 0 in stages:
        return {}
    alone = pp == 2
    return {
        "decoder_first_pipeline_num_layers": first * vpp if alone or first != middle else None,
        "decoder_last_pipeline_num_layers": last * vpp if alone or last != middle else None,
    }


def _spelled(stages: tuple[int, ...], mtp_num_layers: int) -> str:
    """`Et*7|t*8|...|t*7L`: embedding, layers, extra prediction layers and loss, stage by stage."""
    cells = [f"t*{layers}" if layers else "" for layers in stages]
    cells[0] = "E" + cells[0]
    cells[-1] += "m" * mtp_num_layers + "L"
    return "|".join(cells)


def _context(model: Model, layout: Layout) -> dict[str, Any]:
    """Sizes of the two levels of `a2a+p2p`: as many heads apart as the heads of a rank allow."""
    cp, tp = layout.context_parallel_size, layout.tensor_model_parallel_size
    if cp == 1 or layout.cp_comm_type != "a2a+p2p":
        return {}
    groups = model.num_attention_heads if model.kv_lora_rank else model.num_query_groups
    heads = math.gcd(model.num_attention_heads // tp, max(groups // tp, 1))
    levels = [a for a in range(2, cp) if cp % a == 0 and heads % a == 0]
    if not levels:
        rule = f"has no two levels: cp {cp} needs a divisor that divides {heads} heads a rank"
        raise bad_value("cpcomm", layout.cp_comm_type, rule, "use cpcomm=p2p or cpcomm=a2a")
    return {"hierarchical_context_parallel_sizes": [levels[-1], cp // levels[-1]]}


def _sharding(layout: Layout) -> dict[str, Any]:
    """What Megatron-FSDP requires beside its own switch.

    Source: Megatron-LM@core_v0.16.1 docs/discussions/megatron-fsdp-user-guide.
    """
    if layout.zero_stage < 2:
        return {}
    return {"ckpt_format": "fsdp_dtensor", "gradient_accumulation_fusion": False}


def _offload(layout: Layout) -> dict[str, Any]:
    """Optimizer states on the host need the precision-aware optimizer, which names its dtypes."""
    if not layout.optimizer_offload_fraction:
        return {}
    return {
        "use_precision_aware_optimizer": True,
        "main_grads_dtype": layout.grad_reduce_dtype,
        "overlap_cpu_optimizer_d2h_h2d": True,
    }


def _precision(layout: Layout) -> dict[str, Any]:
    """Delayed scaling keeps the usual 1,024 steps of history (the flag's default is 1).

    A sharded optimizer gathers parameters in fp8, so that no half-precision copy stays.
    Source: NVIDIA-NeMo/Megatron-Bridge mixed_precision.py `bf16_with_fp8_delayed_scaling_mixed`.
    """
    gathers = layout.precision in ("fp8", "fp8-tensorwise") and layout.zero_stage == 1
    flags: dict[str, Any] = {"fp8_param_gather": True} if gathers else {}
    if layout.precision == "fp8":
        flags |= {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
    return flags


def _kernels(layout: Layout) -> dict[str, Any]:
    interleaved = layout.virtual_pipeline_model_parallel_size > 1
    return {
        "transformer_impl": "transformer_engine",
        "attention_backend": "auto",
        "cross_entropy_loss_fusion": True,
        "create_attention_mask_in_dataloader": False,
        "te_rng_tracker": layout.cuda_graph_scope != "none",
        "overlap_p2p_comm": "p2p" in layout.overlap or not interleaved,
    }


def _training(model: Model, run: Run) -> dict[str, Any]:
    return {
        "train_iters": run.train_iters,
        "lr": run.lr,
        "min_lr": run.min_lr,
        "lr_decay_style": run.lr_decay_style,
        "lr_warmup_iters": run.warmup_iters,
        "weight_decay": run.weight_decay,
        "clip_grad": run.clip_grad,
        "adam_beta1": run.adam_beta1,
        "adam_beta2": run.adam_beta2,
        "moe_router_force_load_balancing": run.force_load_balancing and bool(model.num_moe_experts),
        "eval_iters": 0,
        "log_interval": 1,
        "log_throughput": True,
        "manual_gc": True,
        "distributed_timeout_minutes": run.distributed_timeout_minutes,
        "save": run.save or None,
        "load": run.save or None,
        "save_interval": run.save_interval if run.save else None,
    }


def _data(model: Model, run: Run) -> dict[str, Any]:
    """Data and tokenizer; the null tokenizer adds one token of its own to the size it is given."""
    null = run.tokenizer_type == "NullTokenizer"
    return {
        "mock_data": not run.data_path,
        "data_path": list(run.data_path) or None,
        "split": "99,1,0",
        "tokenizer_type": run.tokenizer_type,
        "tokenizer_model": run.tokenizer_model or None,
        "vocab_size": model.vocab_size - 1 if null else None,
    }
