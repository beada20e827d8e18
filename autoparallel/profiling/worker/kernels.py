"""The operations themselves, as calls without arguments, in torch.

GEMM sizes are the product's own: forward of a linear layer with T tokens, I inputs and O outputs is
(T, O, I). Weights lie as `torch.nn.Linear` keeps them, so the forward is TN, the gradient of the
input NN and that of the weight NT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional

Call = Callable[[], Any]
PASSES = ("forward", "dgrad", "wgrad")


def call_of(kind: str, words: tuple[str, ...], device: str) -> Call:
    """The operation that a sample's words name."""
    if kind == "gemm":
        m, n, k = map(int, words[2:])
        return gemm(words[0], m, n, k, device, words[1])
    if kind == "attention":
        seq, heads, width = map(int, words[1:])
        return attention(seq, heads, width, device, words[0])
    if kind == "experts":
        count, tokens, inner, hidden = map(int, words)
        return experts(count, tokens, inner, hidden, device)
    if words[0] == "copy":
        return stream(int(words[1]), device)
    return norm(int(words[1]), int(words[2]), device)


def gemm(precision: str, m: int, n: int, k: int, device: str, pass_: str = "forward") -> Call:
    """One product [m, k] x [k, n] with 16-bit output."""
    if precision == "fp8":
        return _fp8_gemm(m, n, k, device)
    a = torch.randn((k, m) if pass_ == "wgrad" else (m, k), device=device).bfloat16()
    b = torch.randn((n, k) if pass_ == "forward" else (k, n), device=device).bfloat16()
    left = a.t() if pass_ == "wgrad" else a
    right = b.t() if pass_ == "forward" else b
    out = torch.empty(m, n, device=device, dtype=torch.bfloat16)
    return lambda: torch.mm(left, right, out=out)


def _fp8_gemm(m: int, n: int, k: int, device: str) -> Call:
    """Tensor-wise scaled E4M3, which the GPUs with fp8 units have."""
    a = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
    b = torch.randn(n, k, device=device).to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def has_fp8(device: str) -> bool:
    """Whether the device multiplies fp8 by itself."""
    return device == "cuda" and torch.cuda.get_device_capability() >= (8, 9)


def attention(seq: int, heads: int, width: int, device: str, pass_: str) -> Call:
    """Causal attention of `heads` (batch x heads) sequences; `backward` alone, without forward."""
    q, k, v = (
        torch.randn(1, heads, seq, width, device=device).bfloat16().requires_grad_()
        for _ in range(3)
    )
    if pass_ == "forward":
        with torch.no_grad():
            inputs = q.detach(), k.detach(), v.detach()
        return lambda: functional.scaled_dot_product_attention(*inputs, is_causal=True)
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)


def stream(size_bytes: int, device: str) -> Call:
    """A copy that reads and writes `size_bytes` each."""
    source = torch.ones(size_bytes // 2, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def norm(tokens: int, hidden: int, device: str) -> Call:
    """RMSNorm, the usual memory-bound kernel of a layer."""
    x = torch.randn(tokens, hidden, device=device).bfloat16()
    weight = torch.ones(hidden, device=device, dtype=torch.bfloat16)
    return lambda: functional.rms_norm(x, (hidden,), weight)


def experts(count: int, tokens: int, width: int, hidden: int, device: str) -> Call:
    """One product of `count` experts with `tokens` each: a grouped kernel where torch has one."""
    x = torch.randn(count * tokens, hidden, device=device).bfloat16()
    weights = torch.randn(count, hidden, width, device=device).bfloat16()
    if device == "cuda" and torch.cuda.get_device_capability() >= (9, 0):
        ends = torch.arange(1, count + 1, device=device, dtype=torch.int32) * tokens
        grouped = getattr(torch, "_grouped_mm", None)
        if grouped is not None:
            return lambda: grouped(x, weights, offs=ends)
    parts = [x[i * tokens : (i + 1) * tokens] for i in range(count)]
    return lambda: [p @ w for p, w in zip(parts, weights, strict=True)]
