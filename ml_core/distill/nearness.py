"""How near two layers' tokens are: cosines, and features brought to one scale before they are compared."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ml_core.distill.features import masked_mean


def mean_cosine(
    a: Float[Tensor, "*g b n d"], b: Float[Tensor, "*g b n d"], *, weights: Float[Tensor, "b n"]
) -> Float[Tensor, "*g"]:
    """Mean cosine of the tokens; `weights` sum to 1 in each row."""
    # not functional.cosine_similarity: that one divides both sides, token by token, and keeps the quotients
    lengths = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return ((a * b).sum(-1) / lengths.clamp_min(1e-8) * weights).sum((-2, -1)) / weights.shape[0]


def standardised(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Mean 0 and variance 1 over the last dimension."""
    return functional.layer_norm(x, x.shape[-1:])


def standardised_alike(
    a: Float[Tensor, "*b d"], b: Float[Tensor, "*b d"]
) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d"]]:
    """Both by b's mean and spread: where the two lie on one grid, they still do after."""
    mean, spread = b.mean(-1, keepdim=True), b.var(-1, unbiased=False, keepdim=True)
    rate = (spread + 1e-5).rsqrt()
    return (a - mean) * rate, (b - mean) * rate


def distances(
    students: Float[Tensor, "s b n d"], teachers: Float[Tensor, "t b n d"], *, weights: Float[Tensor, "b n"]
) -> Float[Tensor, "s t"]:
    """Mean squared difference of every student layer from every teacher layer, of standardised means over tokens.

    Without gradient.
    """
    a, b = (standardised(masked_mean(x.detach(), weights)) for x in (students, teachers))
    size = a.shape[1] * a.shape[2]
    squares = a.pow(2).sum((1, 2))[:, None] + b.pow(2).sum((1, 2))[None, :]
    return (squares - 2.0 * torch.einsum("sbd,tbd->st", a, b)) / size
