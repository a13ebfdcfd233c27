"""Our own modules as Features: the fraud student, the radiology student, the CNN teacher, and any stack of blocks."""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ml_core.distill.features import Features, HeadTaps
from ml_core.layers.blocks import Block
from ml_core.models.cnn_teacher import CnnTeacher, presence_logit
from ml_core.models.fraud_student import FraudStudent
from ml_core.models.report_student import ReportStudent


def fraud_features(
    model: FraudStudent,
    features: Float[Tensor, "b f"],
    card: Float[Tensor, "b k c"],
    terminal: Float[Tensor, "b m c"],
) -> Features:
    """The transaction's and the events' tokens, the summary, and one Bernoulli logit."""
    taps = model.taps(features, card, terminal)
    return Features(
        layers=tuple(layer.float() for layer in taps.layers),
        mask=taps.mask,
        pooled=taps.pooled.float(),
        logits=taps.logits.float()[:, None],
        names=tuple(f"blocks.{index}" for index in range(len(taps.layers))),
    )


def report_features(model: ReportStudent, images: Float[Tensor, "b 1 h w"]) -> Features:
    """The encoder's patches block by block, the class token, and a presence logit for each finding (b 14 1)."""
    seen = model.forward_seen(images)
    return Features(
        layers=tuple(layer[:, 1:].float() for layer in seen.layers),
        pooled=seen.tokens[:, 0].float(),
        logits=presence_logit(seen.states.float())[..., None],
        names=tuple(f"encoder.blocks.{index}" for index in range(len(seen.layers))),
    )


def cnn_features(model: CnnTeacher, images: Float[Tensor, "b 1 h w"], *, side: int) -> Features:
    """The stages' maps as side·side tokens, the pooled embedding, and a presence logit for each finding (b 14 1)."""
    layers, pooled, logits = model.features(images, side=side)
    return Features(
        layers=tuple(layer.float() for layer in layers),
        pooled=pooled.float(),
        logits=logits.float()[..., None],
        names=tuple(f"net.blocks.{index}" for index in range(len(layers))),
    )


def stack_features(
    blocks: Sequence[Block] | nn.ModuleList,
    x: Float[Tensor, "b n d"],
    *,
    mask: Bool[Tensor, "b n"] | None = None,
    head_layers: Sequence[int] = (),
) -> Features:
    """Our pre-LN blocks run one by one: each one's tokens, their mean, and the taps of `head_layers`; no logits."""
    wanted = {index % len(blocks) for index in head_layers}
    layers, heads = [], []
    for index, block in enumerate(blocks):
        if index in wanted:
            heads.append(block_heads(block, x, name=f"blocks.{index}"))
        x = block(x, key_mask=mask)
        layers.append(x)
    shown = Features(layers=tuple(layers), pooled=x.mean(1), mask=mask)
    weights = shown.token_weights(x)
    return Features(
        layers=shown.layers,
        pooled=(x * weights[..., None]).sum(1),
        mask=mask,
        heads=tuple(heads),
        names=tuple(f"blocks.{index}" for index in range(len(blocks))),
    )


def block_heads(block: Block, x: Float[Tensor, "b n d"], *, name: str) -> HeadTaps:
    """Queries, keys and values that `block` will compute of its input x, under the name that the model gives it."""
    y = block.norm1(x)
    return HeadTaps(name=name, q=block.attn.q_proj(y), k=block.attn.k_proj(y), v=block.attn.v_proj(y))
