"""Public face of the W8A8 kernels: two operators of torch, for inference."""

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from ml_core.errors import InputError


def quantize_rows(x: Float[Tensor, "m d"]) -> tuple[UInt8[Tensor, "m d"], Float[Tensor, "m 1"]]:
    """Levels + 128 and one step a row, by Triton: the bits of naive.quantize_rows.

    Raises InputError naming a wrong argument, or where it cannot run.
    """
    _check_device(x, name="x")
    if x.ndim != 2 or not x.is_floating_point() or x.dtype == torch.float64:
        raise InputError(f"x: expected (m, d) in fp32 or lower, got {x.dtype} {tuple(x.shape)}")
    return _quantize(x if x.stride(-1) == 1 else x.contiguous())


def linear_w8a8(
    levels: UInt8[Tensor, "m d"],
    step: Float[Tensor, "m 1"],
    weight: Int8[Tensor, "c d"],
    scale: Float[Tensor, " c"],
    bias: Float[Tensor, " c"] | None = None,
) -> Float[Tensor, "m c"]:
    """(Σ level · weight) · scale · step + bias, by Triton: the bits of naive.linear_w8a8.

    Raises InputError naming a wrong argument, or where it cannot run.
    """
    _check_device(levels, name="levels")
    _check(levels, step=step, weight=weight, scale=scale, bias=bias)
    return _product(levels, step, weight, scale, bias)


@torch.library.custom_op("assay::quantize_rows", mutates_args=())
def _quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    from ml_core.kernels.linear_w8a8 import kernel

    return kernel.quantize_rows(x)


@_quantize.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(x.shape[0], 1, dtype=torch.float32)


@torch.library.custom_op("assay::linear_w8a8", mutates_args=())
def _product(levels: Tensor, step: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    from ml_core.kernels.linear_w8a8 import kernel

    return kernel.linear_w8a8(levels, step, weight, scale, bias)


@_product.register_fake
def _(levels: Tensor, step: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return step.new_empty(levels.shape[0], weight.shape[0])


def _check_device(x: Tensor, *, name: str) -> None:
    from ml_core.kernels.linear_w8a8.kernel import runs_on

    if not runs_on(x.device):
        raise InputError(f"{name}: Triton does not run on {x.device}")


def _check(levels: Tensor, *, step: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    m, d = levels.shape
    if levels.dtype != torch.uint8 or levels.stride(-1) != 1:
        raise InputError(f"levels: expected uint8 without gaps in its rows, got {levels.dtype}")
    if weight.dtype != torch.int8 or weight.ndim != 2 or weight.shape[1] != d or not weight.is_contiguous():
        raise InputError(f"weight: expected contiguous int8 (c, {d}), got {weight.dtype} {tuple(weight.shape)}")
    c = weight.shape[0]
    for name, tensor, shape in (("step", step, (m, 1)), ("scale", scale, (c,)), ("bias", bias, (c,))):
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise InputError(f"{name}: expected contiguous float32 {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
    if any(x is not None and x.device != levels.device for x in (step, weight, scale, bias)):
        raise InputError(f"weight: step, weight, scale and bias must lie where the levels do, on {levels.device}")
