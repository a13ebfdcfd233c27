"""Norm and projections in plain PyTorch: the truth that every other implementation is tested against."""

from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

Kind = Literal["layer", "rms"]


class Norm(NamedTuple):
    """A norm over the last axis: LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019), and its weights.

    Only LayerNorm has a bias; either may come without weights.
    """

    kind: Kind
    eps: float
    weight: Float[Tensor, " d"] | None = None
    bias: Float[Tensor, " d"] | None = None


def normalised(x: Float[Tensor, "*b d"], norm: Norm | None) -> Float[Tensor, "*b d"]:
    """(x − mean) / √(variance + eps) · weight + bias; "rms" leaves the mean in. None: x itself."""
    if norm is None:
        return x
    centred = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
    y = centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    if norm.weight is not None:
        y = y * norm.weight
    return y if norm.bias is None else y + norm.bias


def norm_qkv(
    x: Float[Tensor, "b n d"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"] | None = None,
    *,
    heads: int,
    kv_heads: int | None = None,
    norm: Norm | None = None,
) -> tuple[Float[Tensor, "b h n k"], Float[Tensor, "b g n k"], Float[Tensor, "b g n k"]]:
    """Queries, keys and values of norm(x) in head layout.

    weight: the rows of q, then of k, then of v; c = (heads + 2 · kv_heads) · k. kv_heads: fewer than `heads` where
    groups of query heads share keys and values (Ainslie et al. 2023, GQA).
    """
    g = heads if kv_heads is None else kv_heads
    y = normalised(x, norm) @ weight.T
    y = y if bias is None else y + bias
    y = y.unflatten(-1, (heads + 2 * g, -1)).transpose(1, 2)
    return y[:, :heads], y[:, heads : heads + g], y[:, heads + g :]
