"""Relations between tokens: what can be matched between models of any two widths without a projector."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ml_core.distill.features import HeadTaps
from ml_core.errors import InputError

_TINY = 1e-24


def heads_loss(
    student: HeadTaps,
    teacher: HeadTaps,
    *,
    relation_heads: int,
    weights: Float[Tensor, "b n"],
    mask: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, ""]:
    """KL(teacher ‖ student) of the QQ, KK and VV relations, summed over the three (MiniLMv2, Wang et al. 2021).

    A relation is softmax(XXᵀ/√e) of X = the queries (keys, values), all heads side by side and split again into
    `relation_heads` of width e. Averaged over relation heads and rows, over tokens by `weights`, which sum to 1 in each
    row; `mask` leaves padding out of the softmax. Raises InputError where relation_heads does not divide a width.
    """
    pairs = ((student.q, teacher.q), (student.k, teacher.k), (student.v, teacher.v))
    losses = [_relation_kl(a, b, heads=relation_heads, weights=weights, mask=mask) for a, b in pairs]
    return torch.stack(losses).sum()


def similarity_loss(
    a: Float[Tensor, "*g b n _"], b: Float[Tensor, "*g b n _"], *, weights: Float[Tensor, "b n"]
) -> Float[Tensor, "*g"]:
    """Squared difference of the token-by-token cosine matrices, padding left out."""
    squared = (similarity(a) - similarity(b)).pow(2)
    return (squared * (weights[:, :, None] * weights[:, None, :])).sum((-3, -2, -1)) / weights.shape[0]


def similarity(x: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n n"]:
    """Cosines of all rows with all rows; a row of zeros has 0 with every row."""
    # the products are scaled, not the rows: of those there is far less
    products = x @ x.transpose(-1, -2)
    rates = products.diagonal(dim1=-2, dim2=-1).clamp_min(_TINY).rsqrt()
    return products * rates[..., :, None] * rates[..., None, :]


def _relation_kl(a: Tensor, b: Tensor, *, heads: int, weights: Tensor, mask: Tensor | None) -> Tensor:
    own, other = (_log_relation(x, heads=heads, mask=mask) for x in (a, b))
    divergence = (other.exp() * (other - own)).sum(-1).mean(1)
    return (divergence * weights.to(divergence.dtype)).sum() / a.shape[0]


def _log_relation(x: Tensor, *, heads: int, mask: Tensor | None) -> Tensor:
    if x.shape[-1] % heads:
        raise InputError(f"relation_heads: {heads} do not divide the width {x.shape[-1]}")
    # a softmax over many tokens wants single precision at least
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = x @ x.transpose(-1, -2) / math.sqrt(x.shape[-1])
    if mask is not None:
        # not −∞: its product with a zero probability would be no number
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)
