"""The CNN teacher of the radiology student: a whole EfficientNet that says which of the 14 findings a film shows."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ml_core.data.findings import FINDINGS
from ml_core.models.timm_shim import timm_import

THERE = (0, 2)  # of contracts.FindingState: positive, uncertain
_STAGES = (2, 3, 4, 5, 6)  # whose outputs are features


class CnnTeacher(nn.Module):
    """Logits of presence (b 14) and, for alignment, the stages' maps as tokens on one grid."""

    def __init__(self, name: str = "tf_efficientnet_lite0", *, dropout: float = 0.3) -> None:
        super().__init__()
        self.net = timm_import().create_model(name, in_chans=1, num_classes=0)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.net.num_features, len(FINDINGS))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b 14) for images (b 1 h w) in [0, 1]."""
        return self.head(self.dropout(self.net(images * 2 - 1)))

    def features(self, images: Tensor, *, side: int) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Stage maps as tokens (b side*side c) each, the pooled embedding (b p) and the logits (b 14)."""
        x = self.net.bn1(self.net.conv_stem(images * 2 - 1))
        layers = []
        for index, stage in enumerate(self.net.blocks):
            x = stage(x)
            if index in _STAGES:
                layers.append(_on_grid(x, side).flatten(2).transpose(1, 2))
        pooled = self.net.global_pool(self.net.bn2(self.net.conv_head(x)))
        return tuple(layers), pooled, self.head(pooled)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each layer that `features` returns."""
        return tuple(_width(self.net.blocks[index]) for index in _STAGES)


def stem_weights_load(model: nn.Module, tensors: dict[str, Tensor]) -> int:
    """Copy ImageNet weights (timm's names, three input channels) into the modules of `model`; returns how many.

    The first convolution gets the sum over the colour channels: a grey picture is three equal ones.
    """
    own = model.state_dict()
    copied = 0
    for name, tensor in tensors.items():
        if name not in own:
            continue
        value = tensor.sum(1, keepdim=True) if name == "conv_stem.weight" and own[name].shape[1] == 1 else tensor
        own[name].copy_(value)
        copied += 1
    return copied


def _on_grid(maps: Tensor, side: int) -> Tensor:
    if maps.shape[-1] >= side:
        return functional.adaptive_avg_pool2d(maps, side)
    return functional.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)


def _width(stage: nn.Module) -> int:
    return [module for module in stage.modules() if isinstance(module, nn.Conv2d)][-1].out_channels


def presence_logit(states: Tensor) -> Tensor:
    """Logit of "positive or uncertain" (b f) from four state logits (b f s), in the order of contracts.FindingState."""
    there = torch.logsumexp(states[..., THERE], dim=-1)
    return there - torch.logsumexp(states[..., [1, 3]], dim=-1)
