"""Matching of logits with a temperature (Hinton et al. 2015)."""

import torch
from jaxtyping import Float
from torch import Tensor

from ml_core.distill.features import Features
from ml_core.errors import InputError


def logits_kl(student: Features, *, teacher: Features, temperature: float) -> Float[Tensor, ""]:
    """KL(teacher ‖ student) of the tempered distributions, mean over everything but the classes; 0 without logits.

    One class means one Bernoulli logit. Token-wise logits (b, n, c) with a student mask average over real tokens.
    Hinton et al. 2015; the factor T² is the caller's.
    """
    if student.logits is None or teacher.logits is None:
        return student.pooled.new_zeros(())
    if student.logits.shape != teacher.logits.shape:
        raise InputError(f"logits: student {tuple(student.logits.shape)}, teacher {tuple(teacher.logits.shape)}")
    own, other = student.logits / temperature, teacher.logits / temperature
    if own.ndim == 1 or own.shape[-1] == 1:
        own, other = own.reshape(own.shape[0], -1, 1), other.reshape(own.shape[0], -1, 1)
        own = torch.cat([own, torch.zeros_like(own)], -1)
        other = torch.cat([other, torch.zeros_like(other)], -1)
    target = other.log_softmax(-1)
    divergence = (target.exp() * (target - own.log_softmax(-1))).sum(-1)
    if student.mask is not None and student.logits.ndim == 3 and divergence.shape == student.mask.shape:
        mask = student.mask.to(divergence.dtype)
        return (divergence * mask).sum() / mask.sum().clamp_min(1.0)
    return divergence.mean()
