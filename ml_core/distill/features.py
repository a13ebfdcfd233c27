"""What a model shows of itself to be aligned: named features, returned by the model, never hooked out of it."""

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class HeadTaps:
    """One attention layer's queries, keys and values before their product, all heads side by side.

    `name`: the layer's, as the model calls it ("encoder.layer.11"). The widths may differ (grouped queries).
    """

    name: str
    q: Float[Tensor, "b n _"]
    k: Float[Tensor, "b n _"]
    v: Float[Tensor, "b n _"]

    def detach(self) -> "HeadTaps":
        """The same taps without gradient."""
        return replace(self, q=self.q.detach(), k=self.k.detach(), v=self.v.detach())

    def pooled_by(self, alignment: Float[Tensor, "b m n"]) -> "HeadTaps":
        """The same taps on another token grid, each of whose m tokens is a mean of these."""
        q, k, v = (alignment.to(x.dtype) @ x for x in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of one batch.

    `layers`: the tokens after each layer, first to last (b, n, d), n equal in all layers; a tree ensemble gives its
    leaf embedding as one layer of one token. `names`: the layers' names, as many as layers, or none. `mask`: True where
    a token is no padding (None: nowhere padding). `pooled`: the embedding of the whole sequence. `logits`: over classes
    in the last dimension, c = 1 meaning one Bernoulli logit; any dimensions in between (None: no logits to match).
    `heads`: the attention layers that show their queries, keys and values, first to last.
    """

    layers: tuple[Float[Tensor, "b n _"], ...]
    pooled: Float[Tensor, "b p"]
    mask: Bool[Tensor, "b n"] | None = None
    logits: Float[Tensor, "b *rest"] | None = None
    heads: tuple[HeadTaps, ...] = ()
    names: tuple[str, ...] = ()

    def detach(self) -> "Features":
        """The same features without gradient: what a teacher gives."""
        return replace(
            self,
            layers=tuple(layer.detach() for layer in self.layers),
            pooled=self.pooled.detach(),
            logits=None if self.logits is None else self.logits.detach(),
            heads=tuple(taps.detach() for taps in self.heads),
        )

    def token_weights(self, like: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """Weights of the tokens of each row, summing to 1 over those that are no padding."""
        if self.mask is None:
            return like.new_full(like.shape[:2], 1.0 / like.shape[1])
        weights = self.mask.to(like.dtype)
        return weights / weights.sum(1, keepdim=True).clamp_min(1.0)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each layer."""
        return tuple(layer.shape[-1] for layer in self.layers)


def masked_mean(tokens: Float[Tensor, "*g b n d"], weights: Float[Tensor, "b n"]) -> Float[Tensor, "*g b d"]:
    """Mean over tokens with the given weights, which sum to 1 in each row."""
    # not einsum, which lays the tokens out anew where they have more dimensions than the weights
    return (weights[:, None, :] @ tokens).squeeze(-2)
