"""Few rows times an int8 weight in Triton: the weight is read once, 16 bytes a thread, and never written wider.

Two kernels. "sum" keeps products in registers and adds them up at the end: one row needs no matrix unit. "dot" pads the
rows to 16 and leaves the sums to the matrix unit, with the weight's channels as its rows.
"""

import re
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ml_core.errors import InputError

MOST_SUM = 4  # rows: each takes registers for a tile of products
MOST_DOT = 16


class Tiles(NamedTuple):
    """A program's output channels, its step through the width, warps and stages; `kind` is "sum" or "dot"."""

    kind: str
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def path(self) -> str:
        """Its name in the table of paths."""
        return f"triton-{self.kind}-{self.columns}x{self.depth}w{self.warps}s{self.stages}"

    def takes(self, m: int) -> bool:
        """Whether it can run m rows."""
        return m <= (MOST_SUM if self.kind == "sum" else MOST_DOT)


CANDIDATES = (
    Tiles("sum", 1, 2048, 4, 3),
    Tiles("sum", 2, 1024, 4, 3),
    Tiles("sum", 4, 512, 4, 3),
    Tiles("sum", 4, 1024, 4, 3),
    Tiles("sum", 8, 512, 4, 3),
    Tiles("sum", 8, 1024, 8, 3),
    Tiles("sum", 16, 256, 4, 3),
    Tiles("dot", 16, 256, 4, 4),
    Tiles("dot", 32, 128, 4, 4),
    Tiles("dot", 32, 256, 4, 4),
    Tiles("dot", 64, 128, 4, 4),
)


def tiles_of(path: str, *, m: int, d: int) -> Tiles:
    """The tiles that a path names; "triton", "triton-sum" and "triton-dot" mean those that the rule takes."""
    found = re.fullmatch(r"triton-(sum|dot)-(\d+)x(\d+)w(\d+)s(\d+)", path)
    if found:
        tiles = Tiles(found[1], *(int(number) for number in found.groups()[1:]))
    elif path in ("triton", "triton-sum", "triton-dot"):
        kind = path.removeprefix("triton").removeprefix("-") or ("sum" if m == 1 else "dot")
        if kind == "sum":
            tiles = Tiles("sum", 4, min(1024 if m == 1 else 512, max(64, triton.next_power_of_2(d))), 4, 3)
        else:
            tiles = Tiles("dot", 32, 128, 4, 4)
    else:
        raise InputError(f"path: {path!r} is no Triton path")
    if not tiles.takes(m):
        raise InputError(
            f"path: {tiles.path} takes up to {MOST_SUM if tiles.kind == 'sum' else MOST_DOT} rows, not {m}"
        )
    return tiles


def runs_on(device: torch.device) -> bool:
    """Whether Triton can run there: on CUDA, and anywhere in its interpreter (TRITON_INTERPRET=1)."""
    return device.type == "cuda" or not isinstance(_sum, triton.runtime.JITFunction)


def gemv_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, *, path: str, out: Tensor) -> Tensor:
    """Fill `out` (m, c), contiguous, with what naive.gemv_int8 computes; x (m, d) without gaps in its rows."""
    (m, d), c = x.shape, weight.shape[0]
    tiles = tiles_of(path, m=m, d=d)
    kernel, rows = (_sum, triton.next_power_of_2(m)) if tiles.kind == "sum" else (_dot, MOST_DOT)
    kernel[(triton.cdiv(c, tiles.columns),)](
        x, weight, scale, x if bias is None else bias, out, m, d, c, x.stride(0),
        BIAS=bias is not None, BM=rows, BC=tiles.columns, BD=tiles.depth,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out


@triton.jit
@no_type_check
def _sum(
    x_ptr, w_ptr, scale_ptr, b_ptr, out_ptr, m, d, c, stride,
    BIAS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BC + tl.arange(0, BC)
    rows = tl.arange(0, BM)
    start_of = w_ptr + columns.to(tl.int64)[:, None] * d
    # products are added up once, after the loop: a step needs no exchange between threads
    if BM == 1:
        products = tl.zeros((BC, BD), dtype=tl.float32)
        for start in range(0, d, BD):
            at = start + tl.arange(0, BD)
            w = tl.load(start_of + at[None, :], mask=(columns < c)[:, None] & (at < d)[None, :], other=0)
            x = tl.load(x_ptr + at, mask=at < d, other=0.0).to(tl.float32)
            products += w.to(tl.float32) * x[None, :]
        total = tl.sum(products, axis=1)[None, :]
    else:
        many = tl.zeros((BM, BC, BD), dtype=tl.float32)
        for start in range(0, d, BD):
            at = start + tl.arange(0, BD)
            w = tl.load(start_of + at[None, :], mask=(columns < c)[:, None] & (at < d)[None, :], other=0)
            inside = (rows < m)[:, None] & (at < d)[None, :]
            x = tl.load(x_ptr + rows[:, None] * stride + at[None, :], mask=inside, other=0.0).to(tl.float32)
            many += w.to(tl.float32)[None, :, :] * x[:, None, :]
        total = tl.sum(many, axis=2)
    _store(total, scale_ptr, b_ptr, out_ptr, rows, columns, m, c, BIAS)


@triton.jit
@no_type_check
def _dot(
    x_ptr, w_ptr, scale_ptr, b_ptr, out_ptr, m, d, c, stride,
    BIAS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BC + tl.arange(0, BC)
    rows = tl.arange(0, BM)
    start_of = w_ptr + columns.to(tl.int64)[:, None] * d
    total = tl.zeros((BC, BM), dtype=tl.float32)
    for start in range(0, d, BD):
        at = start + tl.arange(0, BD)
        w = tl.load(start_of + at[None, :], mask=(columns < c)[:, None] & (at < d)[None, :], other=0)
        inside = (at < d)[:, None] & (rows < m)[None, :]
        x = tl.load(x_ptr + rows[None, :] * stride + at[:, None], mask=inside, other=0.0)
        # levels of ±127 are exact in fp16 and bf16
        if x.dtype == tl.float32:
            # without a matrix unit a chain of d additions would round more than naive's, so each step has its own sum:
            # taken away, since Triton turns an addition of a product back into a chain
            total -= tl.dot(w.to(x.dtype), -x, input_precision="ieee")
        else:
            total = tl.dot(w.to(x.dtype), x, total)
    _store(tl.trans(total), scale_ptr, b_ptr, out_ptr, rows, columns, m, c, BIAS)


@triton.jit
@no_type_check
def _store(total, scale_ptr, b_ptr, out_ptr, rows, columns, m, c, BIAS: tl.constexpr):
    inside = columns < c
    total = total * tl.load(scale_ptr + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        total += tl.load(b_ptr + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    place = out_ptr + rows[:, None] * c + columns[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=(rows < m)[:, None] & inside[None, :])
