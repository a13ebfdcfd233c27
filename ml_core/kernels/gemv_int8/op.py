"""Public face of few rows times an int8 weight: checks shapes, then runs the path measured fastest, or the demanded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from ml_core.errors import InputError
from ml_core.kernels.gemv_int8 import naive
from ml_core.kernels.gemv_int8.naive import quantize_rows
from ml_core.kernels.norm_qkv import paths
from ml_core.kernels.norm_qkv.paths import TABLE, Choice, PathTable, shape_of

__all__ = ["MOST_ROWS", "candidates", "choose", "gemv_int8", "measure", "quantize_rows"]

MOST_ROWS = 16
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def gemv_int8(
    x: Float[Tensor, "*b d"],
    weight: Int8[Tensor, "c d"],
    scale: Float[Tensor, " c"],
    bias: Float[Tensor, " c"] | None = None,
    *,
    path: str = "auto",
) -> Float[Tensor, "*b c"]:
    """x Wᵀ + bias with W[c, d] = scale[c] · weight[c, d], for up to 16 rows; sums in fp32, output in x's dtype.

    path: "naive", "triton", "triton-sum", "triton-dot", "triton-KIND-COLUMNSxDEPTHwWARPSsSTAGES"; "auto" is what
    `choose` names. Inference only. Raises InputError naming a wrong argument, or where the demanded path cannot run.
    """
    _check(x, weight=weight, scale=scale, bias=bias)
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    # the path is settled inside the operator: a compiled graph does not carry the table
    return _operator(rows, weight, scale, bias, path).view(*x.shape[:-1], weight.shape[0])


def choose(x: Float[Tensor, "*b d"], *, c: int, bias: bool = False) -> Choice:
    """The path of "auto" for x and c channels, and why; str() of it is a line to print."""
    otherwise = "naive"
    if x.device.type == "cuda" and x.dtype in _DTYPES:
        from ml_core.kernels.gemv_int8.kernel import tiles_of

        otherwise = tiles_of("triton", m=max(1, x.numel() // max(1, x.shape[-1])), d=x.shape[-1]).path
    shape = shape_of(x, op="gemv_int8", c=c, form="bias" if bias else "none")
    return TABLE.choose(shape, candidates=[*candidates(x), otherwise], otherwise=otherwise)


def candidates(x: Tensor) -> list[str]:
    """The paths that can run on x, Triton's with each of its tilings."""
    found = ["naive"]
    if x.device.type == "cuda" and x.dtype in _DTYPES:
        from ml_core.kernels.gemv_int8.kernel import CANDIDATES

        m = x.numel() // max(1, x.shape[-1])
        found += [tiles.path for tiles in CANDIDATES if tiles.takes(m)]
    return found


@torch.no_grad()
def measure(
    x: Float[Tensor, "*b d"],
    weight: Int8[Tensor, "c d"],
    scale: Float[Tensor, " c"],
    bias: Float[Tensor, " c"] | None = None,
    *,
    clock: Callable[[Callable[[], object]], float],
    table: PathTable = TABLE,
) -> dict[str, Any]:
    """Time every path that can run and is right to four times naive's error against float64; `table` heeds it then.

    clock: milliseconds of a call. Returns the shape, the times, and what was wrong (kernels.norm_qkv.paths.measure).
    """
    truth = naive.gemv_int8(x.double(), weight, scale.double(), None if bias is None else bias.double())
    plain = float((naive.gemv_int8(x, weight, scale, bias).double() - truth).norm() / truth.norm().clamp_min(1e-30))
    runs = {path: partial(gemv_int8, x, weight, scale, bias, path=path) for path in candidates(x)}
    shape = shape_of(x, op="gemv_int8", c=weight.shape[0], form="none" if bias is None else "bias")
    return paths.measure(shape, runs, truth=truth, clock=clock, tolerance=4 * max(plain, 5e-8), table=table)


@torch.library.custom_op("assay::gemv_int8", mutates_args=())
def _operator(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, path: str) -> Tensor:
    if x.shape[0] == 0 or weight.shape[0] == 0:
        return x.new_empty(x.shape[0], weight.shape[0])
    taken = choose(x, c=weight.shape[0], bias=bias is not None).path if path == "auto" else path
    if taken == "naive":
        return naive.gemv_int8(x, weight, scale, bias)
    if not taken.startswith("triton"):
        raise InputError(f"path: {path!r} is none of auto, naive, triton")
    from ml_core.kernels.gemv_int8 import kernel

    if not kernel.runs_on(x.device):
        raise InputError(f"path: {taken!r} needs CUDA, not {x.device.type}")
    if x.dtype not in _DTYPES:
        raise InputError(f"path: Triton's kernel knows no {x.dtype}")
    return kernel.gemv_int8(x, weight, scale, bias, path=taken, out=x.new_empty(x.shape[0], weight.shape[0]))


@_operator.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, path: str) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _check(x: Tensor, *, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    if x.ndim < 1 or not x.is_floating_point():
        raise InputError(f"x: expected floating (…, d), got {x.dtype} {tuple(x.shape)}")
    if weight.dtype != torch.int8 or weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise InputError(f"weight: expected int8 (c, {x.shape[-1]}), got {weight.dtype} {tuple(weight.shape)}")
    if not weight.is_contiguous():
        raise InputError("weight: must be contiguous, since it is read as it lies")
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.shape != weight.shape[:1] or not tensor.is_floating_point() or not tensor.is_contiguous():
            raise InputError(f"{name}: expected contiguous floating ({weight.shape[0]},), got {tuple(tensor.shape)}")
    if any(each is not None and each.device != x.device for each in (weight, scale, bias)):
        raise InputError(f"weight: weight, scale and bias must lie where x does, on {x.device}")
    if x.shape[-1] and x.numel() // x.shape[-1] > MOST_ROWS:
        raise InputError(f"x: {x.numel() // x.shape[-1]} rows; this product is made for up to {MOST_ROWS}")
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, scale, bias)):
        raise InputError("x: this product is for inference only and has no gradient: use torch.no_grad()")
