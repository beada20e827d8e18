"""The KV cache: bytes of a sequence, paged blocks, and how many tokens an engine has room for."""

from __future__ import annotations

import numpy as np

from autoparallel.inference.instance import Instance
from autoparallel.inference.setting import Setting
from autoparallel.model import Shape
from autoparallel.units import Num


def kv_elements_per_token(m: Shape, tensor_model_parallel_size: Num) -> Num:
    """Elements one token adds to one GPU in one full-attention layer.

    Grouped-query attention keeps `d_qk + d_v` of every KV head of the GPU: `ceil(g / tp)` heads,
    since heads are copied where tp > g. Latent attention keeps the compressed vector and the
    rotary part whole on every GPU (2405.04434, section 2.1.2).
    """
    heads = np.ceil(m.g / tensor_model_parallel_size)
    return np.where(np.asarray(m.r_kv) > 0, m.r_kv + m.d_rope, heads * (m.d_qk + m.d_v))


def kv_bytes(setting: Setting, instance: Instance, context_tokens: Num) -> Num:
    """KV cache of one sequence of `context_tokens` on one GPU, all layers of a stage.

    Layers with a sliding window keep no more than the window.
    """
    m = setting.shape
    layers = m.L / instance.pipeline_model_parallel_size
    per_token = (
        kv_elements_per_token(m, instance.tensor_model_parallel_size) * instance.kv_element_bytes
    )
    return layers * per_token * attended_tokens(m, context_tokens)


def attended_tokens(m: Shape, context_tokens: Num) -> Num:
    """Tokens of the context that a layer attends to, mean over the layers."""
    window = np.where(np.asarray(m.window) > 0, m.window, np.inf)
    share = np.where(np.asarray(m.window) > 0, m.window_fraction, 0.0)
    mean: Num = (1 - share) * context_tokens + share * np.minimum(context_tokens, window)
    return mean


def paged_tokens(setting: Setting, tokens: Num) -> Num:
    """Tokens a sequence occupies: whole blocks."""
    block = float(setting.backend.block_tokens)
    whole: Num = np.ceil(tokens / block) * block
    return whole
