"""Vision models: any of timm's that gives intermediate maps, as tokens on one grid."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ml_core.distill.features import Features, HeadTaps
from ml_core.errors import InputError
from ml_core.models.timm_shim import timm_import


class VisionTaps(nn.Module):
    """A timm model that returns Features: every stage's (or block's) map as side·side tokens, coarser maps enlarged.

    Class and register tokens are no place on the grid, so they are no tokens here; the pooled embedding has them.
    head_layers: blocks of a ViT whose queries, keys and values are shown (from 0, negative from the end).
    """

    def __init__(self, net: nn.Module, *, side: int, head_layers: tuple[int, ...] = ()) -> None:
        super().__init__()
        if not hasattr(net, "forward_intermediates"):
            raise InputError(f"{type(net).__name__}: gives no intermediate maps")
        self.net, self.side = net, side
        blocks = list(getattr(net, "blocks", ()))
        if head_layers and not (blocks and all(hasattr(getattr(block, "attn", None), "qkv") for block in blocks)):
            raise InputError(f"{type(net).__name__}: no queries, keys and values to show")
        self.head_layers = tuple(sorted(index % len(blocks) for index in head_layers))
        if 0 in self.head_layers:
            raise InputError("head_layers: the first block's input is no intermediate map")

    def forward(self, images: Float[Tensor, "b c h w"]) -> Features:
        """Features of b prepared images; logits where the model has classes."""
        final, maps = self.net.forward_intermediates(images, output_fmt="NCHW")
        return Features(
            layers=tuple(_on_grid(x, self.side).flatten(2).transpose(1, 2) for x in maps),
            pooled=self.net.forward_head(final, pre_logits=True),
            logits=self.net.forward_head(final) if self.net.num_classes else None,
            heads=tuple(self._heads(index, maps[index - 1]) for index in self.head_layers),
            names=tuple(f"blocks.{index}" for index in range(len(maps))),
        )

    def _heads(self, index: int, before: Float[Tensor, "b d s s"]) -> HeadTaps:
        block: Any = self.net.blocks[index]
        x = _on_grid(before, self.side).flatten(2).transpose(1, 2)
        q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, -1)
        return HeadTaps(name=f"blocks.{index}", q=q, k=k, v=v)


def vision_create(
    name: str,
    *,
    side: int,
    head_layers: tuple[int, ...] = (),
    tensors: dict[str, Tensor] | None = None,
    frozen: bool = True,
    **options: Any,
) -> VisionTaps:
    """timm's model `name` with `tensors` as weights (random without); options as timm.create_model takes them."""
    net = timm_import().create_model(name, pretrained=False, **options)
    if tensors is not None:
        net.load_state_dict(tensors)
    taps = VisionTaps(net, side=side, head_layers=head_layers)
    return taps.eval().requires_grad_(False) if frozen else taps


def _on_grid(maps: Float[Tensor, "b d s t"], side: int) -> Float[Tensor, "b d side side"]:
    if maps.shape[-2:] == (side, side):
        return maps
    if min(maps.shape[-2:]) >= side:
        return functional.adaptive_avg_pool2d(maps, side)
    return functional.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)
