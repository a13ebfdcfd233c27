"""DFAD with one of its mends taken back, where no setting of DFADConfig can: for ablations alone."""

from typing import Any, Literal

import torch
from torch import Tensor

from ml_core.distill.dfad import DFAD
from ml_core.distill.nearness import mean_cosine

Without = Literal["", "shift", "detach", "sum", "centring", "standardising", "inverse"]


class Unmended(DFAD):
    """The default weighting, but for what `without` names.

    shift: ε + (1 − ε)·cos, which turns a term round where cos < 0. detach: the weight's gradient flows, so that the
    student may lower its loss by lowering the cosine. sum: the weights are not made to sum to 1. centring: the source's
    sigmoid(0.5·(l − 6)). standardising: features are compared in their own scale. inverse is no mend: it gives the
    weight to the pair that is aligned least, which is what the source's words ask for.
    """

    at: Tensor

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.without: str = ""
        # a buffer: a number from the host cannot enter a step that is a CUDA graph
        self.register_buffer("at", torch.tensor([t + 1.0 for _, t in self.pairs]), persistent=False)

    def leave_out(self, without: Without) -> None:
        """Take this mend back."""
        self.without = without

    def _weights(self, cos: Tensor, *, depth: Tensor) -> Tensor:
        if self.training:
            self._observe(cos.detach())
        mean = self.cos_mean
        if self.without == "detach":
            mean = mean + cos - cos.detach()
        if self.without == "inverse":
            mean = -mean
        if self.without == "centring":
            depth = torch.sigmoid(0.5 * (self.at - 6.0))
        nearness = mean if self.without == "shift" else (1.0 + mean) / 2.0
        kept = self.config.epsilon + (1.0 - self.config.epsilon) * nearness
        shares = depth * torch.where(self.steps > self.config.warmup_steps, kept, torch.ones_like(kept))
        return shares if self.without == "sum" else shares / shares.abs().sum()

    def _tokens(self, a: Tensor, b: Tensor, *, weights: Tensor) -> tuple[Tensor, Tensor]:
        if self.without not in ("detach", "standardising"):
            return super()._tokens(a, b, weights=weights)
        return mean_cosine(a, b, weights=weights), self._distance(a, b, weights=weights)

    def _distance(self, a: Tensor, b: Tensor, *, weights: Tensor) -> Tensor:
        if self.without != "standardising":
            return super()._distance(a, b, weights=weights)
        return ((a - b).pow(2).mean(-1) * weights).sum((-2, -1)) / weights.shape[0]
