"""W8A8 in plain PyTorch, integers in int64: the truth that the kernels are tested against, bit for bit."""

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

ZERO = 128  # levels are stored as uint8 = level + 128
LEVELS = 127
TINY = 1e-12


def quantize_rows(x: Float[Tensor, "m d"]) -> tuple[UInt8[Tensor, "m d"], Float[Tensor, "m 1"]]:
    """Levels + 128, and one step a row: its largest magnitude over 127; a half rounds up. In fp32."""
    x = x.float()
    step = x.abs().amax(-1, keepdim=True).clamp_min(TINY) / LEVELS
    return (x * step.reciprocal()).add(ZERO + 0.5).to(torch.uint8), step


def linear_w8a8(
    levels: UInt8[Tensor, "m d"],
    step: Float[Tensor, "m 1"],
    weight: Int8[Tensor, "c d"],
    scale: Float[Tensor, " c"],
    bias: Float[Tensor, " c"] | None = None,
) -> Float[Tensor, "m c"]:
    """(Σ level · weight) · scale · step + bias: the sum exact, then rounded to fp32, then each factor once."""
    total = ((levels.long() - ZERO) @ weight.long().t()).float()
    out = total * scale * step
    return out if bias is None else out + bias
