"""What a model shows of itself to be aligned: named features, returned by the model, never hooked out of it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of one batch.

    `layers`: the tokens after each layer, first to last (b, n, d), n equal in all layers; a tree ensemble gives its
    leaf embedding as one layer of one token. `mask`: True where a token is no padding (None: nowhere padding).
    `pooled`: the embedding of the whole sequence. `logits`: over classes in the last dimension, c = 1 meaning one
    Bernoulli logit; any dimensions in between (None: no logits to match).
    """

    layers: tuple[Float[Tensor, "b n _"], ...]
    pooled: Float[Tensor, "b p"]
    mask: Bool[Tensor, "b n"] | None = None
    logits: Float[Tensor, "b *rest"] | None = None

    def detach(self) -> "Features":
        """The same features without gradient: what a teacher gives."""
        return replace(
            self,
            layers=tuple(layer.detach() for layer in self.layers),
            pooled=self.pooled.detach(),
            logits=None if self.logits is None else self.logits.detach(),
        )

    def token_weights(self, like: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """Weights of the tokens of each row, summing to 1 over those that are no padding."""
        if self.mask is None:
            return like.new_full(like.shape[:2], 1.0 / like.shape[1])
        weights = self.mask.to(like.dtype)
        return weights / weights.sum(1, keepdim=True).clamp_min(1.0)


def masked_mean(tokens: Float[Tensor, "b n d"], weights: Float[Tensor, "b n"]) -> Float[Tensor, "b d"]:
    """Mean over tokens with the given weights, which sum to 1 in each row."""
    return torch.einsum("bnd,bn->bd", tokens, weights)
