"""Attention pooling of the teacher's tokens onto the student's token grid, where the two counts differ."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TokenResampler(nn.Module):
    """Every student position looks at the teacher's tokens around the same relative place, with a learned width.

    The weights depend on positions and on one learned content score, so they are convex: the student is always
    aligned with a mean of real teacher tokens, never with something that was learned to be easy.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.log_width = nn.Parameter(torch.zeros(()))
        self.score = nn.Parameter(torch.zeros(width))

    def forward(
        self,
        tokens: list[Float[Tensor, "b m _"]],
        *,
        n: int,
        mask: Bool[Tensor, "b m"] | None = None,
        student_mask: Bool[Tensor, "b n"] | None = None,
    ) -> list[Float[Tensor, "b n _"]]:
        """Each layer's m tokens as n; padding of either side is left out of the grids."""
        m = tokens[0].shape[1]
        here = _places(tokens[0], count=n, mask=student_mask)
        there = _places(tokens[0], count=m, mask=mask)
        spacing = 1.0 / min(n, m)
        distance = (here[:, :, None] - there[:, None, :]) / spacing
        bias = -0.5 * (distance * torch.exp(-self.log_width)) ** 2
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, :], torch.finfo(bias.dtype).min)
        return [(bias + self._content(layer)).softmax(-1) @ layer for layer in tokens]

    def _content(self, layer: Tensor) -> Tensor | float:
        # layers of another width than the one scored keep the weights by position alone
        return (layer @ self.score)[:, None, :] if layer.shape[-1] == self.score.shape[0] else 0.0


def _places(like: Tensor, *, count: int, mask: Tensor | None) -> Tensor:
    """Relative place of every token in (0, 1), counted over real tokens only."""
    if mask is None:
        return ((torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count)[None]
    real = mask.to(like.dtype)
    return (real.cumsum(1) - 0.5) / real.sum(1, keepdim=True).clamp_min(1.0)
