"""The settings of DFAD, and the loss that it returns."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Level = Literal["token", "layer", "global", "heads"]
Pairing = Literal["uniform", "last", "learned", "cka"]


@dataclass(frozen=True, kw_only=True)
class DFADConfig:
    """Settings of DFAD.

    weighting: "default" (mended), "as_published" (literally the source's formula), "uniform" (plain feature KD).
    depth: the factor by depth of the default weighting, sigmoid((l − L/2)/tau) or exp(−((l − L/2)/sigma)²), where l
        counts the teacher's layers from 1 to L; tau and sigma are L/6 and L/4 unless given.
    pairing: student layer s of S meets teacher layer round(s·L/S) ("uniform"), L − S + s ("last"), the one that linear
        CKA on the first batches says ("cka": DFAD.measured), or a mixture of all that is learned with the student
        ("learned", held near "uniform" with the strength assignment_temperature).
    levels: "token", "layer" (means over tokens, and the token-by-token similarities with the weight `relation`),
        "global" (sequence embeddings), "heads" (MiniLMv2's QQ, KK and VV relations of the taps in Features.heads, last
        with last, in `relation_heads` relation heads; weight `heads`). None: no alignment at all.
    alpha: weight of the alignment at the start; it falls linearly to 0 over the training.
    epsilon: the least weight that a layer keeps, whatever its cosine.
    cos_momentum, warmup_steps: running mean of the cosines, which counts only after the warm-up.
    temperature, kl_share: matching of logits; it takes the share kl_share of the task's loss.
    token_share: this share of the positions, in (0, 1], enters the levels "token" and "layer", evenly spread, others at
        every step: alignment costs so much less. As published all do.
    """

    weighting: Literal["default", "as_published", "uniform"] = "default"
    depth: Literal["sigmoid", "bell"] = "sigmoid"
    pairing: Pairing = "uniform"
    levels: tuple[Level, ...] = ("token", "layer", "global")
    alpha: float = 0.7
    epsilon: float = 0.2
    cos_momentum: float = 0.99
    warmup_steps: int = 100
    tau: float | None = None
    sigma: float | None = None
    temperature: float = 2.0
    kl_share: float = 0.5
    relation: float = 1.0
    heads: float = 1.0
    relation_heads: int = 12
    assignment_temperature: float = 0.1
    token_share: float = 0.375


@dataclass(frozen=True, kw_only=True)
class DFADLoss:
    """The loss and its parts: `total` is what to differentiate; the rest is for logs.

    weights, cos (on projected features), cka (linear, debiased, on the raw features' means over tokens; NaN for fewer
    than four rows): one a pair; empty where no level compares layers. assignment: the shares of the teacher's layers
    in each student layer's target. align_heads, assignment: None where the level "heads" or the pairing "learned" is
    not in use. alpha is a tensor where `progress` was one.
    """

    total: Float[Tensor, ""]
    task: Float[Tensor, ""]
    align_token: Float[Tensor, ""]
    align_layer: Float[Tensor, ""]
    align_global: Float[Tensor, ""]
    logits_kl: Float[Tensor, ""]
    weights: Float[Tensor, " pairs"]
    cos: Float[Tensor, " pairs"]
    cka: Float[Tensor, " pairs"]
    alpha: float | Float[Tensor, ""]
    align_heads: Float[Tensor, ""] | None = None
    assignment: Float[Tensor, "s t"] | None = None

    def align(self) -> dict[str, float]:
        """The alignment losses by level, as events want them."""
        values = {
            "token": float(self.align_token.detach()),
            "layer": float(self.align_layer.detach()),
            "global": float(self.align_global.detach()),
        }
        return values if self.align_heads is None else values | {"heads": float(self.align_heads.detach())}
