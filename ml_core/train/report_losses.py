"""Losses of the radiology student, and how pictures are varied while it learns."""

import torch
from torch import Tensor
from torch.nn import functional

from ml_core.data.report_tokens import FIRST_TEXT, PAD, STOP
from ml_core.models.report_student import Seen
from ml_core.train.report_films import OTHER


def states_loss(seen: Seen, states: Tensor, known: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy over the four states (b 14) where `known`; `weight` (b) balances films."""
    loss = functional.cross_entropy(seen.states.float().transpose(1, 2), states, reduction="none", label_smoothing=0.03)
    share = known * weight[:, None]
    return (loss * share).sum() / share.sum().clamp_min(1)


def gate_loss(seen: Seen, kind: Tensor) -> Tensor:
    """Binary cross-entropy of "is a chest film", both sides counting equally."""
    target = (kind != OTHER).float()
    loss = functional.binary_cross_entropy_with_logits(seen.gate.float(), target * 0.98 + 0.01, reduction="none")
    ours, theirs = target, 1 - target
    return (loss * ours).sum() / ours.sum().clamp_min(1) + (loss * theirs).sum() / theirs.sum().clamp_min(1)


def box_loss(seen: Seen, boxes: Tensor) -> Tensor:
    """−log of the attention inside the box, for findings (b 14 4) that have one: where it is known it is taught."""
    side = seen.attention.shape[-1]
    at = (torch.arange(side, device=boxes.device) + 0.5) / side
    half = 0.5 / side
    in_x = (at >= boxes[..., 0:1] - half) & (at <= boxes[..., 0:1] + boxes[..., 2:3] + half)
    in_y = (at >= boxes[..., 1:2] - half) & (at <= boxes[..., 1:2] + boxes[..., 3:4] + half)
    inside = (in_y[..., :, None] & in_x[..., None, :]).float()
    mass = (seen.attention.float() * inside).sum((-1, -2))
    there = (boxes[..., 2] > 0).float()
    return -(there * (mass + 1e-4).log()).sum() / there.sum().clamp_min(1)


def text_loss(logits: Tensor, text: Tensor) -> Tensor:
    """Cross-entropy of the next token where it is text or STOP; control tokens are given, never guessed."""
    target, wanted = _written(text)
    loss = functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), target, reduction="none")
    return (loss * wanted).sum() / wanted.sum().clamp_min(1)


def words_kl(logits: Tensor, text: Tensor, *, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the next token's distribution (b n v) where it is text or STOP, mean over those."""
    _, wanted = _written(text)
    own, other = logits[:, :-1].float().log_softmax(-1), teacher[:, :-1].float().log_softmax(-1)
    divergence = (other.exp() * (other - own)).sum(-1)
    return (divergence * wanted).sum() / wanted.sum().clamp_min(1)


def _written(text: Tensor) -> tuple[Tensor, Tensor]:
    """The next tokens (b n-1) and where they are the model's to guess."""
    target = text[:, 1:]
    return target, ((target >= FIRST_TEXT) | (target == STOP)) & (target != PAD)


def pictures_vary(images: Tensor, *, move: Tensor, generator: torch.Generator) -> Tensor:
    """Vary images (b 1 h w): grey values, noise, blur for all; rotation, scale, shift and mirror where `move` (b)."""
    b, device = images.shape[0], images.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(b, 1, 1, 1, generator=generator, device=device) * (high - low) + low

    images = _moved(images, move=move, generator=generator)
    images = images.clamp(0, 1) ** torch.exp(uniform(-0.35, 0.35))
    images = (images - 0.5) * uniform(0.75, 1.25) + 0.5 + uniform(-0.12, 0.12)
    smooth = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, smooth, uniform(0, 1) * (uniform(0, 1) < 0.4))
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (images + noise * uniform(0, 0.03)).clamp(0, 1)


def _moved(images: Tensor, *, move: Tensor, generator: torch.Generator) -> Tensor:
    b, device = images.shape[0], images.device

    def draw(width: float) -> Tensor:
        return (torch.rand(b, generator=generator, device=device) * 2 - 1) * width * move

    angle, scale, mirror = draw(0.14), torch.exp(draw(0.14)), torch.ones(b, device=device)
    mirror[(torch.rand(b, generator=generator, device=device) < 0.3) & (move > 0)] = -1
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([cos * mirror, -sin, draw(0.12), sin * mirror, cos, draw(0.12)], dim=1).view(b, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False, padding_mode="zeros")
