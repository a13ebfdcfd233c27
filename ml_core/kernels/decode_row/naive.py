"""The five operators of a one-row step in plain PyTorch: the truth that the kernels are tested against.

All of one row; x (1 d). A weight is dense, or int8 with a step an output channel (`scale`). Sums, norms and what
follows them are taken in fp32 (in float64 where x is float64) and rounded once.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Parts = tuple[Tensor, Tensor | None, Tensor | None]  # weight (c d), scale (c) or None, bias (c) or None


def normed(x: Float[Tensor, "1 d"], norm: Float[Tensor, " d"], parts: Parts, *, eps: float) -> Float[Tensor, "1 c"]:
    """RMSNorm(x) Wᵀ + b, in fp32."""
    return _product(_normed(x, norm, eps=eps), parts)


def added(x: Float[Tensor, "1 c"], y: Float[Tensor, "1 d"], parts: Parts) -> Float[Tensor, "1 c"]:
    """x + y Wᵀ + b."""
    return (x.to(_wide(x)) + _product(y.to(_wide(y)), parts)).to(x.dtype)


def gated(x: Float[Tensor, "1 d"], norm: Float[Tensor, " d"], parts: Parts, *, eps: float) -> Float[Tensor, "1 f"]:
    """silu(gate) · up of RMSNorm(x); the weight's rows are gate's f, then up's f."""
    gate, up = _product(_normed(x, norm, eps=eps), parts).chunk(2, dim=-1)
    return (functional.silu(gate) * up).to(x.dtype)


def turned(
    x: Float[Tensor, "1 d"],
    norm: Float[Tensor, " d"],
    parts: Parts,
    *,
    eps: float,
    cos: Float[Tensor, "p k"],
    sin: Float[Tensor, "p k"],
    position: Int[Tensor, " 1"],
    keys: Float[Tensor, "1 g m k"],
    values: Float[Tensor, "1 g m k"],
) -> Float[Tensor, "h k"]:
    """Queries of RMSNorm(x), turned to `position` (RoPE by halves); keys and values are written into their slot.

    The weight's rows are h heads of queries, g of keys, g of values.
    """
    g, k = keys.shape[1], keys.shape[3]
    y = _product(_normed(x, norm, eps=eps), parts).view(-1, k)
    h = y.shape[0] - 2 * g
    first, second = y[: h + g].chunk(2, dim=-1)
    by = [each[position].to(y.dtype) for each in (cos, sin)]
    rotated = y[: h + g] * by[0] + torch.cat([-second, first], dim=-1) * by[1]
    keys[0, :, position] = rotated[h:, None].to(keys.dtype)
    values[0, :, position] = y[h + g :, None].to(values.dtype)
    return rotated[:h].to(x.dtype)


def attended(
    q: Float[Tensor, "h k"],
    keys: Float[Tensor, "1 g m k"],
    values: Float[Tensor, "1 g m k"],
    *,
    position: Int[Tensor, " 1"],
) -> Float[Tensor, "1 c"]:
    """Attention of each query over the slots up to `position`, itself included; heads behind one another."""
    wide, repeats = _wide(q), q.shape[0] // keys.shape[1]
    k, v = (x[0].to(wide).repeat_interleave(repeats, dim=0) for x in (keys, values))
    scores = (k @ q.to(wide)[:, :, None])[..., 0] * q.shape[1] ** -0.5
    seen = torch.arange(keys.shape[2], device=q.device) <= position
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights[:, None] @ v.masked_fill(~seen[:, None], 0.0)).reshape(1, -1).to(q.dtype)


def _normed(x: Tensor, norm: Tensor, *, eps: float) -> Tensor:
    return functional.rms_norm(x.to(_wide(x)), x.shape[-1:], norm.to(_wide(x)), eps)


def _product(x: Tensor, parts: Parts) -> Tensor:
    weight, scale, bias = parts
    y = x @ weight.to(x.dtype).T
    y = y if scale is None else y * scale.to(x.dtype)
    return y if bias is None else y + bias.to(x.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
