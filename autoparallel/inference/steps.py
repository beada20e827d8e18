"""Time of one engine step: `mixed_step` of decoding sequences and prompt tokens, with its parts.

A step passes a batch through all layers once. With pipeline stages it is the time one micro-batch
takes through all of them; as many micro-batches are in flight as there are stages.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from autoparallel.inference.instance import Instance
from autoparallel.inference.kernels import (
    all_reduce_s,
    all_to_all_s,
    decode_attention_s,
    elementwise_s,
    gemm_s,
    longer,
    prompt_attention_s,
)
from autoparallel.inference.kv_cache import attended_tokens, kv_elements_per_token
from autoparallel.inference.setting import Setting, activation_bytes
from autoparallel.units import Num, indicator

HALF = 2.0
"""Bytes of a bf16 activation."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTime:
    """Parts of one step; they add up to `total`. Every field is a scalar or [N]."""

    gemm_s: Num
    attention_s: Num
    experts_s: Num
    tp_comm_s: Num
    ep_comm_s: Num
    pp_comm_s: Num
    elementwise_s: Num
    launch_s: Num
    host_s: Num

    @property
    def total(self) -> Num:
        """Sum of the parts."""
        whole: Num = sum(getattr(self, f.name) for f in fields(self))
        return whole


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What one step works on, over the whole replica (one micro-batch of it with stages).

    Attributes:
        decoding: Sequences that generate one token each.
        context_tokens: Tokens each of them attends to, mean.
        prompt_tokens: New prompt tokens of the step.
        prompt_context: Tokens each new prompt token attends to, mean: half of a whole prompt, more
            after a cached prefix or earlier chunks.
        prompts: Prompts these tokens belong to.
        padding: Rows without a sequence that fill the batch up to a captured CUDA graph.
    """

    decoding: Num = 0.0
    context_tokens: Num = 0.0
    prompt_tokens: Num = 0.0
    prompt_context: Num = 0.0
    prompts: Num = 1.0
    padding: Num = 0.0


def mixed_step(setting: Setting, instance: Instance, batch: Batch) -> StepTime:
    """Parts of a step with decoding sequences and prompt tokens together."""
    copies = instance.attention_data_parallel_size
    tokens = (batch.decoding + batch.padding + batch.prompt_tokens) / copies
    sequences = (
        batch.decoding + batch.prompts * indicator(np.asarray(batch.prompt_tokens) > 0)
    ) / copies
    layers = setting.shape.L
    parts = {
        "gemm_s": dense_gemms_s(setting, instance, tokens)
        + logits_s(setting, instance, sequences + batch.padding / copies),
        "attention_s": layers * attention_s(setting, instance, batch),
        "experts_s": experts_s(setting, instance, tokens),
        "tp_comm_s": tp_comm_s(setting, instance, tokens),
        "ep_comm_s": ep_comm_s(setting, instance, tokens),
        "pp_comm_s": pp_comm_s(setting, instance, tokens),
        "elementwise_s": layers * elementwise_s(setting, tokens),
        "launch_s": launch_s(setting),
    }
    device_s: Num = sum(parts.values())
    return StepTime(**parts, host_s=host_s(setting, sequences, batch, device_s))


# --- linear layers -------------------------------------------------------------------------------


def dense_gemms_s(setting: Setting, instance: Instance, tokens: Num) -> Num:
    """Projections of attention, dense MLPs, routers and shared experts, all layers."""
    m, tp = setting.shape, instance.tensor_model_parallel_size
    own, wide = setting.attention_precision, setting.precision
    mlp = _mlp_s(setting, wide, tokens, m.f / tp)
    projections = attention_gemms_s(setting, instance, tokens, own)
    shared = _mlp_s(setting, wide, tokens, np.maximum(m.f_s, 1.0) / tp) * indicator(
        np.asarray(m.f_s) > 0
    )
    router = gemm_s(setting, "bf16", tokens, np.maximum(m.E, 1.0), m.h)
    moe = (shared + router) * indicator(np.asarray(m.E) > 0)
    return m.L * projections + (m.L - m.L_moe) * mlp + m.L_moe * moe


def _mlp_s(setting: Setting, precision: str, tokens: Num, width: Num) -> Num:
    """Up (and gate) projection into `width` and down again."""
    m = setting.shape
    up = gemm_s(setting, precision, tokens, (m.k - 1) * width, m.h)
    return up + gemm_s(setting, precision, tokens, m.h, width)


def attention_gemms_s(setting: Setting, instance: Instance, tokens: Num, precision: str) -> Num:
    """Projections into queries, keys and values and out of the heads, one layer.

    Latent attention: the down-projections are whole on every GPU, the head projections are split
    (2405.04434, section 2.1); absorbed or not, the same weights are read.
    """
    m, tp = setting.shape, instance.tensor_model_parallel_size
    out = gemm_s(setting, precision, tokens, m.h, m.a * m.d_v / tp)
    if not np.any(np.asarray(m.r_kv) > 0):
        width = m.a * m.d_qk / tp + np.ceil(m.g / tp) * (m.d_qk + m.d_v)
        return gemm_s(setting, precision, tokens, width, m.h) + out
    down = gemm_s(setting, precision, tokens, m.r_q + m.r_kv + m.d_rope, m.h)
    queries = gemm_s(setting, precision, tokens, m.a * m.d_qk / tp, np.maximum(m.r_q, 1.0))
    latent = gemm_s(setting, precision, tokens, m.a * (m.d_qk - m.d_rope + m.d_v) / tp, m.r_kv)
    return down + queries + latent + out


def logits_s(setting: Setting, instance: Instance, sequences: Num) -> Num:
    """Output matrix, in bf16, for the sequences that get a token."""
    m = setting.shape
    return gemm_s(setting, "bf16", sequences, m.V / instance.tensor_model_parallel_size, m.h)


# --- attention -----------------------------------------------------------------------------------


def attention_s(setting: Setting, instance: Instance, batch: Batch) -> Num:
    """Attention of one layer: cached tokens streamed for the decodes, prompts computed."""
    m, tp = setting.shape, instance.tensor_model_parallel_size
    copies = instance.attention_data_parallel_size
    heads = m.a / tp
    decoding = batch.decoding / copies
    seen = attended_tokens(m, batch.context_tokens)
    cache = decoding * seen * kv_elements_per_token(m, tp) * instance.kv_element_bytes
    latent = np.asarray(m.r_kv) > 0
    width = np.where(latent, 2 * m.r_kv + m.d_rope, m.d_qk + m.d_v)
    flops = 2.0 * decoding * seen * heads * width
    pairs = batch.prompt_tokens / copies * attended_tokens(m, batch.prompt_context)
    length = 2.0 * np.maximum(batch.prompt_context, 1.0)
    return (
        decode_attention_s(setting, cache, flops)
        + setting.constants.decode_attention_s * indicator(np.asarray(batch.decoding) > 0)
        + prompt_attention_s(setting, pairs, length, heads)
    )


# --- experts -------------------------------------------------------------------------------------


def distinct_experts(experts: Num, chosen: Num, tokens: Num) -> Num:
    """Experts that at least one of `tokens` tokens goes to: `E (1 - (1 - K/E)^tokens)`."""
    share = np.minimum(chosen / np.maximum(experts, 1.0), 1.0 - 1e-12)
    return experts * -np.expm1(tokens * np.log1p(-share))


def padding_rows(rows: Num, most: Num) -> Num:
    """Rows that fill the tiles of an expert with `rows` tokens: `most` of many, fewer of few.

    Engines take smaller tiles where an expert has few tokens, so that no more than half is empty.
    """
    return most * rows / (rows + most + 1e-9)


def experts_s(setting: Setting, instance: Instance, tokens: Num) -> Num:
    """Routed experts of all MoE layers, on the fullest expert rank.

    `tokens` is of one attention copy; the experts see those of all copies.
    """
    m, c = setting.shape, setting.constants
    if not np.any(np.asarray(m.E) > 0):
        return 0.0 * tokens
    ep = instance.expert_model_parallel_size
    expert_tp = instance.stage_gpus / ep
    everyone = tokens * instance.attention_data_parallel_size
    hit = np.maximum(distinct_experts(m.E, m.K, everyone) / ep, 1.0)
    imbalance = 1.0 + (c.expert_imbalance - 1.0) * indicator(np.asarray(ep) > 1)
    tokens_each = everyone * m.K / ep / hit * imbalance
    rows = tokens_each + padding_rows(tokens_each, c.expert_padding)
    width = m.f_e / expert_tp
    up, down = (
        gemm_s(setting, setting.precision, rows, n, k, hit, c.moe_efficiency)
        for n, k in (((m.k - 1) * width, m.h), (m.h, width))
    )
    moved = elementwise_s(setting, tokens, m.K / expert_tp / 4.0)
    return m.L_moe * (up + down + moved + c.moe_s)


# --- communication and the host ------------------------------------------------------------------


def tp_comm_s(setting: Setting, instance: Instance, tokens: Num) -> Num:
    """Two all-reduces of the hidden state a layer over the tensor-parallel group.

    In a MoE layer with several attention copies the second one is the expert exchange's.
    """
    m, tp = setting.shape, instance.tensor_model_parallel_size
    exchanged = indicator(np.asarray(instance.attention_data_parallel_size) > 1)
    reductions = 2.0 * m.L - m.L_moe * exchanged
    return reductions * all_reduce_s(setting, HALF * tokens * m.h, tp)


def ep_comm_s(setting: Setting, instance: Instance, tokens: Num) -> Num:
    """Tokens to their experts and back, where the attention copies hold different tokens.

    A token goes, quantised as the experts read it, to every GPU that holds a part of one of its
    experts (to all of them where experts are split by their matrices), and comes back in bf16.
    """
    m = setting.shape
    exchanged = indicator(np.asarray(instance.attention_data_parallel_size) > 1)
    ep = instance.expert_model_parallel_size
    copies = np.minimum(np.maximum(m.K, 1.0), ep) * (instance.stage_gpus / ep)
    sent = tokens / instance.tensor_model_parallel_size * m.h * copies
    there = all_to_all_s(setting, activation_bytes(setting.precision) * sent, instance.stage_gpus)
    back = all_to_all_s(setting, HALF * sent, instance.stage_gpus)
    return m.L_moe * (there + back) * exchanged


def pp_comm_s(setting: Setting, instance: Instance, tokens: Num) -> Num:
    """Hidden state from stage to stage."""
    pp, machine = instance.pipeline_model_parallel_size, setting.machine
    crosses = np.asarray(instance.gpus) > machine.domain_gpus
    bandwidth = np.where(crosses, machine.inter_bytes_per_s, machine.intra_bytes_per_s)
    latency = np.where(crosses, machine.inter_latency_s, machine.intra_latency_s)
    message = HALF * tokens * setting.shape.h / instance.tensor_model_parallel_size
    return (pp - 1.0) * (latency + message / bandwidth)


def launch_s(setting: Setting) -> Num:
    """Kernels too small to be bound by anything but their own start, all layers."""
    c = setting.constants
    return setting.shape.L * c.kernels_per_layer * c.kernel_s


def host_s(setting: Setting, sequences: Num, batch: Batch, device_s: Num) -> Num:
    """What the GPU waits for the host in a step that takes it `device_s`.

    The host schedules, and starts the kernels of a step with prompt tokens one by one, since it
    runs outside the CUDA graphs. Launches go on while the GPU works; so does the scheduling of the
    next step where an engine overlaps it. The longer of the two counts, joined smoothly.
    """
    m, c, slower = setting.shape, setting.constants, setting.host_slowdown
    prompted = indicator(np.asarray(batch.prompt_tokens) > 0)
    prompts = c.prompt_s * batch.prompts * prompted
    scheduling = (c.step_s + c.sequence_s * sequences + prompts) * slower
    launches = c.prefill_step_s + c.prefill_layer_s * m.L + c.prefill_moe_s * m.L_moe
    launches = launches * prompted * slower
    if setting.backend.overlapped:
        return longer(scheduling + launches, device_s) - device_s
    return scheduling + longer(launches, device_s) - device_s
