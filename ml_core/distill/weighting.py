"""The weight of each pair of layers by depth: the source's sigmoid, and the one that fits any teacher."""

import torch
from jaxtyping import Float
from torch import Tensor

from ml_core.distill.spec import DFADConfig


def depth_factors(config: DFADConfig, depths: list[int], *, layers: int) -> Float[Tensor, " pairs"]:
    """The factor by depth of each pair; `depths` count the teacher's layers from 1 to `layers`."""
    at = torch.tensor(depths, dtype=torch.float32)
    if config.weighting == "as_published":
        return torch.sigmoid(0.5 * (at - 6.0))
    centred = at - layers / 2.0
    if config.depth == "bell":
        return torch.exp(-((centred / (config.sigma or layers / 4.0)) ** 2))
    return torch.sigmoid(centred / (config.tau or layers / 6.0))
