"""Norm, MLP and residual in plain PyTorch: the truth that every other implementation is tested against."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ml_core.kernels.norm_qkv.naive import Norm, normalised

Activation = Literal["gelu", "gelu_tanh", "silu"]


def activated(x: Float[Tensor, "*b f"], activation: Activation) -> Float[Tensor, "*b f"]:
    """gelu: x Φ(x) by erf; gelu_tanh: its approximation by tanh (both Hendrycks and Gimpel 2016); silu: x σ(x)."""
    if activation == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if activation == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * torch.sigmoid(x)


def norm_up(
    x: Float[Tensor, "*b d"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"] | None = None,
    *,
    activation: Activation,
    gated: bool = False,
    norm: Norm | None = None,
) -> Float[Tensor, "*b f"]:
    """activation(norm(x) Wᵀ + b), c = f; gated (Shazeer 2020, SwiGLU): c = 2f, the gate's rows first, then the up's."""
    y = normalised(x, norm) @ weight.T
    y = y if bias is None else y + bias
    if not gated:
        return activated(y, activation)
    gate, up = y.chunk(2, dim=-1)
    return activated(gate, activation) * up


def linear_residual(
    x: Float[Tensor, "*b f"],
    weight: Float[Tensor, "d f"],
    bias: Float[Tensor, " d"] | None,
    residual: Float[Tensor, "*b d"],
    *,
    after: Norm | None = None,
) -> Float[Tensor, "*b d"]:
    """after(residual + x Wᵀ + b); `after` is the norm of a post-LN block."""
    y = residual + x @ weight.T
    return normalised(y if bias is None else y + bias, after)
