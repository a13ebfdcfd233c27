"""The numbers of W8A8: symmetric int8 weights by row, symmetric int8 activations by token, and integer products.

With 6 or 4 `bits` the same scheme has fewer levels, which the products take as int8 all the same.
"""

from functools import cache
from typing import Literal

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor
from torch.nn import functional

from ml_core.errors import InputError
from ml_core.kernels.linear_w8a8.op import linear_w8a8

LEVELS = 127  # -128 is left out, so that the scheme is symmetric
BITS = (4, 6, 8)
ZERO = 128  # activations are stored as uint8 = level + 128: what oneDNN's fast kernels take
_TINY = 1e-12

Engine = Literal["int_mm", "onednn", "exact_float", "triton"]

# Below this many outputs (rows × out features) oneDNN's fixed cost is larger than what its kernel saves over
# torch._int_mm: measured in docs/log.md, "2026-11-24 CPU int8 matmul". Both give the same bits, so a row's answer does
# not depend on the batch that it came in.
ONEDNN_FROM = 100_000
_EXACT_INPUTS = 1_040  # sums of so many products of levels stay below 2^24, where fp32 holds every integer


def levels_of(bits: int) -> int:
    """The largest level: 127 for 8 bits, 31 for 6, 7 for 4. Raises InputError for other numbers of bits."""
    if bits not in BITS:
        raise InputError(f"bits: {bits} is none of {', '.join(map(str, BITS))}")
    return 2 ** (bits - 1) - 1


def weight_scale(weight: Float[Tensor, "o i"], *, bits: int = 8) -> Float[Tensor, " o"]:
    """One step a row, in fp32 at least: the largest magnitude over the largest level (absmax: no clipping)."""
    return _wide(weight).abs().amax(1).clamp_min(_TINY) / levels_of(bits)


def quantize_weight(weight: Float[Tensor, "o i"], *, bits: int = 8) -> tuple[Int8[Tensor, "o i"], Float[Tensor, " o"]]:
    """Levels and steps of a weight, row by row."""
    scale = weight_scale(weight, bits=bits)
    return weight_levels(weight, scale, bits=bits), scale


def weight_levels(weight: Float[Tensor, "o i"], scale: Float[Tensor, " o"], *, bits: int = 8) -> Int8[Tensor, "o i"]:
    """Levels of a weight for given steps; what lies beyond the largest level is clipped to it."""
    most = levels_of(bits)
    return torch.round(_wide(weight) / scale[:, None]).clamp_(-most, most).to(torch.int8)


def activation_scale(x: Float[Tensor, "*b i"], *, bits: int = 8) -> Float[Tensor, "*b 1"]:
    """One step a token, from the token alone."""
    return torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True)).clamp_min(_TINY) / levels_of(bits)


def quantize_activation(
    x: Float[Tensor, "*b i"], *, bits: int = 8
) -> tuple[UInt8[Tensor, "*b i"], Float[Tensor, "*b 1"]]:
    """Levels + 128 and steps, token by token; a half rounds up. The input is left as it is."""
    scale = activation_scale(x, bits=bits)
    return (x * scale.reciprocal()).add_(ZERO + 0.5).to(torch.uint8), scale


def quantize_static(x: Float[Tensor, "*b i"], scale: Float[Tensor, ""], *, bits: int = 8) -> UInt8[Tensor, "*b i"]:
    """Levels + 128 for one step for all of x; a half rounds up, what lies beyond the largest level is clipped."""
    most = levels_of(bits)
    # 128 is added before the cut to integers, which rounds towards zero
    return (x * scale.reciprocal()).clamp(-most, most).add_(ZERO + 0.5).to(torch.uint8)


def fake_weight(weight: Float[Tensor, "o i"], *, bits: int = 8) -> Float[Tensor, "o i"]:
    """The weight as its integer form says it, with a straight-through gradient (Bengio et al. 2013)."""
    levels, scale = quantize_weight(weight, bits=bits)
    return weight + ((levels.to(scale.dtype) * scale[:, None]).to(weight.dtype) - weight).detach()


def fake_activation(x: Float[Tensor, "*b i"], *, bits: int = 8) -> Float[Tensor, "*b i"]:
    """The activation as its integer form says it, with a straight-through gradient."""
    # half precision cannot hold 128 and a half
    levels, scale = quantize_activation(x.detach().to(torch.promote_types(x.dtype, torch.float32)), bits=bits)
    return x + (((levels.to(scale.dtype) - ZERO) * scale).to(x.dtype) - x).detach()


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def engine_for(*, rows: int, outputs: int, device: str) -> Engine:
    """Which integer product runs for this shape.

    On CUDA Triton's. On a CPU whose oneDNN is exact int_mm or onednn; on others and elsewhere integers held in fp32
    (without VNNI int_mm takes 17 to 19 times as long: docs/log.md, "2026-11-25 INT8 on a CPU without VNNI").
    """
    if device == "cuda":
        return "triton"
    if device != "cpu" or not onednn_exact():
        return "exact_float"
    return "onednn" if rows * outputs >= ONEDNN_FROM else "int_mm"


def engine_rule(*, outputs: int) -> str:
    """engine_for on this CPU in words."""
    if not onednn_exact():
        return "exact_float (this CPU has no VNNI: oneDNN saturates)"
    return f"onednn from rows >= {-(-ONEDNN_FROM // outputs)}, below int_mm"


def engines_cpu() -> tuple[Engine, ...]:
    """The engines that this CPU may use: all give the same bits."""
    return ("int_mm", "onednn", "exact_float") if onednn_exact() else ("int_mm", "exact_float")


@cache
def onednn_exact() -> bool:
    """Whether oneDNN's integer product is exact on this CPU; tried once, at full scale.

    Without VNNI (x86 with AVX2 alone) it adds pairs of products in 16 bits, which saturate at 32,767 without a word.
    """
    weight = torch.full((32, 64), LEVELS, dtype=torch.int8)
    levels = torch.full((32, 64), ZERO + LEVELS, dtype=torch.uint8)
    out = _onednn(levels, packed=pack(weight), scale=torch.ones(32))
    return bool((out == 64 * LEVELS**2).all())


def pack(weight: Int8[Tensor, "o i"]) -> Tensor:
    """The weight in the blocked layout that oneDNN wants (opaque)."""
    return torch.ops.onednn.qlinear_prepack(weight, None)


def product(
    levels: UInt8[Tensor, "m i"],
    step: Float[Tensor, "m 1"],
    *,
    weight: Int8[Tensor, "o i"],
    scale: Float[Tensor, " o"],
    bias: Float[Tensor, " o"] | None,
    engine: Engine,
    packed: Tensor | None = None,
) -> Float[Tensor, "m o"]:
    """x Wᵀ + bias for the x that `quantize_activation` took apart, exact up to the last scaling.

    The epilogue is the same in every engine. Raises InputError for "onednn" on a CPU where it is not exact, and for
    "triton" where that does not run.
    """
    if engine == "triton":
        return linear_w8a8(levels, step, weight, scale, bias)
    if engine == "onednn":
        if not onednn_exact():
            raise InputError("engine: oneDNN's int8 products saturate on this CPU (no VNNI); exact_float does not")
        scaled = _onednn(levels, packed=packed, scale=scale)
    elif engine == "int_mm":
        # uint8 with its top bit flipped, read as int8, is the level
        scaled = torch._int_mm((levels ^ ZERO).view(torch.int8), weight.t()).float() * scale
    else:
        scaled = _exact_float(levels.float() - ZERO, weight.float()) * scale
    scaled.mul_(step)  # in place: a pass over fresh memory costs more than the arithmetic
    return scaled.add_(bias) if bias is not None else scaled


def _onednn(levels: Tensor, *, packed: Tensor | None, scale: Tensor) -> Tensor:
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(
        levels, 1.0, ZERO, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _exact_float(levels: Tensor, weight: Tensor) -> Tensor:
    """The product of integers held in fp32, rounded once like an int32 sum that becomes a float."""
    if levels.shape[1] <= _EXACT_INPUTS:
        return functional.linear(levels, weight)
    parts = zip(levels.split(_EXACT_INPUTS, 1), weight.split(_EXACT_INPUTS, 1), strict=True)
    first, *rest = (functional.linear(x, w) for x, w in parts)
    total = first.double()
    for part in rest:
        total += part
    return total.float()
