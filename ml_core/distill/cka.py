"""Linear CKA: how alike two layers' features are, whatever their widths, rotation and scale (Kornblith et al. 2019)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_TINY = 1e-12


def linear_cka(x: Float[Tensor, "*g m _"], y: Float[Tensor, "*g m _"]) -> Float[Tensor, "*g"]:
    """Debiased linear CKA of two descriptions of the same m rows: 1 alike up to rotation and scale, near 0 unrelated.

    The unbiased HSIC (Song et al. 2012) keeps small batches honest: the plain one tends to 1 where m is below the
    widths. NaN for m < 4, where the estimator does not exist; it may fall a little below 0.
    """
    if x.shape[-2] < 4:
        return x.new_full(x.shape[:-2], torch.nan)
    own, other = gram(x), gram(y)
    return hsic(own, other) * (hsic(own, own).clamp_min(_TINY) * hsic(other, other).clamp_min(_TINY)).rsqrt()


def cka_table(
    shown: Sequence[tuple[Sequence[Float[Tensor, "m _"]], Sequence[Float[Tensor, "m _"]]]],
) -> Float[Tensor, "s t"]:
    """CKA of every student layer with every teacher layer, HSIC averaged over batches (Nguyen et al. 2021).

    shown: for each batch the student's and the teacher's layers, as rows. Batches of fewer than four rows are left out.
    """
    sums: tuple[Tensor, Tensor, Tensor] | None = None
    for student, teacher in shown:
        if student[0].shape[0] < 4:
            continue
        own, other = [gram(x.double()) for x in student], [gram(y.double()) for y in teacher]
        parts = (
            torch.stack([torch.stack([hsic(k, q) for q in other]) for k in own]),
            torch.stack([hsic(k, k) for k in own]),
            torch.stack([hsic(q, q) for q in other]),
        )
        sums = parts if sums is None else (sums[0] + parts[0], sums[1] + parts[1], sums[2] + parts[2])
    if sums is None:
        return torch.full((0, 0), torch.nan)
    cross, own_self, other_self = sums
    return cross / (own_self.clamp_min(_TINY)[:, None] * other_self.clamp_min(_TINY)[None, :]).sqrt()


def gram(x: Float[Tensor, "*g m d"]) -> Float[Tensor, "*g m m"]:
    """Products of all rows, with the diagonal empty: what the unbiased HSIC reads.

    Rows are centred and scaled first: CKA does not mind, and single precision does.
    """
    x = x - x.mean(-2, keepdim=True)
    x = x * x.pow(2).mean((-2, -1), keepdim=True).clamp_min(_TINY).rsqrt()
    products = x @ x.mT / x.shape[-1]
    return products - torch.diag_embed(products.diagonal(dim1=-2, dim2=-1))


def hsic(k: Float[Tensor, "*g m m"], q: Float[Tensor, "*g m m"]) -> Float[Tensor, "*g"]:
    """Unbiased HSIC of two Gram matrices with empty diagonals (Song et al. 2012, equation 5), m ≥ 4."""
    m = k.shape[-1]
    rows_k, rows_q = k.sum(-1), q.sum(-1)
    trace = (k * q).sum((-2, -1))
    means = rows_k.sum(-1) * rows_q.sum(-1) / ((m - 1) * (m - 2))
    mixed = 2.0 / (m - 2) * (rows_k * rows_q).sum(-1)
    return (trace + means - mixed) / (m * (m - 3))
