"""Norm and projections as one Triton kernel: rows are normalised on their way into the product, heads written apart."""

import re
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ml_core.errors import InputError
from ml_core.kernels.norm_qkv.naive import Norm

KINDS = {"layer": 1, "rms": 2}


class Tiles(NamedTuple):
    """A program's tile of the output (rows × columns), its step through the width, and how it is scheduled."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def path(self) -> str:
        """Its name in the table of paths."""
        return f"triton-{self.rows}x{self.columns}x{self.depth}w{self.warps}s{self.stages}"


CANDIDATES = (
    Tiles(16, 64, 64, 4, 4),
    Tiles(32, 32, 128, 4, 3),
    Tiles(32, 64, 64, 4, 4),
    Tiles(64, 32, 64, 4, 4),
    Tiles(64, 64, 64, 4, 4),
    Tiles(64, 128, 64, 4, 3),
    Tiles(128, 64, 64, 4, 3),
    Tiles(128, 128, 64, 8, 3),
)


def tiles_of(path: str, *, m: int) -> Tiles:
    """The tiles that a path names; "triton" alone means those that fill a GPU at m rows, by rule."""
    found = re.fullmatch(r"triton-(\d+)x(\d+)x(\d+)w(\d+)s(\d+)", path)
    if found:
        return Tiles(*(int(number) for number in found.groups()))
    if path != "triton":
        raise InputError(f"path: {path!r} is no Triton path")
    return CANDIDATES[2] if m <= 512 else CANDIDATES[7]


def runs_on(device: torch.device) -> bool:
    """Whether Triton can run there: on CUDA, and anywhere in its interpreter (TRITON_INTERPRET=1)."""
    return device.type == "cuda" or not isinstance(_norm_qkv, triton.runtime.JITFunction)


def norm_qkv(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, head_size: int, norm: Norm | None, path: str, out: Tensor
) -> Tensor:
    """Fill `out` (b, heads + 2 · kv_heads, n, k), contiguous, with what naive.norm_qkv computes."""
    b, n, d = x.shape
    m, c = b * n, weight.shape[0]
    if m == 0:
        return out
    rows = as_rows(x)
    tiles = tiles_of(path, m=m)
    grid = (triton.cdiv(m, tiles.rows), triton.cdiv(c, tiles.columns))
    _norm_qkv[grid](
        rows, *norm_arguments(norm, like=rows), weight, or_like(bias, rows), out, m, d, c, n, rows.stride(0),
        NORM=norm_kind(norm), BIAS=bias is not None, HEAD=head_size, **norm_flags(norm), **blocks(tiles),
    )  # fmt: skip
    return out


def as_rows(x: Tensor) -> Tensor:
    """x as a matrix of rows, each of them without gaps."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def norm_kind(norm: Norm | None) -> int:
    """0 without a norm."""
    return 0 if norm is None else KINDS[norm.kind]


def norm_arguments(norm: Norm | None, *, like: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weight, bias and eps; `like` stands where there is none, and is not read."""
    if norm is None:
        return like, like, 0.0
    return or_like(norm.weight, like), or_like(norm.bias, like), norm.eps


def norm_flags(norm: Norm | None) -> dict[str, bool]:
    """Which of a norm's weights exist."""
    return {
        "NORM_WEIGHT": norm is not None and norm.weight is not None,
        "NORM_BIAS": norm is not None and norm.bias is not None,
    }


def blocks(tiles: Tiles) -> dict[str, Any]:
    """Tiles as launch arguments."""
    return {
        "BM": tiles.rows,
        "BN": tiles.columns,
        "BK": tiles.depth,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def or_like(tensor: Tensor | None, like: Tensor) -> Tensor:
    """A pointer is wanted even where nothing is read."""
    return like if tensor is None else tensor.contiguous()


@triton.jit
@no_type_check
def row_statistics(x_ptr, rows, valid, stride, d, eps, NORM: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """Mean (0 for rms) and 1/√(variance + eps) of each row, in fp32; two passes, as one loses the small variances."""
    total = tl.zeros((BM,), dtype=tl.float32)
    if NORM == 1:
        for start in range(0, d, BK):
            at = start + tl.arange(0, BK)
            inside = valid[:, None] & (at < d)[None, :]
            x = tl.load(x_ptr + rows[:, None] * stride + at[None, :], mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(x, axis=1)
    mean = total / d
    squares = tl.zeros((BM,), dtype=tl.float32)
    for start in range(0, d, BK):
        at = start + tl.arange(0, BK)
        inside = valid[:, None] & (at < d)[None, :]
        x = tl.load(x_ptr + rows[:, None] * stride + at[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - mean[:, None], 0.0)
        squares += tl.sum(x * x, axis=1)
    return mean, 1.0 / tl.sqrt(squares / d + eps)


@triton.jit
@no_type_check
def normalised_tile(
    x_ptr, nw_ptr, nb_ptr, rows, valid, at, stride, d, mean, scale,
    NORM: tl.constexpr, NORM_WEIGHT: tl.constexpr, NORM_BIAS: tl.constexpr,
):  # fmt: skip
    """The columns `at` of the rows, normalised in fp32 and rounded to x's dtype once."""
    raw = tl.load(x_ptr + rows[:, None] * stride + at[None, :], mask=valid[:, None] & (at < d)[None, :], other=0.0)
    if NORM == 0:
        return raw
    x = (raw.to(tl.float32) - mean[:, None]) * scale[:, None]
    if NORM_WEIGHT:
        x = x * tl.load(nw_ptr + at, mask=at < d, other=0.0).to(tl.float32)[None, :]
    if NORM_BIAS:
        x = x + tl.load(nb_ptr + at, mask=at < d, other=0.0).to(tl.float32)[None, :]
    return x.to(raw.dtype)


@triton.jit
@no_type_check
def weight_tile(w_ptr, columns, at, d, c):
    """(BK, BN) of the transposed weight (c, d)."""
    inside = (at < d)[:, None] & (columns < c)[None, :]
    return tl.load(w_ptr + columns[None, :].to(tl.int64) * d + at[:, None], mask=inside, other=0.0)


@triton.jit
@no_type_check
def _norm_qkv(
    x_ptr, nw_ptr, nb_ptr, eps, w_ptr, b_ptr, out_ptr, m, d, c, n, stride,
    NORM: tl.constexpr, NORM_WEIGHT: tl.constexpr, NORM_BIAS: tl.constexpr, BIAS: tl.constexpr, HEAD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    valid = rows < m
    mean = tl.zeros((BM,), dtype=tl.float32)
    scale = mean
    if NORM != 0:
        mean, scale = row_statistics(x_ptr, rows, valid, stride, d, eps, NORM, BM, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, d, BK):
        at = start + tl.arange(0, BK)
        x = normalised_tile(
            x_ptr, nw_ptr, nb_ptr, rows, valid, at, stride, d, mean, scale, NORM, NORM_WEIGHT, NORM_BIAS
        )
        total = tl.dot(x, weight_tile(w_ptr, columns, at, d, c), total, input_precision="ieee")
    if BIAS:
        total += tl.load(b_ptr + columns, mask=columns < c, other=0.0).to(tl.float32)[None, :]
    # row r is token r % n of text r // n, column j is number j % HEAD of head j // HEAD: out is (b, c / HEAD, n, HEAD)
    head = (rows // n)[:, None] * (c // HEAD) + (columns // HEAD)[None, :]
    place = (head * n + (rows % n)[:, None]) * HEAD + (columns % HEAD)[None, :]
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=valid[:, None] & (columns < c)[None, :])
