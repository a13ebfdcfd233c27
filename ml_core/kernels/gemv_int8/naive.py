"""Few rows times an int8 weight in plain PyTorch: the truth that every other implementation is tested against."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor

LEVELS = 127  # -128 is left out, so that the levels are symmetric
_TINY = 1e-12


def gemv_int8(
    x: Float[Tensor, "*b d"],
    weight: Int8[Tensor, "c d"],
    scale: Float[Tensor, " c"],
    bias: Float[Tensor, " c"] | None = None,
) -> Float[Tensor, "*b c"]:
    """x Wᵀ + bias with W[c, d] = scale[c] · weight[c, d], in x's dtype.

    Sums, scale and bias are taken in fp32 (in float64 where x is float64); the result is rounded once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = (x.to(wide) @ weight.to(wide).T) * scale.to(wide)
    y = y if bias is None else y + bias.to(wide)
    return y.to(x.dtype)


def quantize_rows(weight: Float[Tensor, "c d"]) -> tuple[Int8[Tensor, "c d"], Float[Tensor, " c"]]:
    """Levels and fp32 steps of a weight, one step an output channel: the largest magnitude over 127, no clipping."""
    exact = weight.detach().float()
    scale = exact.abs().amax(1).clamp_min(_TINY) / LEVELS if weight.shape[1] else exact.new_full(exact.shape[:1], _TINY)
    return torch.round(exact / scale[:, None]).clamp_(-LEVELS, LEVELS).to(torch.int8), scale
