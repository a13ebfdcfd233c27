"""Cosine and distance of two sets of tokens from their moments: one reading forward, two backward.

Both are functions of each token's means, variances and covariance. Written out with tensors of the features' size for
each step they take three times the memory traffic, and that is what alignment's time on a GPU goes into.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

_EPSILON = 1e-5  # that of torch's layer_norm
_TINY = 1e-30


def cosine_and_distance(
    a: Float[Tensor, "*g b n d"], b: Float[Tensor, "*g b n d"], *, weights: Float[Tensor, "b n"]
) -> tuple[Float[Tensor, "*g"], Float[Tensor, "*g"]]:
    """Mean cosine of the tokens, without gradient, and mean squared difference of the standardised ones (layer_norm).

    `weights` sum to 1 in each row and get no gradient. A token of zeros has cosine 0.
    """
    cos, distance = _Standardised.apply(a, b, weights)
    return cos, distance


def picked(layers: Sequence[Float[Tensor, "b n d"]], at: Int[Tensor, " m"]) -> Float[Tensor, "g b m d"]:
    """Tokens `at` (no place twice) of each of g layers, side by side: one copy, where select and stack make two."""
    return _Picked.apply(at, *layers)


class _Standardised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        var_a, mean_a = torch.var_mean(a, -1, correction=0)
        var_b, mean_b = torch.var_mean(b, -1, correction=0)
        # b about its mean: a's own mean then drops out of the covariance, but for what rounding left of b's
        centred = b - mean_b[..., None]
        cov = (a * centred).mean(-1) - mean_a * centred.mean(-1)
        rate_a, rate_b = (var_a + _EPSILON).rsqrt(), (var_b + _EPSILON).rsqrt()
        squares = (var_a + mean_a.square()) * (var_b + mean_b.square())
        cos = (cov + mean_a * mean_b) * squares.clamp_min(_TINY).rsqrt()
        # with both standardised: their variances, which ε keeps a little below 1, less twice their covariance
        joint = cov * rate_a * rate_b
        apart = var_a * rate_a.square() + var_b * rate_b.square() - 2.0 * joint
        weights = weights / weights.shape[0]
        ctx.save_for_backward(a, centred, mean_a, rate_a, rate_b, joint, weights)
        cos, distance = (torch.einsum("...bn,bn->...", x, weights) for x in (cos, apart))
        ctx.mark_non_differentiable(cos)
        return cos, distance

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, centred, mean_a, rate_a, rate_b, joint, weights = ctx.saved_tensors
        share = grad[..., None, None] * weights * (2.0 / a.shape[-1])
        mixed = (-share * rate_a * rate_b)[..., None]
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            # var / (var + ε) has the slope ε / (var + ε)², the covariance's term joint / (var + ε)
            own = share * rate_a.square() * (_EPSILON * rate_a.square() + joint)
            grad_a = torch.addcmul((-own * mean_a)[..., None], a, own[..., None])
            grad_a = torch.addcmul(grad_a, centred, mixed)
        if ctx.needs_input_grad[1]:
            own = share * rate_b.square() * (_EPSILON * rate_b.square() + joint)
            grad_b = torch.addcmul(-mixed * mean_a[..., None], centred, own[..., None])
            grad_b = torch.addcmul(grad_b, a, mixed)
        return grad_a, grad_b, None


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, at: Tensor, *layers: Tensor) -> Tensor:
        b, n, d = layers[0].shape
        out = layers[0].new_empty(len(layers), b, at.shape[0], d)
        for place, layer in zip(out, layers, strict=True):
            torch.index_select(layer, 1, at, out=place)
        ctx.save_for_backward(at)
        ctx.tokens = n
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (at,) = ctx.saved_tensors
        g, b, _, d = grad.shape
        if not any(ctx.needs_input_grad[1:]):
            return (None,) * (1 + g)
        # tokens that were not picked have no gradient; those that were are written once
        whole = grad.new_zeros(g, b, ctx.tokens, d).index_copy_(2, at, grad)
        return None, *whole.unbind()
