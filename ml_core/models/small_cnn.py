"""A small residual CNN for pictures of a few pixels: the teacher of another architecture in the digits benchmark."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class SmallCnnShown(NamedTuple):
    """Maps of the three stages (b c h w), the pooled embedding (b p), and the logits (b c)."""

    maps: tuple[Tensor, ...]
    pooled: Tensor
    logits: Tensor


class SmallCnn(nn.Module):
    """Three stages of two convolutions each; the second and third stage halve the picture together by two."""

    def __init__(self, *, classes: int, channels: int = 1, widths: tuple[int, int, int] = (48, 96, 160)) -> None:
        super().__init__()
        inputs = (channels, *widths[:-1])
        strides = (1, 2, 1)
        self.stages = nn.ModuleList(
            _Stage(a, b, stride=stride) for a, b, stride in zip(inputs, widths, strides, strict=True)
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Float[Tensor, "b c h w"]) -> SmallCnnShown:
        """Everything that distillation may align."""
        maps, x = [], images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        pooled = x.mean((2, 3))
        return SmallCnnShown(tuple(maps), pooled, self.head(pooled))


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.norm1(self.first(x)))
        return functional.gelu(x + self.norm2(self.second(x)))
