"""Triton kernels of the MLP: norm, up and activation in one; down, bias and residual in one; sum and norm in one."""

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from ml_core.kernels.norm_mlp.naive import Activation
from ml_core.kernels.norm_qkv.kernel import (
    as_rows,
    blocks,
    norm_arguments,
    norm_flags,
    norm_kind,
    normalised_tile,
    or_like,
    row_statistics,
    tiles_of,
    weight_tile,
)
from ml_core.kernels.norm_qkv.naive import Norm

_ACTIVATIONS: dict[Activation, int] = {"gelu": 1, "gelu_tanh": 2, "silu": 3}


def norm_up(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    activation: Activation,
    gated: bool,
    norm: Norm | None,
    path: str,
    out: Tensor,
) -> Tensor:
    """Fill `out` (…, f), contiguous, with what naive.norm_up computes."""
    rows = as_rows(x)
    m, d = rows.shape
    f = out.shape[-1]
    if m == 0:
        return out
    tiles = tiles_of(path, m=m)
    grid = (triton.cdiv(m, tiles.rows), triton.cdiv(f, tiles.columns))
    _norm_up[grid](
        rows, *norm_arguments(norm, like=rows), weight, or_like(bias, rows), out, m, d, f, rows.stride(0),
        NORM=norm_kind(norm), BIAS=bias is not None, ACT=_ACTIVATIONS[activation], GATED=gated,
        **norm_flags(norm), **blocks(tiles),
    )  # fmt: skip
    return out


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, *, path: str, out: Tensor
) -> Tensor:
    """Fill `out` (…, d), contiguous, with residual + x Wᵀ + b."""
    rows, base = as_rows(x), as_rows(residual)
    m, f = rows.shape
    d = out.shape[-1]
    if m == 0:
        return out
    tiles = tiles_of(path, m=m)
    grid = (triton.cdiv(m, tiles.rows), triton.cdiv(d, tiles.columns))
    _linear_residual[grid](
        rows, weight, or_like(bias, rows), base, out, m, f, d, rows.stride(0), base.stride(0),
        BIAS=bias is not None, **blocks(tiles),
    )  # fmt: skip
    return out


def add_norm(x: Tensor, residual: Tensor, *, after: Norm, out: Tensor) -> Tensor:
    """Fill `out` (…, d), contiguous, with after(residual + x)."""
    rows, base = as_rows(x), as_rows(residual)
    m, d = rows.shape
    if m == 0:
        return out
    _add_norm[(m,)](
        rows, base, *norm_arguments(after, like=rows), out, d, rows.stride(0), base.stride(0),
        NORM=norm_kind(after), **norm_flags(after), WIDTH=triton.next_power_of_2(d), num_warps=4 if d <= 2048 else 8,
    )  # fmt: skip
    return out


@triton.jit
@no_type_check
def _activated(x, ACT: tl.constexpr):
    if ACT == 1:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if ACT == 2:
        # 1 + tanh u = 2 σ(2u)
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return x * tl.sigmoid(x)


@triton.jit
@no_type_check
def _norm_up(
    x_ptr, nw_ptr, nb_ptr, eps, w_ptr, b_ptr, out_ptr, m, d, f, stride,
    NORM: tl.constexpr, NORM_WEIGHT: tl.constexpr, NORM_BIAS: tl.constexpr, BIAS: tl.constexpr, ACT: tl.constexpr,
    GATED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    valid = rows < m
    mean = tl.zeros((BM,), dtype=tl.float32)
    scale = mean
    if NORM != 0:
        mean, scale = row_statistics(x_ptr, rows, valid, stride, d, eps, NORM, BM, BK)
    first = tl.zeros((BM, BN), dtype=tl.float32)
    second = first
    up_ptr = w_ptr + f * d
    for start in range(0, d, BK):
        at = start + tl.arange(0, BK)
        x = normalised_tile(
            x_ptr, nw_ptr, nb_ptr, rows, valid, at, stride, d, mean, scale, NORM, NORM_WEIGHT, NORM_BIAS
        )
        first = tl.dot(x, weight_tile(w_ptr, columns, at, d, f), first, input_precision="ieee")
        if GATED:
            second = tl.dot(x, weight_tile(up_ptr, columns, at, d, f), second, input_precision="ieee")
    inside = columns < f
    if BIAS:
        first += tl.load(b_ptr + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    y = _activated(first, ACT)
    if GATED:
        if BIAS:
            second += tl.load(b_ptr + f + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        y = y * second
    place = rows[:, None] * f + columns[None, :]
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=valid[:, None] & inside[None, :])


@triton.jit
@no_type_check
def _linear_residual(
    x_ptr, w_ptr, b_ptr, residual_ptr, out_ptr, m, f, d, stride, stride_residual,
    BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    valid = rows < m
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, f, BK):
        at = start + tl.arange(0, BK)
        inside = valid[:, None] & (at < f)[None, :]
        x = tl.load(x_ptr + rows[:, None] * stride + at[None, :], mask=inside, other=0.0)
        total = tl.dot(x, weight_tile(w_ptr, columns, at, f, d), total, input_precision="ieee")
    if BIAS:
        total += tl.load(b_ptr + columns, mask=columns < d, other=0.0).to(tl.float32)[None, :]
    inside = valid[:, None] & (columns < d)[None, :]
    base = residual_ptr + rows[:, None] * stride_residual + columns[None, :]
    total += tl.load(base, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows[:, None] * d + columns[None, :], total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _add_norm(
    x_ptr, residual_ptr, nw_ptr, nb_ptr, eps, out_ptr, d, stride, stride_residual,
    NORM: tl.constexpr, NORM_WEIGHT: tl.constexpr, NORM_BIAS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    inside = at < d
    x = tl.load(x_ptr + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + row * stride_residual + at, mask=inside, other=0.0).to(tl.float32)
    if NORM == 1:
        x = tl.where(inside, x - tl.sum(x, axis=0) / d, 0.0)
    y = x / tl.sqrt(tl.sum(x * x, axis=0) / d + eps)
    if NORM_WEIGHT:
        y = y * tl.load(nw_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if NORM_BIAS:
        y = y + tl.load(nb_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * d + at, y.to(out_ptr.dtype.element_ty), mask=inside)
