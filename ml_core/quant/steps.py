"""Steps that are found or learned: one a tensor for activations, one a row for weights, and 4-bit levels in a byte.

A step is learned as its logarithm (as TQT does, Jain et al. 2019, so that the optimiser's step is a share of it and it
stays positive) with the gradient of LSQ (Esser et al. 2020, equations 3 and 4).
"""

import math

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from ml_core.quant import scheme

# shares of the largest magnitude that `search` tries as the end of the range
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2)
_TINY = 1e-12


def search(x: Float[Tensor, "r n"], *, bits: int, top: Float[Tensor, " r"] | None = None) -> Float[Tensor, " r"]:
    """One step a row: of 17 shares of its largest magnitude (or of `top`) the one with the least squared error."""
    x, most = x.detach().float(), scheme.levels_of(bits)
    top = (x.abs().amax(1) if top is None else top.float()).clamp_min(_TINY)
    best, error = top / most, torch.full_like(top, torch.inf)
    for share in _SHARES:
        step = top * (share / most)
        levels = torch.round(x / step[:, None]).clamp_(-most, most)
        got = (levels * step[:, None] - x).pow(2).sum(1)
        best, error = torch.where(got < error, step, best), torch.minimum(got, error)
    return best


def learned_weight(weight: Float[Tensor, "o i"], log_step: Float[Tensor, " o"], *, bits: int) -> Float[Tensor, "o i"]:
    """The weight as its levels for exp(log_step) say it; gradients reach both."""
    step = log_step.exp()
    levels = scheme.weight_levels(weight, step.detach(), bits=bits)
    return _lsq(weight, step[:, None], levels, bits=bits, count=weight.shape[1])


def learned_activation(x: Float[Tensor, "*b i"], log_step: Float[Tensor, ""], *, bits: int) -> Float[Tensor, "*b i"]:
    """The activation as its levels for exp(log_step), one for all of it, say it; gradients reach both."""
    step = log_step.exp()
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    levels = scheme.quantize_static(wide, step.detach(), bits=bits).to(step.dtype) - scheme.ZERO
    return _lsq(x, step, levels, bits=bits, count=max(1, x.shape[-1]))


def _lsq(x: Tensor, step: Tensor, levels: Tensor, *, bits: int, count: int) -> Tensor:
    """levels · step; d/dx is 1 inside the range and 0 outside, d/dstep is level − x/step inside and ± the end outside.

    The step's gradient is divided by √(count · largest level), where count is of the inputs that share it.
    """
    most, share = scheme.levels_of(bits), 1.0 / math.sqrt(count * scheme.levels_of(bits))
    step = (step - step * share).detach() + step * share
    place = (x.to(step.dtype) / step).clamp(-most, most)
    return ((place + (levels.to(step.dtype) - place).detach()) * step).to(x.dtype)


def pack4(levels: Int8[Tensor, "o i"]) -> UInt8[Tensor, "o j"]:
    """Levels from −7 to 7, two in a byte (the even column in the low half); an odd last column stands alone."""
    shifted = (levels + 8).to(torch.uint8)
    if shifted.shape[1] % 2:
        shifted = torch.nn.functional.pad(shifted, (0, 1))
    return shifted[:, ::2] | (shifted[:, 1::2] << 4)


def unpack4(packed: UInt8[Tensor, "*r j"], *, width: int) -> Int8[Tensor, "*r i"]:
    """What `pack4` packed; `width` is the number of columns."""
    both = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    return both[..., :width].to(torch.int8) - 8
