"""W8A8 in Triton: rows to levels, and the product of levels on the integer matrix unit with its scales and bias.

Every rounding is the one that torch makes on a CPU: divisions are IEEE's, and no product is fused with a sum (the
launches say enable_fp_fusion=False), so that a GPU gives the bits of the CPU.
"""

from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ml_core.kernels.linear_w8a8.naive import LEVELS, TINY, ZERO


class Tiles(NamedTuple):
    """A program's tile of the output (rows × columns), its step through the width, warps and stages."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


CANDIDATES = (
    Tiles(16, 16, 256, 4, 4),
    Tiles(16, 32, 256, 4, 4),
    Tiles(16, 64, 128, 4, 4),
    Tiles(64, 64, 128, 4, 4),
    Tiles(64, 128, 128, 4, 3),
    Tiles(128, 128, 128, 8, 3),
    Tiles(128, 256, 128, 8, 3),
)


def runs_on(device: torch.device) -> bool:
    """Whether Triton can run there: on CUDA, and anywhere in its interpreter (TRITON_INTERPRET=1)."""
    return device.type == "cuda" or interpreted()


def interpreted() -> bool:
    """Whether the kernels of this process run in Triton's interpreter."""
    return not isinstance(product_kernel, triton.runtime.JITFunction)


def tiles_for(m: int) -> Tiles:
    """The tiles for m rows, by rule: few rows spread over many columns, many rows over large tiles."""
    if m <= 16:
        return CANDIDATES[1]
    return CANDIDATES[3] if m <= 512 else CANDIDATES[5]


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """What naive.quantize_rows computes, in one kernel; x (m, d) without gaps in its rows."""
    m, d = x.shape
    levels = torch.empty(m, d, dtype=torch.uint8, device=x.device)
    step = torch.empty(m, 1, dtype=torch.float32, device=x.device)
    if m:
        block = min(4096, max(16, triton.next_power_of_2(d)))
        quantize_kernel[(m,)](
            x, levels, step, d, x.stride(0), LEVELS=LEVELS, TINY=TINY, ZERO=ZERO, BLOCK=block, **_exact()
        )
    return levels, step


def linear_w8a8(
    levels: Tensor, step: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, *, tiles: Tiles | None = None
) -> Tensor:
    """What naive.linear_w8a8 computes."""
    (m, d), c = levels.shape, weight.shape[0]
    out = torch.empty(m, c, dtype=torch.float32, device=levels.device)
    if m == 0:
        return out
    taken = tiles or tiles_for(m)
    product_kernel[(triton.cdiv(m, taken.rows), triton.cdiv(c, taken.columns))](
        levels, step, weight, scale, scale if bias is None else bias, out, m, c, d, levels.stride(0),
        BIAS=bias is not None, ZERO=ZERO, BM=taken.rows, BN=taken.columns, BK=taken.depth,
        num_warps=taken.warps, num_stages=taken.stages, **_exact(),
    )  # fmt: skip
    return out


def _exact() -> dict[str, Any]:
    return {} if interpreted() else {"enable_fp_fusion": False}


@triton.jit
@no_type_check
def quantize_kernel(
    x_ptr, level_ptr, step_ptr, d, stride,
    LEVELS: tl.constexpr, TINY: tl.constexpr, ZERO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: its largest magnitude, then its levels."""
    row = tl.program_id(0).to(tl.int64)
    top = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, d, BLOCK):
        at = start + tl.arange(0, BLOCK)
        top = tl.maximum(top, tl.abs(tl.load(x_ptr + row * stride + at, mask=at < d, other=0.0).to(tl.float32)))
    step = tl.div_rn(tl.maximum(tl.max(top, 0), TINY), LEVELS * 1.0)
    inverse = tl.div_rn(1.0, step)
    tl.store(step_ptr + row, step)
    for start in range(0, d, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * stride + at, mask=at < d, other=0.0).to(tl.float32)
        # never negative: the cast cuts, as torch's does
        tl.store(level_ptr + row * d + at, (x * inverse + (ZERO + 0.5)).to(tl.uint8), mask=at < d)


@triton.jit
@no_type_check
def product_kernel(
    level_ptr, step_ptr, w_ptr, scale_ptr, b_ptr, out_ptr, m, c, d, stride,
    BIAS: tl.constexpr, ZERO: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of the output; sums in int32 are exact up to 133,000 inputs."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.int32)
    for start in range(0, d, BK):
        at = start + tl.arange(0, BK)
        inside = (rows < m)[:, None] & (at < d)[None, :]
        stored = tl.load(level_ptr + rows[:, None].to(tl.int64) * stride + at[None, :], mask=inside, other=ZERO)
        # with its top bit flipped, level + 128 read as int8 is the level
        x = (stored ^ ZERO).to(tl.int8, bitcast=True)
        held = (columns < c)[None, :] & (at < d)[:, None]
        w = tl.load(w_ptr + columns[None, :].to(tl.int64) * d + at[:, None], mask=held, other=0)
        total = tl.dot(x, w, total, out_dtype=tl.int32)
    out = total.to(tl.float32) * tl.load(scale_ptr + columns, mask=columns < c, other=0.0)[None, :]
    out = out * tl.load(step_ptr + rows, mask=rows < m, other=0.0)[:, None]
    if BIAS:
        out = out + tl.load(b_ptr + columns, mask=columns < c, other=0.0)[None, :]
    place = out_ptr + rows[:, None].to(tl.int64) * c + columns[None, :]
    tl.store(place, out, mask=(rows < m)[:, None] & (columns < c)[None, :])
